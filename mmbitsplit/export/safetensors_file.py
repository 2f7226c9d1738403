"""A packed checkpoint in the container of safetensors: the same header and payload, no pickle.

What ``torch.save`` would write as ``{'state_dict': {...}, 'meta': {...}}`` lies in a safetensors
file as its tensors, and ``meta`` as JSON in the file's metadata. What the tensors mean is said in
``packed_checkpoint.py`` alone; ``docs/formats.md`` describes both containers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

SUFFIX = '.safetensors'
# The one entry of the file's metadata. With several, safetensors gives them no fixed order, and
# equal checkpoints would give different bytes.
META_ENTRY = 'mmbitsplit_meta'


def is_safetensors(path: str | Path) -> bool:
    """Whether a file is named as one of safetensors."""
    return Path(path).suffix == SUFFIX


def to_safetensors(checkpoint: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a file that holds what ``pack_checkpoint`` made.

    Args:
        checkpoint: ``{'state_dict': tensors by name, 'meta': plain values that JSON can say}``.

    Raises:
        ImportError: safetensors is not installed.
    """
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in checkpoint['state_dict'].items()}
    return save(tensors, {META_ENTRY: json.dumps(checkpoint['meta'])})


def load_safetensors(path: str | Path) -> dict[str, Any]:
    """Returns what ``torch.load`` would return of the torch file; checks nothing.

    Tensors that others wrote come with an empty ``meta``.

    Raises:
        ImportError: safetensors is not installed.
        OSError, safetensors.SafetensorError, ValueError: The file cannot be read.
    """
    from safetensors import safe_open

    with safe_open(str(path), framework='pt') as file:
        state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
        text = (file.metadata() or {}).get(META_ENTRY)
    return {'state_dict': state, 'meta': json.loads(text) if text else {}}
