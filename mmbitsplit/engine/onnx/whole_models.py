"""Writes a model as one graph that needs nothing behind it, for mmdeploy's runtime if asked."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mmbitsplit.engine.onnx.end_to_end import NAME, end_to_end_request, suppression
from mmbitsplit.engine.onnx.export_targets import (
    CLASSIFIER,
    SINGLE_STAGE,
    export_requests,
    preprocessing_facts,
)
from mmbitsplit.engine.onnx.mmdeploy_layout import LOGITS, check_layout, layout_files
from mmbitsplit.export.onnx.nms_nodes import (
    DETECTIONS,
    LABELS,
    OLD_OPSET,
    append_nms,
    lower_opset,
    rename_output,
)
from mmbitsplit.export.onnx.write_file import OnnxFile, write_onnx
from mmbitsplit.export.writing import write_json
from mmbitsplit.structures.options import check_choice

LAYOUTS = ('mmdeploy',)


def export_whole(model: nn.Module, folder: Path, *, format: str, shape: tuple[int, int],
                 dynamic: bool, fold: bool, end2end: bool, layout: str | None) -> OnnxFile:
    """Does what ``apis.export_onnx`` says of ``end2end`` and ``layout``.

    Raises:
        ValueError: The combination is not there; says which is.
    """
    cfg, model = getattr(model, 'cfg', None), getattr(model, 'model', model)
    if layout is not None:
        check_choice('layout', layout, LAYOUTS)
        _check_for_layout(model, cfg, format, dynamic, end2end)
    facts: dict[str, Any] = {'preprocessing': preprocessing_facts(model)}
    if end2end:
        request = end_to_end_request(model, shape, dynamic)
        facts |= {'outputs': [DETECTIONS, LABELS], **suppression(model)}
    else:
        request, = export_requests(model, shape, dynamic)
        facts |= {'outputs': LOGITS}

    def finish(proto: Any) -> None:
        if end2end:
            append_nms(proto, **suppression(model))
        else:
            rename_output(proto, LOGITS)
        if layout is not None:
            lower_opset(proto)

    described = {} if layout is None else layout_files(
        model, cfg, f'{NAME}.onnx', shape, opset=OLD_OPSET, format=format)
    file = write_onnx(request, folder / f'{NAME}.onnx', format=format, fold=fold, facts=facts,
                      finish=finish)
    for name, content in described.items():
        write_json(folder / name, content)
    return file


def _check_for_layout(model: nn.Module, cfg: Any, format: str, dynamic: bool,
                      end2end: bool) -> None:
    refused = partial('layout={!r} is not supported with {}; {}'.format, 'mmdeploy')
    if format != 'int8':
        raise ValueError(refused(f'format={format!r}', "allowed is format='int8': its runtime "
                                                       'knows no 4-bit integers.'))
    if dynamic:
        raise ValueError(refused('dynamic=True', 'its runtime gets images of one size here; leave '
                                                 'dynamic out.'))
    if cfg is None:
        raise ValueError(refused('a model without cfg', 'load it with load_quantized, which sets '
                                                        'it.'))
    kind = check_layout(model)
    if kind == SINGLE_STAGE and not end2end:
        raise ValueError(refused('a detector without end2end', 'add end2end=True (--end2end): its '
                                 'runtime reads boxes, not raw outputs.'))
    if kind == CLASSIFIER and end2end:
        raise ValueError(refused('a classifier with end2end', 'leave end2end out: there is nothing '
                                                              'behind the graph.'))
