"""Evaluates exported graphs inside mmengine: upstream's data, post-processing and metrics."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmbitsplit.engine.onnx.export_targets import export_requests
from mmbitsplit.export.onnx.agreement import Agreement, compare_outputs
from mmbitsplit.export.onnx.runtimes import OnnxGraph
from mmbitsplit.export.onnx.write_file import read_metadata


def load_graphs(folder: str | Path, runtime: str = 'onnxruntime', threads: int | None = None,
                ) -> dict[str, tuple[OnnxGraph, Any]]:
    """Loads the files that ``export_onnx`` wrote into a folder, by their graphs' names.

    Returns:
        Each graph with the structure of its outputs.

    Raises:
        ValueError: There are none, or one cannot be loaded.
    """
    paths = sorted(Path(folder).glob('*.onnx'))
    if not paths:
        raise ValueError(f'{folder} holds no .onnx file; export with tools/export_onnx.py and '
                         'pass the folder it names.')
    graphs = {}
    for path in paths:
        facts = read_metadata(path)
        graphs[facts['graph']] = (OnnxGraph(path, runtime, threads), facts['outputs'])
    return graphs


def saturating_layers_of(folder: str | Path) -> list[str]:
    """Layers of the graphs in a folder that processors without VNNI may compute wrongly, as they
    noted when they were written; of files older than that nothing is known."""
    return sorted({name for path in Path(folder).glob('*.onnx')
                   for name in read_metadata(path).get('saturating', ())})


class GraphComparison:
    """Computes what graphs computed with the quantized torch model too, on the same inputs.

    A sum in another order moves a value across the border between two codes now and then, and the
    layers behind spread that. How far that goes in a model, torch says itself: its figures in
    double precision are compared with those in single precision likewise.

    Args:
        model: The quantized model of mmdet or mmpretrain.
        calls: Calls of each graph that are compared; later ones are not.
    """

    def __init__(self, model: nn.Module, calls: int):
        self.modules, self.doubles = (
            {request.name: request.module for request in export_requests(part, (32, 32))}
            for part in (model, copy.deepcopy(model).double()))
        self.calls = calls
        self.seen: dict[str, int] = {}
        self.found: dict[str, Agreement] = {}
        self.itself: dict[str, Agreement] = {}

    @torch.no_grad()
    def __call__(self, name: str, inputs: tuple[Tensor, ...], outputs: Sequence[Tensor]) -> None:
        """Takes a graph's name, inputs and outputs."""
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.seen[name] > self.calls:
            return
        expected = tree_leaves(self.modules[name](*inputs))
        exact = tree_leaves(self.doubles[name](*(value.double() for value in inputs)))
        for totals, values in ((self.found, outputs), (self.itself, exact)):
            totals[name] = totals.get(name, Agreement()) + compare_outputs(expected, values)

    def table(self) -> dict[str, dict[str, float]]:
        """Returns plain values for JSON: elements, share within a step, largest difference; and
        the last two of torch in double precision."""
        return {name: {'elements': found.elements, 'within_one_step': found.share,
                       'largest_steps': found.largest,
                       'torch_double_within_one_step': self.itself[name].share,
                       'torch_double_largest_steps': self.itself[name].largest}
                for name, found in self.found.items()}


def evaluation_shape(cfg: Config, divisor: int = 1) -> tuple[int, int]:
    """Returns height and width of the image as the test pipeline makes it, padded.

    Args:
        cfg: With ``test_dataloader``.
        divisor: Sizes are rounded up to multiples of it.

    Raises:
        ValueError: The pipeline does not say; asks for ``--shape``.
    """
    loader = cfg.get('test_dataloader') or {}
    found = None
    for step in _pipeline(loader.get('dataset') or {}):
        size = step.get('crop_size') if step.get('type', '').endswith('CenterCrop') else None
        if step.get('type', '').endswith('Resize') and step.get('scale') is not None:
            scale = step['scale']
            size = (scale, scale) if isinstance(scale, int) else (min(scale), max(scale))
        found = size or found
    if found is None:
        raise ValueError('The test pipeline of the config does not say how large images are; '
                         'pass --shape HEIGHT WIDTH.')
    height, width = (found, found) if isinstance(found, int) else found
    divisor = max(1, divisor)
    return (-(-height // divisor) * divisor, -(-width // divisor) * divisor)


def _pipeline(dataset: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    while dataset.get('dataset'):
        dataset = dataset['dataset']
    return dataset.get('pipeline') or ()


