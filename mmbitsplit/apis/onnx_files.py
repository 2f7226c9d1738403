"""Exports quantized models to ONNX files."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmbitsplit.export.onnx.processor import SaturationWarning, saturates, saturation_warning
from mmbitsplit.export.onnx.runtimes import RUNTIMES
from mmbitsplit.export.onnx.trace import GraphRequest
from mmbitsplit.export.onnx.write_file import OnnxFile, write_onnx


def export_onnx(model: nn.Module, folder: str | Path, *, format: str = 'int8',
                shape: tuple[int, int] | None = None, dynamic: bool = False,
                inputs: Tensor | Sequence[Tensor] | None = None, fold: bool = True,
                end2end: bool = False, layout: str | None = None) -> list[OnnxFile]:
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
        inputs: Example tensors of a torch module, or the one that it takes.
        fold: Whether input scales move into the layer before where its output goes nowhere else.
        end2end: Of a single-stage detector: decoding of boxes and non-maximum suppression are part
            of the graph, ``end2end.onnx``; it gives ``dets`` (N, K, 5) and ``labels`` (N, K).
        layout: ``'mmdeploy'``: ``end2end.onnx`` in opset 18 with ``deploy.json``,
            ``pipeline.json`` and ``detail.json``, as mmdeploy's runtime loads it. Of a classifier,
            or of a detector with ``end2end``; the model is then one of ``load_quantized``.

    Raises:
        ValueError: A missing package or shape, an unknown format, a model that cannot be traced.
    """
    model.eval()
    facts: dict[str, Any] = {}
    if layout is not None or end2end:
        from mmbitsplit.engine.onnx.whole_models import export_whole
        if inputs is not None:
            raise ValueError('end2end=True and layout take a model of mmdet or mmpretrain and its '
                             'shape, not inputs.')
        files = [export_whole(model, Path(folder), format=format, shape=_given(shape),
                              dynamic=dynamic, fold=fold, end2end=end2end, layout=layout)]
        _warn_of(files)
        return files
    if inputs is not None:
        inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        requests = [_plain_request(model, inputs, dynamic)]
    else:
        from mmbitsplit.engine.onnx.export_targets import export_requests, preprocessing_facts
        model = getattr(model, 'model', model)
        facts = {'preprocessing': preprocessing_facts(model)}
        requests = export_requests(model, _given(shape), dynamic)
    files = [write_onnx(request, Path(folder) / f'{request.name}.onnx', format=format, fold=fold,
                        facts=facts) for request in requests]
    _warn_of(files)
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


def _given(shape: tuple[int, int] | None) -> tuple[int, int]:
    if shape is None:
        raise ValueError('shape=None: give the height and width of the image as '
                         'shape=(height, width), or example tensors as inputs=(...).')
    return shape


def _warn_of(files: Sequence[OnnxFile]) -> None:
    saturating = sorted({layer for file in files for layer in file.saturating})
    if saturating:
        warnings.warn(saturation_warning(saturating, here=any(map(saturates, RUNTIMES))),
                      SaturationWarning, stacklevel=3)
