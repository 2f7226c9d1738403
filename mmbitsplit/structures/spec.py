"""What the user asks for: bits, modes, method, calibration. One definition of every option."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mmbitsplit.structures.given_plan import PlanSpec
from mmbitsplit.structures.options import Options, Range, check_value, from_mapping
from mmbitsplit.structures.products import ProductSpec
from mmbitsplit.structures.widths import Bits, BudgetSpec

WeightSearch = Literal['mse', 'minmax']
REDUCED_BITS = 7
# Placements that quantize what a skip connection carries, and those that stand for a paper and so
# say what first and last layers get.
RESIDUAL_PLACEMENTS = ('residual', 'qdrop', 'brecq')
PAPER_PLACEMENTS = ('calibtip', 'qdrop', 'brecq')


def check_bits(name: str, num_bits: Any) -> None:
    """Raises ``ValueError`` unless ``num_bits`` is an integer from 2 to 8."""
    check_value(name, num_bits, Bits)


@dataclass(frozen=True)
class WeightSpec(Options):
    """Weights: symmetric, one scale an output channel, integer codes in a narrow range.

    Args:
        num_bits: Width of a code.
        scale_search: How plain rounding finds its scale.
        reduce_range: Whether layers that get 8 bits and quantized inputs have 7 instead. Runtimes
            on x86 processors without VNNI add products in pairs of 16 bits, where 8-bit weights
            saturate. ``'auto'``: the first and last layers with
            ``activation.placement='deploy'``, unless the other layers have 8 bits too.
    """

    num_bits: Bits = 4
    scale_search: WeightSearch = 'mse'
    reduce_range: bool | Literal['auto'] = 'auto'


@dataclass(frozen=True)
class ActivationSpec(Options):
    """Layer inputs: affine quantization with one scale a tensor or a channel.

    Args:
        num_bits: Width of a code; ``None`` leaves the inputs in float.
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
            layers with float inputs are left out. ``'residual'`` also quantizes, with one scale a
            tensor, what a layer and something else (an addition) read, so that skip connections
            carry what the layer gets. The others are conventions of papers, to compare with: see
            ``docs/methods.md``. ``'qdrop'``: as ``'residual'``; ``'brecq'``: also 8 bits for what
            the first layer gives; ``'calibtip'``: as ``'inputs'``, and the image in 8 bits. All
            three have 8 bits in first and last layers.
        output_bits: Width of those outputs' codes.
        norm: p of ``scale_search='lp'``.
        bit_allocation: ``'aciq'`` gives each channel a width of its own, from 2 to 8 bits and
            ``num_bits`` on average, where ``mode`` gives it a scale of its own
            (``'per_channel'``); in other modes all channels keep ``num_bits``.
    """

    num_bits: Bits | None = 8
    mode: Literal['per_tensor', 'per_channel', 'ecaq'] = 'ecaq'
    symmetry: Literal['auto', 'unsigned', 'signed', 'asymmetric'] = 'auto'
    scale_search: Literal['auto', 'mse', 'minmax', 'kl', 'aciq_gauss', 'aciq_laplace',
                          'lp'] = 'auto'
    strength: Literal['auto'] | Annotated[float, Range(0, 1)] = 'auto'
    placement: Literal['inputs', 'deploy', 'residual', 'calibtip', 'qdrop',
                       'brecq'] = 'inputs'
    # Not num_bits: fewer than 8 save nothing in a runtime and cost accuracy before additions
    # (CIFAR ResNet-20, three seeds: W4A4 80.6 % with 8, 79.6 % with 4; W3A3 79.1 % and 76.0 %).
    output_bits: Bits = 8
    norm: Annotated[float, Range(1)] = 3.0
    bit_allocation: Literal['uniform', 'aciq'] = 'uniform'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement == 'deploy' and self.mode == 'per_channel':
            raise ValueError("placement='deploy' is not supported with mode='per_channel', which "
                             "no runtime computes in integers; use mode='ecaq' or 'per_tensor', "
                             "or placement='inputs'.")
        if self.scale_search == 'kl' and self.symmetry == 'asymmetric':
            raise ValueError("scale_search='kl' finds one threshold around zero; symmetry must "
                             "be 'auto', 'unsigned' or 'signed', not 'asymmetric'.")


@dataclass(frozen=True)
class FirstLastSpec(Options):
    """The layers fed by the image alone and those that make the model's raw outputs.

    Args:
        weight_bits: Width of their weight codes; ``None`` treats them like all others.
        activation_bits: Width of their inputs' codes (the image itself stays float);
            ``None`` leaves the inputs in float.
    """

    weight_bits: Bits | None = 8
    activation_bits: Bits | None = 8


@dataclass(frozen=True)
class CalibrationSpec(Options):
    """Which images are shown to the model, and how much of each layer is looked at.

    Args:
        num_images: Number of calibration images. 0 chooses codes from the weights alone: no input
            may be quantized then, and the method must be one that looks at no image.
        seed: Chooses the images and the sampled positions.
        batch_size: Images of one forward; detectors take images of different shapes, hence 1.
        rows_per_layer: Sampled output positions of a layer over all images.
        sampling: How positions are drawn: ``'even'``, ``'importance'`` (70 % by the squared
            gradients of the model's raw outputs, no labels; each image runs once more, forward and
            three times backward) or ``'confidence'`` (by those of the raw outputs where the model
            sees something: of a dense detector, each place counts as the surest score there).
            Sensitivities are measured on positions drawn evenly.
        holdout: Part of them that no solver sees; the guard judges on it. 0 turns it off.
        memory_budget: Most memory that calibration may add, GB (10^9 bytes); ``None`` for 80 %
            of what is available. More is refused before anything is computed.
        unreached: What becomes of layers that no calibration image reaches: ``'error'`` names
            them, as others may need other images (a mask branch those with detections);
            ``'float'`` leaves them in float and says so in the report, for layers that only
            training calls.
        row_mask: Of batches that are dicts, the entry (sentences, tokens) that is 0 for tokens
            which only fill a sentence up: layers on (sentences, tokens, channels) are fitted to the
            others. ``None`` looks for none.
        dataloader: An mmengine dataloader config of its own; ``None`` takes the training set
            with the test pipeline. ``quantize_model`` is given its batches instead.
    """

    num_images: Annotated[int, Range(0)] = 32
    seed: Annotated[int, Range(0)] = 0
    batch_size: Annotated[int, Range(1)] = 1
    rows_per_layer: Annotated[int, Range(64)] = 16384
    sampling: Literal['even', 'importance', 'confidence'] = 'even'
    holdout: Annotated[float, Range(0, 0.5)] = 0.125
    memory_budget: Annotated[float, Range(0, math.inf, above=True)] | None = None
    unreached: Literal['error', 'float'] = 'error'
    row_mask: str | None = 'attention_mask'
    dataloader: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class OverrideSpec(Options):
    """Other settings for the layers whose name matches a shell pattern; later ones win.

    Products of activations are named like layers; what an override says of weights is nothing to
    them.

    Args:
        match: Shell pattern on the layer's dotted name, such as ``'backbone.layer1.*'``.
        skip: ``True`` leaves the layer in float.
        weight: Keys of ``quantization.weight`` to replace.
        activation: Keys of ``quantization.activation`` to replace.
        unit: ``'layer'`` makes each of the layers a reconstruction unit of its own; ``'module'``
            makes one unit of each module whose name matches (the outermost where several in each
            other do), however many layers it holds. ``None`` leaves it to the model's structure.
    """

    match: str
    skip: bool = False
    weight: Mapping[str, Any] = field(default_factory=dict)
    activation: Mapping[str, Any] = field(default_factory=dict)
    unit: Literal['layer', 'module'] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit == 'module' and (self.skip or self.weight or self.activation):
            raise ValueError("unit='module' is not supported together with skip, weight or "
                             'activation: match names modules with it and layers with those. '
                             'Give them in overrides of their own.')


@dataclass(frozen=True)
class QuantSpec(Options):
    """The whole request, as the ``quantization`` dict of a config gives it.

    Args:
        weight, activation: Settings of all layers but the first and last.
        first_last: Settings of those.
        method: ``type`` names a method, the other keys are that method's own.
        calibration: Images, seed, sampling.
        overrides: Exceptions by name pattern.
        scope: ``'all'``, or top-level children joined by ``+`` such as ``'backbone+neck'``.
        plan: A plan, as ``plan.json`` has it: widths layer by layer, which win over everything
            above. Also the path of such a file, from where the command is started.
        tuning: Stages that change the whole model once all layers are solved, one after the
            other: a dict with ``type`` and the stage's own keys, or a list of such.
        pipeline: A paper's whole procedure by name, which gives ``method`` and ``tuning``:
            ``'CalibTIPLight'`` or ``'CalibTIPAdvanced'``; or a dict with the name as ``type`` and
            another ``method`` (or options of its own) or ``tuning``.
        budget: Within which widths are chosen layer by layer; ``weight.num_bits`` is not used.
        products: Of products of two activations, such as attention's; ``None`` leaves them float.
        evaluate_widths: Whether ``mmbitsplit quantize`` evaluates a model of several widths at each
            of them, too: an evaluation more a width.
    """

    weight: WeightSpec = field(default_factory=WeightSpec)
    activation: ActivationSpec = field(default_factory=ActivationSpec)
    first_last: FirstLastSpec = field(default_factory=FirstLastSpec)
    method: Mapping[str, Any] = field(default_factory=lambda: {'type': 'BitSplit'})
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    overrides: tuple[OverrideSpec, ...] = ()
    scope: str = 'all'
    plan: PlanSpec | None = None
    tuning: Mapping[str, Any] | tuple[Mapping[str, Any], ...] = ()
    pipeline: str | Mapping[str, Any] | None = None
    budget: BudgetSpec | None = None
    products: ProductSpec | None = field(default_factory=ProductSpec)
    evaluate_widths: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, 'tuning', (self.tuning,) if isinstance(self.tuning, Mapping)
                           else tuple(self.tuning))
        if not isinstance(self.method.get('type'), str):
            raise ValueError(f"method={self.method!r} is not a dict with a 'type', such as "
                             "dict(type='BitSplit').")
        placement = self.activation.placement
        if placement == 'deploy' and self.activation.num_bits is None:
            raise ValueError("activation.placement='deploy' is not supported with "
                             'activation.num_bits=None: without quantized inputs no layer runs in '
                             "integers. Give num_bits (2 to 8), or placement='inputs'.")
        if placement in PAPER_PLACEMENTS and self.first_last != FirstLastSpec():
            raise ValueError(f"activation.placement='{placement}' stands for a paper's first and "
                             f'last layers, which have 8 bits, and first_last={self.first_last} '
                             "is another rule. Leave first_last out, or take placement='inputs' "
                             "or 'residual'.")
        if self.budget is not None and self.plan is not None:
            raise ValueError('budget is not supported together with plan, which gives the widths '
                             'already. Leave one out; widths of some layers can be fixed by '
                             'overrides.')
        for index, override in enumerate(self.overrides):
            where = f'quantization.overrides[{index}]'
            merge(self.weight, override.weight, f'{where}.weight')
            merge(self.activation, override.activation, f'{where}.activation')
        for row in self.plan.rows.values() if self.plan is not None else ():
            where = f"quantization.plan, layer '{row.name}'"
            merge(self.weight, row.weight, f'{where}, weight')
            merge(self.activation, row.activation, f'{where}, activation')

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> 'QuantSpec':
        """Reads the ``quantization`` dict of a config; see ``from_mapping`` for its errors."""
        return from_mapping(cls, mapping, 'quantization')

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain dicts for JSON.

        ``plan``, ``tuning``, ``pipeline`` and ``budget`` are there where the request has them,
        ``products`` and ``evaluate_widths`` where they are others than the default.
        """
        values = dataclasses.asdict(self)
        # As files of before these have it, which journals are compared with.
        if self.plan is None:
            del values['plan']
        else:
            for part in ('streams', 'products'):
                if not getattr(self.plan, part):
                    del values['plan'][part]
        if self.products == ProductSpec():
            del values['products']
        if self.calibration.row_mask == CalibrationSpec().row_mask:
            del values['calibration']['row_mask']
        if not self.tuning:
            del values['tuning']
        if self.pipeline is None:
            del values['pipeline']
        if self.budget is None:
            del values['budget']
        if not self.evaluate_widths:
            del values['evaluate_widths']
        return values


def merge(options: Any, changes: Mapping[str, Any], where: str) -> Any:
    """Returns ``options`` with ``changes`` applied; same type, same checks."""
    return from_mapping(type(options), {**vars(options), **changes}, where)
