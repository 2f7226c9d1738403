"""Turns packed checkpoints from torch's container into that of safetensors, and back."""

from pathlib import Path
from typing import Any

import torch

from mmbitsplit.export import (
    is_safetensors,
    load_safetensors,
    read_checkpoint,
    summarise,
    to_safetensors,
)
from mmbitsplit.export.writing import (
    check_output_file,
    write_bytes,
    write_checkpoint,
    write_json,
)

ENDINGS = ('.safetensors', '.pth')


def convert_checkpoint(path: str | Path, output: str | Path | None = None) -> list[Path]:
    """Writes a verified checkpoint in the other container, tensor for tensor.

    Beside a file of safetensors goes a JSON file of the same name: what ``mmbitsplit inspect
    --json`` prints, for readers without the package. Nothing needs it to load the checkpoint.

    Args:
        path: The checkpoint; stays as it is.
        output: The file to write; default: beside ``path``, with the other ending.

    Returns:
        The files that were written.

    Raises:
        ValueError: The checkpoint is damaged, ``output`` has an ending that is not known or is the
            checkpoint itself, or it cannot be written.
        FileNotFoundError: There is no checkpoint.
        ImportError: safetensors is not installed.
    """
    path = Path(path)
    packed = read_checkpoint(path)
    output = Path(output) if output is not None else path.with_suffix(
        ENDINGS[is_safetensors(path)])
    if output.suffix not in ENDINGS:
        raise ValueError(f"output='{output}' is not supported; allowed are names that end in "
                         f'{" or ".join(ENDINGS)}.')
    if output.resolve() == path.resolve():
        raise ValueError(f"output='{output}' is the checkpoint itself; name another file.")
    raw = _read(path)
    check_output_file(output)
    if not is_safetensors(output):
        write_checkpoint(output, raw)
        return [output]
    data = to_safetensors(raw)
    write_bytes(output, data)
    summary = output.with_suffix('.json')
    write_json(summary, summarise(packed, len(data)))
    return [output, summary]


def _read(path: Path) -> dict[str, Any]:
    return load_safetensors(path) if is_safetensors(path) \
        else torch.load(path, map_location='cpu', weights_only=True)
