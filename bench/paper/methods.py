"""The rows of the tables: every quantizer of the bench as config dicts, one label each.

Rows of methods that learn say their steps. ``'qdrop@2000'`` is the row ``'qdrop'`` with fewer, all
its stages in proportion, under a label that says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmbitsplit.calibration import build_method, read_request
from mmbitsplit.spelling import nearest


@dataclass(frozen=True)
class MethodRow:
    """One quantizer: how it chooses weight codes and activation scales.

    Args:
        label: What tables and plots call it.
        method: ``quantization.method``.
        activation: Keys of ``quantization.activation``; ``num_bits`` only where the row has its
            own, whatever the table says.
        weight: Keys of ``quantization.weight`` besides ``num_bits``.
        paper: What the paper's tables call the same set-up; ``None`` where it is not in them.
        steps: Of a method that learns, the options that are numbers of steps, as published; the
            first is what ``--iterations`` sets.
    """

    label: str
    method: Mapping[str, Any]
    activation: Mapping[str, Any] = field(default_factory=dict)
    weight: Mapping[str, Any] = field(default_factory=dict)
    paper: str | None = None
    steps: Mapping[str, int] = field(default_factory=dict)

    @property
    def looks_at_images(self) -> bool:
        """Whether weight codes depend on calibration images; else seeds repeat the same ones."""
        return build_method(self.method).looks_at_images


    @property
    def title(self) -> str:
        """The label with the steps of a method that learns."""
        return self.label + (f', {sum(self.steps.values())} steps' if self.steps else '')

    def with_steps(self, iterations: int) -> 'MethodRow':
        """The same with other steps, those of further stages in proportion."""
        first = next(iter(self.steps.values()))
        steps = {name: max(1, round(count * iterations / first))
                 for name, count in self.steps.items()}
        return replace(self, steps=steps, method={**self.method, **steps})


PER_TENSOR = {'mode': 'per_tensor', 'scale_search': 'mse'}
PER_CHANNEL = {'mode': 'per_channel', 'scale_search': 'mse'}
ECAQ_PAPER = {'mode': 'ecaq', 'scale_search': 'mse', 'strength': 1.0}
ECAQ_DEFAULT = {'mode': 'ecaq', 'scale_search': 'auto', 'strength': 'auto'}
AS_PUBLISHED = {'type': 'PublishedBitSplit'}
DEFAULT = 'bitsplit'
FAST = {'type': 'BitSplit', 'effort': 'fast'}
BRECQ_STEPS = {'iterations': 20000, 'input_iterations': 5000}
QDROP_STEPS = {'iterations': 20000}

METHOD_ROWS = {
    'tflite': MethodRow(
        'TF-Lite min/max', {'type': 'RoundToNearest', 'scale_search': 'minmax'},
        {'mode': 'per_tensor', 'scale_search': 'minmax', 'symmetry': 'asymmetric'},
        {'scale_search': 'minmax'}, 'TF-Lite'),
    'mse': MethodRow('MSE rounding', {'type': 'MSE'}, PER_TENSOR),
    'tensorrt': MethodRow('TensorRT entropy', {'type': 'KLDivergence'},
                          {'mode': 'per_tensor', 'scale_search': 'kl'}, {'scale_search': 'minmax'},
                          'TensorRT'),
    'aciq': MethodRow('ACIQ', {'type': 'ACIQ'},
                      {'mode': 'per_channel', 'scale_search': 'aciq_laplace'},
                      {'scale_search': 'minmax'}, 'ACIQ'),
    'aciq_mix': MethodRow('ACIQ-Mix', {'type': 'ACIQMix'},
                          {'mode': 'per_channel', 'scale_search': 'aciq_laplace',
                           'bit_allocation': 'aciq'},
                          {'scale_search': 'minmax'}, 'ACIQ-Mix'),
    # The norm it starts from is the method's own first one.
    'lapq': MethodRow('LAPQ', {'type': 'LAPQ'}, {'mode': 'per_tensor', 'scale_search': 'lp'},
                      paper='LAPQ'),
    # Learned, with the scales that each method stands for.
    'adaround': MethodRow('AdaRound', {'type': 'AdaRound'}, PER_TENSOR,
                          steps={'iterations': 10000}),
    'adaquant': MethodRow('AdaQuant', {'type': 'AdaQuant'}, steps={'iterations': 1000}),
    'brecq': MethodRow('BRECQ', {'type': 'BRECQ'}, steps=BRECQ_STEPS),
    'qdrop': MethodRow('QDrop', {'type': 'QDrop'}, steps=QDROP_STEPS),
    # With quantizers where the papers have them; the default beside them.
    'adaquant_placed': MethodRow('AdaQuant, placed as published', {'type': 'AdaQuant'},
                                 {'placement': 'calibtip'}, steps={'iterations': 1000}),
    'brecq_placed': MethodRow('BRECQ, placed as published', {'type': 'BRECQ'},
                              {'placement': 'brecq'}, steps=BRECQ_STEPS),
    'qdrop_placed': MethodRow('QDrop, placed as published', {'type': 'QDrop'},
                              {'placement': 'qdrop'}, steps=QDROP_STEPS),
    'error_feedback': MethodRow('Error feedback (GPTQ)', {'type': 'ErrorFeedback'}, PER_TENSOR),
    'bitsplit_published': MethodRow('Bit-split as published', AS_PUBLISHED, ECAQ_PAPER,
                                    paper='Bit-split'),
    'bitsplit_published_a8': MethodRow('Bit-split as published, A8', AS_PUBLISHED,
                                       {**PER_TENSOR, 'num_bits': 8}, paper='Bit-split (A8)'),
    'bitsplit_published_per_channel': MethodRow(
        'Bit-split as published, per channel', AS_PUBLISHED, PER_CHANNEL,
        paper='Bit-split-per-channel'),
    # Table 2: one solver, three ways to quantize the inputs.
    'per_tensor': MethodRow('Per-layer', AS_PUBLISHED, PER_TENSOR, paper='Per-layer'),
    'per_channel': MethodRow('Per-channel', AS_PUBLISHED, PER_CHANNEL, paper='Per-channel'),
    'ecaq': MethodRow('ECAQ', AS_PUBLISHED, ECAQ_PAPER, paper='ECAQ'),
    DEFAULT: MethodRow('mmbitsplit default', {'type': 'BitSplit'}, ECAQ_DEFAULT),
    'bitsplit_fast': MethodRow('mmbitsplit, solver alone', FAST, ECAQ_DEFAULT),
    'bitsplit_per_channel': MethodRow('mmbitsplit default, per channel', {'type': 'BitSplit'},
                                      {**PER_CHANNEL, 'scale_search': 'auto'}),
    'bitsplit_deploy': MethodRow('mmbitsplit default, deploy', {'type': 'BitSplit'},
                                 {**ECAQ_DEFAULT, 'placement': 'deploy'}),
    'bitsplit_placed': MethodRow('mmbitsplit default, placed as QDrop', {'type': 'BitSplit'},
                                 {**ECAQ_DEFAULT, 'placement': 'qdrop'}),
}


def method_row(name: str) -> MethodRow:
    """Returns a row by name, ``NAME@STEPS`` with other steps than published.

    Raises:
        ValueError: There is none of that name, names the nearest; or it takes no steps.
    """
    known, _, steps = name.partition('@')
    if known not in METHOD_ROWS:
        raise ValueError(f"method '{known}' is not known; {nearest(known, METHOD_ROWS)}.")
    row = METHOD_ROWS[known]
    if known == name:
        return row
    if not row.steps or not steps.isdigit() or not int(steps):
        learn = ', '.join(name for name, row in METHOD_ROWS.items() if row.steps)
        raise ValueError(f"method '{name}': only methods that learn take steps, a number from 1 "
                         f'after the @; these are {learn}.')
    return row.with_steps(int(steps))


def at_iterations(name: str, iterations: int | None) -> str:
    """The name of a row with other steps, where it takes any and says none itself."""
    takes = iterations is not None and '@' not in name and method_row(name).steps
    return f'{name}@{iterations}' if takes else name


def check_rows(names: Iterable[str]) -> None:
    """Checks that every row can be run by this version, before anything is computed.

    Raises:
        ValueError: A name is unknown, its method is not registered, or it has options that
            the method or the activation spec does not take.
    """
    for name in names:
        row = method_row(name)
        try:
            read_request({'method': row.method, 'activation': row.activation,
                          'weight': row.weight})
        except ValueError as error:
            raise ValueError(f"method '{name}' cannot be run by this version: {error}") from error
