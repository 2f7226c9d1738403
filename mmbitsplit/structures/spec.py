"""What the user asks for: bits, modes, method, calibration. One definition of every option."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from mmbitsplit.structures.options import check_choice, from_mapping

MIN_BITS, MAX_BITS = 2, 8
SCALE_SEARCHES = ('mse', 'minmax')
ACTIVATION_SEARCHES = ('auto', 'mse', 'minmax', 'kl', 'aciq_gauss', 'aciq_laplace', 'lp')
BIT_ALLOCATIONS = ('uniform', 'aciq')
ACTIVATION_MODES = ('per_tensor', 'per_channel', 'ecaq')
PLACEMENTS = ('inputs', 'deploy')
SYMMETRIES = ('auto', 'unsigned', 'signed', 'asymmetric')
REDUCED_BITS = 7


def check_bits(name: str, num_bits: Any) -> None:
    """Raises ``ValueError`` unless ``num_bits`` is an integer from 2 to 8."""
    if isinstance(num_bits, bool) or not isinstance(num_bits, int) \
            or not MIN_BITS <= num_bits <= MAX_BITS:
        raise ValueError(f'{name}={num_bits!r} is not supported; allowed are the integers '
                         f'{MIN_BITS} to {MAX_BITS}.')


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class WeightSpec:
    """Weights: symmetric, one scale an output channel, integer codes in a narrow range.

    Args:
        num_bits: Width of a code, 2 to 8.
        scale_search: How plain rounding finds its scale: ``'mse'`` or ``'minmax'``.
        reduce_range: Whether layers that get 8 bits and quantized inputs have 7 instead. Runtimes
            on x86 processors without VNNI add products in pairs of 16 bits, where 8-bit weights
            saturate. ``True`` or ``False``; ``'auto'``: the first and last layers with
            ``activation.placement='deploy'``, unless the other layers have 8 bits too.
    """

    num_bits: int = 4
    scale_search: str = 'mse'
    reduce_range: bool | str = 'auto'

    def __post_init__(self) -> None:
        check_bits('num_bits', self.num_bits)
        check_choice('scale_search', self.scale_search, SCALE_SEARCHES)
        if not isinstance(self.reduce_range, bool) and self.reduce_range != 'auto':
            raise ValueError(f"reduce_range={self.reduce_range!r} is not supported; allowed are "
                             "True, False and 'auto'.")


@dataclass(frozen=True)
class ActivationSpec:
    """Layer inputs: affine quantization with one scale a tensor or a channel.

    Args:
        num_bits: Width of a code, 2 to 8; ``None`` leaves the inputs in float.
        mode: ``'per_tensor'``; ``'per_channel'`` (not one integer product, for comparison);
            ``'ecaq'``: one scale a channel, moved into the weights (paper, section 3.2), and
            where codes are asymmetric one zero point a channel, moved into the bias.
        symmetry: ``'unsigned'``, ``'signed'``, ``'asymmetric'``, or ``'auto'``: unsigned where
            no negative value was seen, else signed or asymmetric, whichever has less error.
        scale_search: ``'auto'`` chooses per layer between the next two, by what rounding the
            inputs does to the layer's output; ``'mse'`` (paper, Eq. 11), ``'minmax'``, ``'kl'``
            (TensorRT's entropy), ``'aciq_gauss'`` and ``'aciq_laplace'`` (analytic clipping),
            ``'lp'`` (p-norm).
        strength: How far ECAQ goes from one scale a tensor (0) to one a channel (1);
            ``'auto'`` chooses it per layer on the layer's output error.
        placement: ``'inputs'`` quantizes what enters layers. ``'deploy'`` also quantizes, with
            one scale a tensor, every output that does not reach exactly one quantized layer
            input through at most a ReLU (residual additions, several readers), because
            runtimes run a convolution in integers only between quantizers; raw outputs and
            layers with float inputs are left out.
        output_bits: Width of those outputs' codes, 2 to 8.
        norm: p of ``scale_search='lp'``, at least 1.
        bit_allocation: ``'aciq'`` gives each channel a width of its own, from 2 to 8 bits and
            ``num_bits`` on average, where ``mode`` gives it a scale of its own
            (``'per_channel'``); in other modes all channels keep ``num_bits``.
    """

    num_bits: int | None = 8
    mode: str = 'ecaq'
    symmetry: str = 'auto'
    scale_search: str = 'auto'
    strength: float | str = 'auto'
    placement: str = 'inputs'
    # Not num_bits: fewer than 8 save nothing in a runtime and cost accuracy before additions
    # (CIFAR ResNet-20, three seeds: W4A4 80.6 % with 8, 79.6 % with 4; W3A3 79.1 % and 76.0 %).
    output_bits: int = 8
    norm: float = 3.0
    bit_allocation: str = 'uniform'

    def __post_init__(self) -> None:
        if self.num_bits is not None:
            check_bits('num_bits', self.num_bits)
        check_choice('mode', self.mode, ACTIVATION_MODES)
        check_choice('symmetry', self.symmetry, SYMMETRIES)
        check_choice('scale_search', self.scale_search, ACTIVATION_SEARCHES)
        check_choice('bit_allocation', self.bit_allocation, BIT_ALLOCATIONS)
        check_choice('placement', self.placement, PLACEMENTS)
        check_bits('output_bits', self.output_bits)
        if self.placement == 'deploy' and self.mode == 'per_channel':
            raise ValueError("placement='deploy' is not supported with mode='per_channel', which "
                             "no runtime computes in integers; use mode='ecaq' or 'per_tensor', "
                             "or placement='inputs'.")
        if self.scale_search == 'kl' and self.symmetry == 'asymmetric':
            raise ValueError("scale_search='kl' finds one threshold around zero; symmetry must "
                             "be 'auto', 'unsigned' or 'signed', not 'asymmetric'.")
        if not (_is_number(self.norm) and 1 <= self.norm < math.inf):
            raise ValueError(f'norm={self.norm!r} is not supported; allowed are numbers from 1.')
        if self.strength != 'auto' and not (_is_number(self.strength) and 0 <= self.strength <= 1):
            raise ValueError(f"strength={self.strength!r} is not supported; allowed are 'auto' "
                             'or a number from 0 to 1.')


@dataclass(frozen=True)
class FirstLastSpec:
    """The layers fed by the image alone and those that make the model's raw outputs.

    Args:
        weight_bits: Width of their weight codes; ``None`` treats them like all others.
        activation_bits: Width of their inputs' codes (the image itself stays float);
            ``None`` leaves the inputs in float.
    """

    weight_bits: int | None = 8
    activation_bits: int | None = 8

    def __post_init__(self) -> None:
        for name in ('weight_bits', 'activation_bits'):
            if getattr(self, name) is not None:
                check_bits(name, getattr(self, name))


@dataclass(frozen=True)
class CalibrationSpec:
    """Which images are shown to the model, and how much of each layer is looked at.

    Args:
        num_images: Number of calibration images. 0 chooses codes from the weights alone: no input
            may be quantized then, and the method must be one that looks at no image.
        seed: Chooses the images and the sampled positions.
        batch_size: Images of one forward; detectors take images of different shapes, hence 1.
        rows_per_layer: Sampled output positions of a layer over all images.
        holdout: Part of them that no solver sees; the guard judges on it. 0 turns it off.
        memory_budget: Most memory that calibration may add, GB (10^9 bytes); ``None`` for 80 %
            of what is available. More is refused before anything is computed.
        dataloader: An mmengine dataloader config of its own; ``None`` takes the training set
            with the test pipeline. ``quantize_model`` is given its batches instead.
    """

    num_images: int = 32
    seed: int = 0
    batch_size: int = 1
    rows_per_layer: int = 16384
    holdout: float = 0.125
    memory_budget: float | None = None
    dataloader: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (('num_images', 0), ('batch_size', 1), ('rows_per_layer', 64)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f'{name}={value!r} is not supported; allowed are integers from '
                                 f'{least}.')
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f'seed={self.seed!r} is not supported; allowed are integers from 0.')
        if not _is_number(self.holdout) or not 0 <= self.holdout <= 0.5:
            raise ValueError(f'holdout={self.holdout!r} is not supported; allowed is 0 to 0.5.')
        if self.memory_budget is not None and not (
                _is_number(self.memory_budget) and self.memory_budget > 0):
            raise ValueError(f'memory_budget={self.memory_budget!r} is not supported; allowed are '
                             'None or a positive number of GB.')
        if self.dataloader is not None and not isinstance(self.dataloader, Mapping):
            raise ValueError(f'dataloader={self.dataloader!r} is not supported; allowed are None '
                             'or an mmengine dataloader config, a dict.')


@dataclass(frozen=True)
class OverrideSpec:
    """Other settings for the layers whose name matches a shell pattern; later ones win.

    Args:
        match: Shell pattern on the layer's dotted name, such as ``'backbone.layer1.*'``.
        skip: ``True`` leaves the layer in float.
        weight: Keys of ``quantization.weight`` to replace.
        activation: Keys of ``quantization.activation`` to replace.
    """

    match: str
    skip: bool = False
    weight: Mapping[str, Any] = field(default_factory=dict)
    activation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind, wanted in (
                ('match', str, 'a string'), ('skip', bool, 'True or False'),
                ('weight', Mapping, 'a dict'), ('activation', Mapping, 'a dict')):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f'{name}={getattr(self, name)!r} is not supported; it must be '
                                 f'{wanted}.')


@dataclass(frozen=True)
class QuantSpec:
    """The whole request, as the ``quantization`` dict of a config gives it.

    Args:
        weight, activation: Settings of all layers but the first and last.
        first_last: Settings of those.
        method: ``type`` names a method, the other keys are that method's own.
        calibration: Images, seed, sampling.
        overrides: Exceptions by name pattern.
        scope: ``'all'``, or top-level children joined by ``+`` such as ``'backbone+neck'``.
    """

    weight: WeightSpec = field(default_factory=WeightSpec)
    activation: ActivationSpec = field(default_factory=ActivationSpec)
    first_last: FirstLastSpec = field(default_factory=FirstLastSpec)
    method: Mapping[str, Any] = field(default_factory=lambda: {'type': 'BitSplit'})
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    overrides: tuple[OverrideSpec, ...] = ()
    scope: str = 'all'

    def __post_init__(self) -> None:
        if not isinstance(self.method, Mapping) or 'type' not in self.method:
            raise ValueError(f"method={self.method!r} is not a dict with a 'type', such as "
                             "dict(type='BitSplit').")
        if self.activation.placement == 'deploy' and self.activation.num_bits is None:
            raise ValueError("activation.placement='deploy' is not supported with "
                             'activation.num_bits=None: without quantized inputs no layer runs in '
                             "integers. Give num_bits (2 to 8), or placement='inputs'.")
        if not isinstance(self.scope, str):
            raise ValueError(f"scope={self.scope!r} is not supported; it must be 'all' or names "
                             "joined by '+'.")

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> 'QuantSpec':
        """Reads the ``quantization`` dict of a config; see ``from_mapping`` for its errors."""
        values = dict(mapping)
        parts = {'weight': WeightSpec, 'activation': ActivationSpec,
                 'first_last': FirstLastSpec, 'calibration': CalibrationSpec}
        for name, part in parts.items():
            if name in values:
                values[name] = from_mapping(part, values[name], f'quantization.{name}')
        if 'overrides' in values:
            if not isinstance(values['overrides'], (list, tuple)):
                raise ValueError('quantization.overrides must be a list of dicts, got '
                                 f"{values['overrides']!r}.")
            values['overrides'] = tuple(
                from_mapping(OverrideSpec, item, f'quantization.overrides[{index}]')
                for index, item in enumerate(values['overrides']))
        spec = from_mapping(cls, values, 'quantization')
        for index, override in enumerate(spec.overrides):
            where = f'quantization.overrides[{index}]'
            merge(spec.weight, override.weight, f'{where}.weight')
            merge(spec.activation, override.activation, f'{where}.activation')
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain dicts, ready for JSON."""
        return dataclasses.asdict(self)


def merge(options: Any, changes: Mapping[str, Any], where: str) -> Any:
    """Returns ``options`` with ``changes`` applied; same type, same checks."""
    return from_mapping(type(options), {**vars(options), **changes}, where)
