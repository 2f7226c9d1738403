"""Whether this processor multiplies bytes without saturating, and what is said where not."""

import os
import platform
from collections.abc import Sequence
from functools import cache

WITHOUT_VNNI = ('SSE41', 'AVX', 'AVX2', 'AVX512_CORE')  # values of ONEDNN_MAX_CPU_ISA
NAMES_TOLD = 5


class SaturationWarning(UserWarning):
    """Some layers of an exported file come out wrong on processors without VNNI."""


@cache
def processor_features() -> dict[str, bool]:
    """Features of this processor by LLVM's names, such as ``'avx512vnni'``."""
    from llvmlite import binding
    return dict(binding.get_host_cpu_features())


def saturates(runtime: str) -> bool:
    """Whether a runtime adds pairs of products in 16 bits on this processor.

    So on x86 without VNNI. OpenVINO can be told by ONEDNN_MAX_CPU_ISA not to use it.

    Args:
        runtime: ``'onnxruntime'`` or ``'openvino'``.
    """
    if platform.machine().lower() not in ('x86_64', 'amd64', 'i386', 'i686', 'x86'):
        return False
    features = processor_features()
    large, small = (features.get(name, False) for name in ('avx512vnni', 'avxvnni'))
    if runtime == 'openvino':
        hidden = (os.environ.get('ONEDNN_MAX_CPU_ISA') or '').upper()
        if hidden in WITHOUT_VNNI:
            return True
        if hidden.startswith('AVX2_VNNI'):
            return not small
    return not (large or small)


def saturation_warning(layers: Sequence[str], *, here: bool) -> str:
    """What a user is told of layers that may saturate.

    Args:
        layers: Their names.
        here: Whether this processor saturates, else some other one may.
    """
    names = ', '.join(layers[:NAMES_TOLD])
    if len(layers) > NAMES_TOLD:
        names += f' and {len(layers) - NAMES_TOLD} more'
    which = 'This processor has no VNNI' if here else 'On x86 processors without VNNI'
    effect = ': sums of two products saturate' if here else ' sums of two products saturate'
    return (f'{which}{effect} at 16 bits, and layers with 8-bit weights come out wrong there '
            f'({names}). Quantize with quantization.weight.reduce_range=True, or give onnxruntime '
            "the session option 'session.x64quantprecision' = '1'; see docs/deploy.md.")
