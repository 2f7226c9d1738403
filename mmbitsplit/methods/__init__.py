"""One method a file; importing this room registers them."""

from mmbitsplit.methods.aciq import ACIQ, ACIQMix
from mmbitsplit.methods.adaquant import AdaQuant
from mmbitsplit.methods.adaround import AdaRound
from mmbitsplit.methods.base import (
    METHODS,
    Method,
    build_method,
    check_data_free,
    read_request,
    register_method,
)
from mmbitsplit.methods.bitsplit import BitSplit
from mmbitsplit.methods.brecq import BRECQ
from mmbitsplit.methods.error_feedback import ErrorFeedback
from mmbitsplit.methods.kl_divergence import KLDivergence
from mmbitsplit.methods.lapq import LAPQ
from mmbitsplit.methods.mse import MSE
from mmbitsplit.methods.nested_bitsplit import NestedBitSplit
from mmbitsplit.methods.pipelines import PIPELINES, check_pipeline
from mmbitsplit.methods.ptmq import PTMQ
from mmbitsplit.methods.published_bitsplit import PublishedBitSplit
from mmbitsplit.methods.qdrop import QDrop
from mmbitsplit.methods.round_to_nearest import RoundToNearest

__all__ = ['ACIQ', 'BRECQ', 'LAPQ', 'METHODS', 'MSE', 'PIPELINES', 'PTMQ', 'ACIQMix',
           'AdaQuant', 'AdaRound', 'BitSplit', 'ErrorFeedback', 'KLDivergence', 'Method',
           'NestedBitSplit', 'PublishedBitSplit', 'QDrop', 'RoundToNearest', 'build_method',
           'check_data_free', 'check_pipeline', 'read_request', 'register_method']
