"""Lets mmengine, and so upstream's tools, load checkpoints of safetensors by their names."""

from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader

from mmbitsplit.export import load_safetensors

# mmengine matches a pattern at the beginning of a path; addresses of its own sort before this one.
PATTERN = r'.*\.safetensors$'


def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Loads a file of safetensors as a checkpoint, its tensors on the CPU.

    Args:
        filename: The file.
        map_location: Of no use: a model copies tensors to where its own are.
    """
    return load_safetensors(filename)


def register_safetensors() -> None:
    """Makes mmengine load names that end in ``.safetensors`` so, unless somebody else does."""
    if PATTERN not in CheckpointLoader._schemes:
        CheckpointLoader.register_scheme(PATTERN, loader=load_from_safetensors)
