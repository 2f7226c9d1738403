"""Small files of any quantized torch module; torch alone is needed."""

from pathlib import Path

from torch import nn

from mmbitsplit.export import (
    is_safetensors,
    pack_model,
    to_safetensors,
    versions,
)
from mmbitsplit.export.writing import check_output_file, write_bytes, write_checkpoint


def save_quantized(model: nn.Module, path: str | Path) -> int:
    """Writes a quantized model as a packed checkpoint: codes with as many bits as they have.

    The file is of the format that ``mmbitsplit quantize`` writes (``docs/formats.md``), whose other
    commands read it: ``inspect``, ``convert``, ``split``. ``load_quantized`` loads it.

    Args:
        model: As ``quantize_model`` or ``load_quantized`` left it.
        path: The file; one that ends in ``.safetensors`` is of safetensors, which must be
            installed.

    Returns:
        Bytes of the file.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: The model was not quantized, or the file cannot be written.
    """
    path = check_output_file(path)
    inside = getattr(type(model), 'names_inside', None)  # of a wrapper: names are those within
    checkpoint = pack_model(model if inside is None else getattr(model, inside),
                            {'versions': versions()})
    if is_safetensors(path):
        write_bytes(path, to_safetensors(checkpoint))
    else:
        write_checkpoint(path, checkpoint)
    return path.stat().st_size
