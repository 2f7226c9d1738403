"""Takes a checkpoint of several widths apart into files, and puts files of it together again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmbitsplit.export import (
    BASE,
    is_safetensors,
    pack_checkpoint,
    read_checkpoint,
    split_checkpoint,
    to_safetensors,
)
from mmbitsplit.export.writing import check_output_file, write_bytes, write_checkpoint


def split_file(path: str | Path, folder: str | Path | None = None) -> dict[int, Path]:
    """Writes a base file, which runs by itself, and a residual file a further width.

    Args:
        path: ``quantized.pth`` of a model with several widths; stays as it is.
        folder: Where to; beside it when not given. Names are its name and ``_base``, ``_bits_4``.

    Returns:
        The files by width, that of the base under 0.

    Raises:
        ValueError: No layer has several widths, the checkpoint is damaged, or a file cannot be
            written.
        FileNotFoundError: There is no checkpoint.
    """
    path = Path(path)
    files = split_checkpoint(read_checkpoint(path))
    written = {}
    for width, checkpoint in files.items():
        end = '_base' if width == BASE else f'_bits_{width}'
        written[width] = Path(folder or path.parent) / f'{path.stem}{end}{path.suffix}'
        _write(written[width], checkpoint)
    return written


def join_files(base: str | Path, residuals: Sequence[str | Path], output: str | Path) -> Path:
    """Writes one checkpoint of a base file and residual files.

    With all of them it is the checkpoint that was split, byte for byte; with the first few, one of
    fewer widths.

    Args:
        base: The base file.
        residuals: From the lowest width on, without a gap.
        output: The file to write.

    Raises:
        ValueError, FileNotFoundError: See ``export.read_checkpoint``; or it cannot be written.
    """
    output = Path(output)
    if output.resolve() in [Path(path).resolve() for path in (base, *residuals)]:
        raise ValueError(f"output='{output}' is one of the files that are joined; name another.")
    packed = read_checkpoint(base, residuals)
    _write(output, pack_checkpoint(packed.state, packed.description, packed.meta))
    return output


def _write(path: Path, checkpoint: dict[str, Any]) -> None:
    check_output_file(path)
    if is_safetensors(path):
        write_bytes(path, to_safetensors(checkpoint))
    else:
        write_checkpoint(path, checkpoint)
