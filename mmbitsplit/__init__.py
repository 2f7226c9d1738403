"""Post-training quantization for OpenMMLab models, without retraining and without tracing."""

from mmbitsplit.version import __version__

__all__ = ['__version__']
