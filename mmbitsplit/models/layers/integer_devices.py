"""What multiplies bytes for a layer or a product where it is: oneDNN on CPUs, kernels on GPUs."""

import torch
from torch import Tensor, nn

from mmbitsplit.models.layers.gpu_product import GpuProduct
from mmbitsplit.models.layers.gpu_support import why_no_gpu_integers
from mmbitsplit.models.layers.gpu_weight import GpuWeight, why_float_on_gpu
from mmbitsplit.models.layers.integer_product import IntegerProduct, why_float_product
from mmbitsplit.models.layers.integer_support import why_no_integers, why_no_products
from mmbitsplit.models.layers.integer_weight import IntegerWeight, why_no_bytes
from mmbitsplit.models.layers.quantizers import ActivationQuantizer, WeightQuantizer
from mmbitsplit.structures import LayerGeometry, QParams


def why_no_integers_on(device: torch.device) -> str | None:
    """Why a device has no product of bytes, ``None`` where it has one."""
    if device.type == 'cpu':
        return why_no_integers()
    return why_no_gpu_integers(device) if device.type == 'cuda' else \
        f'there are integers on CPUs and CUDA devices, not on {device}'


def why_float_there(geometry: LayerGeometry, codes: Tensor, qparams: QParams) -> str | None:
    """Why a layer cannot be computed with integers at a width, ``None`` where it can.

    Args:
        geometry: Of the layer, for which ``why_never`` has no reason.
        codes: int8, of the weight in use.
        qparams: Of the input in use.
    """
    if codes.device.type != 'cpu':
        return why_no_integers_on(codes.device) or why_float_on_gpu(geometry, qparams)
    return why_no_bytes(geometry, qparams)


def integer_weight(quantizer: WeightQuantizer, inputs: ActivationQuantizer,
                   factor: float = 1.0) -> IntegerWeight:
    """``IntegerWeight`` on the device of the quantizer."""
    made = IntegerWeight if quantizer.scale.device.type == 'cpu' else GpuWeight
    return made(quantizer, inputs, factor)


def why_float_product_there(a: nn.Module | None, b: nn.Module | None) -> str | None:
    """``why_float_product`` on the device of both quantizers."""
    reason = why_float_product(a, b)
    if reason is not None:
        return reason
    device = a.scale.device
    return why_no_products() if device.type == 'cpu' else why_no_integers_on(device)


def byte_product(a: ActivationQuantizer, b: ActivationQuantizer) -> IntegerProduct:
    """``IntegerProduct`` on the device of both quantizers."""
    made = IntegerProduct if a.scale.device.type == 'cpu' else GpuProduct
    return made(a, b)
