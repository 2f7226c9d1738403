"""A product of two activations as a GPU multiplies it by bytes, all matrices at once."""

from torch import Tensor

from mmbitsplit.models.layers.gpu_support import Kernels, choose_kernels, kernels_named
from mmbitsplit.models.layers.gpu_weight import byte_rounding
from mmbitsplit.models.layers.integer_product import IntegerProduct
from mmbitsplit.models.layers.quantizers import ActivationQuantizer
from mmbitsplit.structures import QParams


class GpuProduct(IntegerProduct):
    """``IntegerProduct`` on a CUDA device, for matrices of any size.

    Where one of the inputs of a call is not a number, all outputs of the call are none.

    Args:
        a, b: Quantizers of the inputs.
        kernels: Whose; what the device has when not given.
    """

    least = 0

    def __init__(self, a: ActivationQuantizer, b: ActivationQuantizer,
                 kernels: Kernels | None = None):
        super().__init__(a, b)
        self.kernels = choose_kernels(a.scale.device)[0] if kernels is None else kernels

    def _prepare(self, a: QParams, b: QParams) -> None:
        self._a, self._b = byte_rounding(a, 'head'), byte_rounding(b, 'head')

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        kernels = kernels_named(self.kernels)
        left, missing = kernels.round_bytes(a.detach(), self._a)
        right, missing_too = kernels.round_bytes(b.detach().transpose(2, 3), self._b)
        return kernels.multiply_pairs(left, right, missing + missing_too,
                                      (self._a.shift, self._b.shift), self._factor, a.shape[3])
