"""From a part of a model to an ONNX file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmbitsplit.export.onnx.requirements import need
from mmbitsplit.export.onnx.rewrite import write_layers
from mmbitsplit.export.onnx.saturation import saturating_layers
from mmbitsplit.export.onnx.storage import FORMATS, count_widths, storage_note
from mmbitsplit.export.onnx.stored_weight import stored_weight
from mmbitsplit.export.onnx.trace import GraphRequest, trace
from mmbitsplit.files import replacing
from mmbitsplit.structures.options import check_choice
from mmbitsplit.version import __version__

METADATA = 'mmbitsplit'


@dataclass(frozen=True)
class OnnxFile:
    """An exported graph.

    Args:
        path: Its file.
        name: What the graph is called.
        layers: Number of quantized layers in it.
        folds: Layers that took the input scales of the layer behind, with that layer.
        bytes: Size of the file.
        saturating: Layers that a processor without VNNI may compute wrongly; see
            ``saturation``.
        format: ``'int8'`` or ``'int4'``.
        codes: Layers by the width of their weight codes and what these take in the file; see
            ``storage.count_widths``.
        products: Number of quantized products of activations in it.
    """

    path: Path
    name: str
    layers: int
    folds: list[tuple[str, str]]
    bytes: int
    saturating: list[str] = field(default_factory=list)
    format: str = 'int8'
    codes: list[dict[str, int]] = field(default_factory=list)
    products: int = 0

    @property
    def storage_note(self) -> str:
        """A sentence on codes that take more bits than they have; empty where none do."""
        return storage_note(self.codes, self.format)


def write_onnx(request: GraphRequest, path: str | Path, *, format: str = 'int8',
               fold: bool = True, facts: Mapping[str, Any] | None = None,
               finish: Callable[[Any], None] | None = None) -> OnnxFile:
    """Writes a part of a model as an ONNX file of opset 21.

    Args:
        request: The part. Its float layers stay float.
        path: The file.
        format: ``'int8'``, which runtimes execute in integers, or ``'int4'``: codes of at most
            4 bits stored in 4, the smaller file, executed in float.
        fold: Whether input scales move into the layer before where its output goes nowhere else.
        facts: More to be noted in the file's metadata, plain values.
        finish: Changes the finished ``onnx.ModelProto`` in place, before it is checked.

    Raises:
        ValueError: Unknown format, a missing package, a model that cannot be traced, or a
            file that checks find wrong or that cannot be written.
    """
    check_choice('format', format, FORMATS)
    ir = need('onnx_ir')
    traced = trace(request)
    saturating = saturating_layers(traced.layers) if format == 'int8' else []
    folds = write_layers(traced.model, traced.layers, traced.streams, traced.products,
                         format=format, fold=fold)
    codes = count_widths(((layer.num_bits, stored_weight(layer).num_bits)
                          for layer in traced.layers.values()), format)
    traced.model.producer_name, traced.model.producer_version = 'mmbitsplit', __version__
    traced.model.metadata_props[METADATA] = json.dumps(
        {'graph': request.name, 'format': format, 'outputs': traced.structure,
         'saturating': saturating, 'codes': codes, **(facts or {})})
    path, onnx = Path(path), need('onnx')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            ir.save(traced.model, temporary)
            if finish is not None:
                proto = onnx.load(str(temporary))
                finish(proto)
                onnx.save(proto, str(temporary))
            onnx.checker.check_model(str(temporary), full_check=True)
    except OSError as error:
        raise ValueError(f'{path} cannot be written: {error}. Choose another place with '
                         '--output.') from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = ' '.join(str(error).split())
        raise ValueError(f"The graph of '{request.name}' is none that ONNX allows: {reason}. Give "
                         'inputs with a batch; a layer that ONNX lacks can stay in float.'
                         ) from error
    return OnnxFile(path, request.name, len(traced.layers), folds, path.stat().st_size,
                    saturating, format, codes, len(traced.products))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Returns what ``write_onnx`` noted in a file.

    Raises:
        ValueError: The file is missing, damaged, or not one that mmbitsplit wrote.
    """
    onnx = need('onnx')
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and the file system have errors of their own
        raise ValueError(f'{path} cannot be read as ONNX ({error}); export it again with '
                         'tools/export_onnx.py.') from error
    for entry in model.metadata_props:
        if entry.key == METADATA:
            return json.loads(entry.value)
    raise ValueError(f'{path} was not written by mmbitsplit; export with tools/export_onnx.py.')
