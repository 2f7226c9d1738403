"""One method a file; importing this room registers them."""

from mmbitsplit.calibration.methods.base import METHODS, Method, build_method, register_method
from mmbitsplit.calibration.methods.bitsplit import BitSplit
from mmbitsplit.calibration.methods.round_to_nearest import RoundToNearest

__all__ = ['METHODS', 'BitSplit', 'Method', 'RoundToNearest', 'build_method', 'register_method']
