"""Files of quantized models; torch alone is needed to read and write them."""

from mmbitsplit.export.packed_checkpoint import (
    FORMAT,
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

__all__ = ['FORMAT', 'HEADER_KEY', 'PAYLOAD_KEY', 'PLAN_KEY', 'PackedCheckpoint', 'check_fit',
           'pack_checkpoint', 'read_checkpoint', 'summarise', 'unpack_state']
