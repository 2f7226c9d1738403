"""mmengine glue: importing this room registers the hook and the model wrapper."""

from mmbitsplit.compat.torchvision_ops import declare_missing_torchvision_ops

declare_missing_torchvision_ops()  # before mmpretrain imports torchvision

from mmbitsplit.engine.mmpretrain_multimodal import leave_out_multimodal_models  # noqa: E402

leave_out_multimodal_models()  # before mmpretrain imports its models

from mmbitsplit.engine.files.safetensors_loader import register_safetensors  # noqa: E402
from mmbitsplit.engine.hooks import QuantizationHook  # noqa: E402
from mmbitsplit.engine.quantization_runner import QuantizationRunner  # noqa: E402
from mmbitsplit.engine.run.model_wrapper import QuantizedModel  # noqa: E402

register_safetensors()

__all__ = ['QuantizationHook', 'QuantizationRunner', 'QuantizedModel']
