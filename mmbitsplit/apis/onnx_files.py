"""Exports quantized models to ONNX files."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from mmbitsplit.export.onnx.processor import SaturationWarning, saturates, saturation_warning
from mmbitsplit.export.onnx.runtimes import RUNTIMES
from mmbitsplit.export.onnx.trace import GraphRequest
from mmbitsplit.export.onnx.write_file import OnnxFile, write_onnx


def export_onnx(model: nn.Module, folder: str | Path, *, format: str = 'int8',
                shape: tuple[int, int] | None = None, dynamic: bool = False,
                inputs: Sequence[Tensor] | None = None, fold: bool = True) -> list[OnnxFile]:
    """Writes a quantized model as ONNX files of opset 21, one a graph.

    A classifier or single-stage detector gives ``model.onnx``, a two-stage detector
    ``proposals.onnx``, ``box_head.onnx`` and ``mask_head.onnx``. They take the normalised image;
    mean, deviation and order of channels are noted in the metadata. A ``SaturationWarning`` names
    the layers that processors without VNNI compute wrongly.

    Args:
        model: A model of mmdet or mmpretrain, quantized, or the wrapper that ``load_quantized``
            returns; with ``inputs``, any torch module whose quantized layers it is made of.
        folder: Where the files go.
        format: ``'int8'``: 8-bit storage, runs in integers; ``'int4'``: codes of at most 4 bits
            are stored in 4, runs in float.
        shape: Height and width of the image, padded as the model's preprocessor does.
        dynamic: Whether batch, height and width may vary.
        inputs: Example tensors of a torch module.
        fold: Whether input scales move into the layer before where its output goes nowhere else.

    Raises:
        ValueError: A missing package or shape, an unknown format, a model that cannot be traced.
    """
    model.eval()
    facts = {}
    if inputs is not None:
        requests = [_plain_request(model, tuple(inputs), dynamic)]
    else:
        from mmbitsplit.engine.onnx.export_targets import export_requests, preprocessing_facts
        model = getattr(model, 'model', model)
        if shape is None:
            raise ValueError('shape=None: give the height and width of the image as '
                             'shape=(height, width), or example tensors as inputs=(...).')
        facts = {'preprocessing': preprocessing_facts(model)}
        requests = export_requests(model, shape, dynamic)
    files = [write_onnx(request, Path(folder) / f'{request.name}.onnx', format=format, fold=fold,
                        facts=facts) for request in requests]
    saturating = sorted({layer for file in files for layer in file.saturating})
    if saturating:
        warnings.warn(saturation_warning(saturating, here=any(map(saturates, RUNTIMES))),
                      SaturationWarning, stacklevel=2)
    return files


def _plain_request(model: nn.Module, inputs: tuple[Tensor, ...], dynamic: bool) -> GraphRequest:
    names = tuple(f'input_{index}' for index in range(len(inputs)))
    varying = {}
    if dynamic:
        for name, value in zip(names, inputs):
            varying[name] = {0: 'batch'}
            if value.dim() == 4:
                varying[name].update({2: f'{name}_height', 3: f'{name}_width'})
    return GraphRequest('model', model, inputs, names, varying)
