"""Which kernels multiply bytes on a GPU: Triton's, or torch's own where there is no Triton."""

import importlib
import importlib.util
import warnings
from functools import cache
from types import ModuleType
from typing import Literal

import torch

from mmbitsplit.functional.kernels import byte_products
from mmbitsplit.functional.kernels.byte_products import Rounding, Scaling, Windows

Kernels = Literal['triton', 'torch']
_MODULES = {'triton': 'mmbitsplit.functional.kernels.triton_products',
            'torch': 'mmbitsplit.functional.kernels.byte_products'}
_INSTALL = 'Triton is not installed: pip install triton'


def kernels_named(name: Kernels) -> ModuleType:
    """The module that has ``round_bytes``, ``multiply`` and ``multiply_pairs``; Triton is imported
    here."""
    return importlib.import_module(_MODULES[name])


@cache
def choose_kernels(device: torch.device) -> tuple[Kernels | None, str | None]:
    """Which kernels a CUDA device has, and else why it has none.

    They are tried, whatever the device says of itself. Where torch's own stand in for Triton's, a
    warning says so, and why.
    """
    why = _INSTALL if importlib.util.find_spec('triton') is None else _why_not('triton', device)
    if why is None:
        return 'triton', None
    why_torch = _why_not('torch', device)
    if why_torch is not None:
        return None, f'{why}; {why_torch}'
    warnings.warn(f'mmbitsplit: integers on {device} by torch._int_mm on unfolded inputs, which '
                  f'takes more time and memory. {why}.', stacklevel=2)
    return 'torch', None


def why_no_gpu_integers(device: torch.device) -> str | None:
    """Why a CUDA device has no product of bytes, ``None`` where it has one that is exact."""
    return choose_kernels(device)[1]


def _why_not(name: Kernels, device: torch.device) -> str | None:
    """Tries a convolution of the largest bytes; why the kernels cannot be taken."""
    try:
        exact = _exact(name, device)
    # Whatever a compiler finds: it is said, and not gone on with.
    except Exception as error:
        lines = str(error).strip().splitlines() or ['']
        return f'{name} does not multiply bytes on {device}: {type(error).__name__}: {lines[0]}'
    return None if exact else f'{name} gives wrong products of bytes on {device}'


def _exact(name: Kernels, device: torch.device) -> bool:
    kernels = kernels_named(name)
    generator = torch.Generator().manual_seed(0)
    for four_bits in (False, True):
        largest = 8 if four_bits else 128
        codes = torch.randint(-largest, largest, (40, 9, 64), generator=generator,
                              dtype=torch.int8)
        codes[::2] = -largest
        x = 400 * torch.rand(2, 7, 6, 64, generator=generator, dtype=torch.float32) - 50
        rounding = [torch.tensor([value], dtype=torch.float32) for value in (1.0, 0.0, 255.0)]
        shift = torch.tensor([-128], dtype=torch.int32)
        correction = (codes.to(torch.int32).sum((1, 2)) * 128).to(torch.int32)
        found = []
        for module, place in ((kernels, device), (byte_products, torch.device('cpu'))):
            weight = byte_products.pack_weight(codes.to(place), four_bits)
            bytes_, missing = module.round_bytes(x.to(place), Rounding(
                *(value.to(place) for value in (*rounding, shift))), (1, 1), weight.padded)
            found.append(module.multiply(weight, bytes_, missing, Windows((3, 3), (2, 1)), Scaling(
                torch.ones(40, device=place, dtype=torch.float32), correction.to(place))).cpu())
        if not torch.equal(*found):
            return False
    return True
