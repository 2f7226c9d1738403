"""One method a file; importing this room registers them."""

from mmbitsplit.calibration.methods.aciq import ACIQ, ACIQMix
from mmbitsplit.calibration.methods.base import (
    METHODS,
    Method,
    build_method,
    check_data_free,
    read_request,
    register_method,
)
from mmbitsplit.calibration.methods.bitsplit import BitSplit
from mmbitsplit.calibration.methods.error_feedback import ErrorFeedback
from mmbitsplit.calibration.methods.kl_divergence import KLDivergence
from mmbitsplit.calibration.methods.lapq import LAPQ
from mmbitsplit.calibration.methods.mse import MSE
from mmbitsplit.calibration.methods.published_bitsplit import PublishedBitSplit
from mmbitsplit.calibration.methods.round_to_nearest import RoundToNearest

__all__ = ['ACIQ', 'LAPQ', 'METHODS', 'MSE', 'ACIQMix', 'BitSplit', 'ErrorFeedback', 'KLDivergence',
           'Method', 'PublishedBitSplit', 'RoundToNearest', 'build_method',
           'check_data_free', 'read_request', 'register_method']
