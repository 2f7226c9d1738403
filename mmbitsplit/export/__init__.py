"""Files of quantized models; torch alone is needed to read and write them."""

from mmbitsplit.export.model_state import pack_model, restore_model
from mmbitsplit.export.packed_block import FORMAT
from mmbitsplit.export.packed_checkpoint import (
    HEADER_KEY,
    PAYLOAD_KEY,
    PLAN_KEY,
    PackedCheckpoint,
    check_fit,
    pack_checkpoint,
    read_checkpoint,
    unpack_state,
)
from mmbitsplit.export.packed_summary import summarise
from mmbitsplit.export.residual_files import BASE, split_checkpoint
from mmbitsplit.export.safetensors_file import (
    is_safetensors,
    load_safetensors,
    to_safetensors,
)
from mmbitsplit.export.versions import versions
from mmbitsplit.export.width_parts import width_bytes

__all__ = ['BASE', 'FORMAT', 'HEADER_KEY', 'PAYLOAD_KEY', 'PLAN_KEY', 'PackedCheckpoint',
           'check_fit', 'is_safetensors', 'load_safetensors', 'pack_checkpoint', 'pack_model',
           'read_checkpoint', 'restore_model', 'split_checkpoint', 'summarise', 'to_safetensors',
           'unpack_state', 'versions', 'width_bytes']
