"""What a method is, how a config names one, and what naming it stands for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal, get_args

from torch import Tensor

from mmbitsplit.methods.pipelines import PIPELINES, fill_pipeline
from mmbitsplit.methods.solved_model import SolvedModel
from mmbitsplit.methods.tuning import build_stages
from mmbitsplit.spelling import nearest
from mmbitsplit.structures import (
    LayerStatistics,
    Options,
    QuantSpec,
    RowStatistics,
    WeightSolution,
    Widths,
    from_mapping,
    read_plan,
)
from mmbitsplit.structures.given_plan import AS_REQUESTED
from mmbitsplit.structures.solution import Nesting

Granularity = Literal['layer', 'block', 'stage', 'net']
Need = Literal['sums', 'rows', 'unit_io', 'importance', 'model_loss']
NEEDS: tuple[Need, ...] = get_args(Need)


class Method(Options):
    """Chooses the weight codes of a layer, or of all layers of a unit.

    It declares what it needs and what it solves, and is given that and nothing else; what it gives
    are candidates. The driver judges them by their hard error on positions that they were not
    fitted to, and installs the best. Its fields are the options of a config; their annotations say
    what is allowed.

    Attributes:
        needs: Of ``NEEDS``: ``'sums'`` of products over the sampled positions, for ``solve``, and
            for ``solve_rows`` where a layer is too large for them; ``'rows'``, the positions
            themselves, for ``solve_rows`` in every layer; ``'unit_io'``, inputs and outputs of a
            unit, for ``solve_unit``; ``'importance'`` of the channels of a unit's output, beside
            these; ``'model_loss'``, for ``refine``. Codes of a method that needs nothing follow
            from the weight, by ``round``.
        solves: ``'layer'`` or ``'unit'``.
        granularity: Of units: ``'block'`` as ``planning.units`` finds them; ``'layer'``, each
            layer by itself unless an override asks for more; ``'stage'``, blocks that are called
            one after another; ``'net'``, as much as can be.
        merge: How many neighbouring units of several layers are joined; see ``find_units``.
        bias_correction: Fit the bias together with the weights.
        guard: Plain rounding is a candidate, too, and is taken where no other is as good.
        loss, loss_batches: See ``ModelLoss``; where ``needs`` names ``'model_loss'``.
        nesting: How codes of narrower widths are made of the widest's, where there are several;
            ``None`` where each has its own.
        branches: With ``widths``, at how many of them each image runs.
        batch_size: Images of a step of ``solve_unit``, or crops of them: what memory is estimated
            by.
        widths: Of weights, several of which it solves at once for layers that the request gives
            no width of their own; ``()`` for the one that the request says. The widest is the
            layer's ``num_bits``, and ``weight.num_bits`` is not used.
        activation_widths: With ``widths``: those of inputs, ``'tied'`` for as many bits as the
            weights. Left out of a request that writes ``activation.num_bits``, it is that one.
    """

    needs: Sequence[Need] = ('sums',)
    solves: Literal['layer', 'unit'] = 'layer'
    granularity: Granularity = 'block'
    merge: int = 1
    bias_correction: bool = False
    guard: bool = False
    loss: str = 'auto'
    loss_batches: int = 4
    batch_size: int = 32
    widths: Sequence[int] = ()
    activation_widths: Literal['tied'] | Sequence[int] = ()
    nesting: Nesting | None = None
    branches: Literal['auto', 'all'] | int = 'auto'

    def input_widths(self, spec: QuantSpec) -> tuple[int, ...]:
        """The widths of inputs that it solves at once, rising; ``()`` for one or for float inputs.

        Args:
            spec: The request.
        """
        if not self.widths or spec.activation.num_bits is None:
            return ()
        tied = self.activation_widths == 'tied'
        return tuple(sorted(set(self.widths if tied else self.activation_widths)))

    @property
    def looks_at_images(self) -> bool:
        """Whether codes depend on images; else weights are quantized without any."""
        return bool(self.needs)

    @property
    def refines(self) -> bool:
        """Whether ``refine`` is to be called."""
        return 'model_loss' in self.needs

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """Returns options of other parts of the request that this method stands for.

        They fill what a request leaves open (``read_request``); what it says wins.
        """
        return {}

    def tuning(self, spec: QuantSpec) -> Sequence[Mapping[str, Any]]:
        """Returns stages of ``quantization.tuning`` that belong to the method.

        They are taken where a request says nothing of tuning; ``tuning=[]`` says that there are
        none.

        Args:
            spec: The request.
        """
        return ()

    def width_pairs(self, spec: QuantSpec) -> Sequence[Widths]:
        """Returns what units are learned at, rising, where their layers have several widths.

        Args:
            spec: The request.
        """
        return ()

    def tunes(self, input_bits: int | None) -> bool:
        """Whether stages of tuning run at a width, where there are several.

        Args:
            input_bits: Of the inputs, ``None`` for float ones.
        """
        return True

    def packages(self) -> Mapping[str, str]:
        """Returns packages that the method imports late, each with the extra that brings it."""
        return {}

    def candidates(self, statistics: LayerStatistics | RowStatistics, weight: Tensor,
                   num_bits: int) -> Iterable[tuple[str, WeightSolution]]:
        """Yields solutions of a layer with their names; by default one, of ``solve``.

        In a team every process solves some of the output channels: names and their order must not
        depend on which.

        Args:
            statistics: What ``needs`` asks for, of the sampled positions.
            weight: (G, M, N) float weight on the scale of the inputs in the statistics.
            num_bits: 2 to 8.
        """
        solve = self.solve_rows if isinstance(statistics, RowStatistics) else self.solve
        yield 'solver', solve(statistics, weight, num_bits)

    def solve(self, statistics: LayerStatistics, weight: Tensor, num_bits: int,
              ) -> WeightSolution:
        """Returns codes and scales.

        Args:
            statistics: Sums over the sampled positions, centred when ``bias_correction``.
            weight: (G, M, N) float weight on the scale of the inputs of the sums.
            num_bits: 2 to 8.
        """
        raise NotImplementedError(f'{type(self).__name__}.solve')

    def solve_widths(self, statistics: Sequence[LayerStatistics], weights: Sequence[Tensor],
                     widths: Sequence[int]) -> WeightSolution:
        """Returns codes and scales of several widths; for methods with ``widths``.

        Args:
            statistics: One a width: inputs are those of layers before it at that width.
            weights: (G, M, N) one a width, on the scale of its inputs.
            widths: Rising.

        Returns:
            That of the widest, the others in ``narrower``.
        """
        raise NotImplementedError(f'{type(self).__name__}.solve_widths')

    def solve_rows(self, rows: RowStatistics, weight: Tensor, num_bits: int) -> WeightSolution:
        """The same from the positions themselves.

        Args:
            rows: The positions, to be centred when ``bias_correction``.
            weight, num_bits: As for ``solve``.
        """
        raise NotImplementedError(f'{type(self).__name__}.solve_rows')

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """Chooses the codes of a weight (G, M, N) alone; for methods that need nothing.

        The objective is left open.
        """
        raise NotImplementedError(f'{type(self).__name__}.round')

    def solve_unit(self, problem: Any) -> Iterable[Any]:
        """Yields solutions of all layers of a unit; for methods that solve units.

        Args:
            problem: A ``UnitProblem``: what ``needs`` asks for.

        Returns:
            ``UnitCandidate`` objects.
        """
        raise NotImplementedError(f'{type(self).__name__}.solve_unit')

    def quick(self) -> 'Method':
        """Returns a cheaper method whose results rank input quantizations alike."""
        return self

    def refine(self, model: SolvedModel) -> dict[str, Any]:
        """Improves the whole model after every layer has been solved.

        Every process of a team does the same. When a calibration is resumed, it is called again
        and gets the losses of before: what it does must depend on them and its layers alone.

        Args:
            model: The layers, what was seen of them, and the model's loss.

        Returns:
            What was done, for the report; plain values.
        """
        raise NotImplementedError(f'{type(self).__name__}.refine')


METHODS: dict[str, type] = {}
# Names that the field has for some of them.
OTHER_NAMES = {'gptq': 'ErrorFeedback', 'optq': 'ErrorFeedback', 'rtn': 'RoundToNearest',
               'minmax': 'RoundToNearest', 'kl': 'KLDivergence', 'entropy': 'KLDivergence',
               'bit-split': 'BitSplit'}


def register_method(cls: type) -> type:
    """Makes a frozen dataclass derived from ``Method`` known by its class name."""
    METHODS[cls.__name__] = cls
    return cls


def check_declared(method: Method) -> None:
    """Raises ``ValueError`` for a method that declares what calibration does not know."""
    name, needs = type(method).__name__, tuple(method.needs)
    if isinstance(method.needs, str) or not set(needs) <= set(NEEDS):
        raise ValueError(f'{name}.needs={method.needs!r} is not supported; it must be a tuple of '
                         f'{", ".join(map(repr, NEEDS))}.')
    if method.solves not in ('layer', 'unit'):
        raise ValueError(f"{name}.solves={method.solves!r} is not supported; it must be 'layer' or "
                         "'unit'.")
    if method.granularity not in get_args(Granularity):
        raise ValueError(f"{name}.granularity={method.granularity!r} is not supported; it must be "
                         "'layer', 'block', 'stage' or 'net'.")
    for need in ('unit_io', 'importance'):
        if need in needs and method.solves != 'unit':
            raise ValueError(f"{name}.needs names '{need}', which is there for methods of "
                             f"solves='unit' alone; this one has solves='{method.solves}'.")
    if 'model_loss' in needs and method.solves == 'unit':
        raise ValueError(f"{name}.needs names 'model_loss', which is there for methods of "
                         "solves='layer' alone: float forwards of units are run beside quantized "
                         'ones, and leave no outputs to compare with.')
    if method.solves == 'unit' and not ('unit_io' in needs and {'sums', 'rows'} & set(needs)):
        raise ValueError(f"{name}.needs={method.needs!r} is not enough for solves='unit'; it must "
                         "name 'unit_io', and 'sums' or 'rows': the layers of a unit are solved "
                         'one by one first (by solve or solve_rows).')


def build_method(config: Mapping[str, Any]) -> Method:
    """Builds the method that ``config['type']`` names, with the other keys as its options.

    Raises:
        ValueError: The method or one of its options is unknown, with the nearest; or an option
            has a value that its type or the method does not allow.
    """
    options = dict(config)
    name = options.pop('type')
    if name in PIPELINES:
        raise ValueError(f"method.type='{name}' is a pipeline, a method and what comes after it: "
                         f"write quantization.pipeline='{name}'.")
    if name not in METHODS:
        other = OTHER_NAMES.get(str(name).lower())
        hint = f"here it is '{other}'" if other else nearest(name, METHODS)
        raise ValueError(f"method.type='{name}' is not known; {hint}.")
    method = from_mapping(METHODS[name], options, f'quantization.method ({name})')
    check_declared(method)
    return method


def read_request(mapping: Mapping[str, Any]) -> QuantSpec:
    """Reads a ``quantization`` dict; its method fills what the dict leaves open.

    The rule: an option that is written stands; one that is not is the method's
    (``Method.defaults``, ``Method.tuning``); one that neither names is the option's own default.
    So naming a method is enough to get all that it stands for, its input scales too. A pipeline
    gives the method and what comes after it.

    Raises:
        ValueError: Whatever ``fill_pipeline``, ``QuantSpec.from_dict``, ``read_plan``,
            ``build_method`` and ``check_data_free`` refuse; or a package that the method needs is
            not installed.
    """
    if isinstance(mapping, Mapping) and mapping.get('plan') is not None:
        mapping = {**mapping, 'plan': read_plan(mapping['plan'])}
    if isinstance(mapping, Mapping):
        mapping = fill_pipeline(mapping)
    spec = QuantSpec.from_dict(mapping)
    filled, method = dict(mapping), build_method(spec.method)
    for package, extra in method.packages().items():
        if find_spec(package) is None:  # said before hours of work, not after them
            raise ValueError(f"quantization.method: {spec.method['type']} needs the package "
                             f"'{package}', which is not installed: pip install "
                             f"'mmbitsplit[{extra}]', or choose another method.")
    for part, options in method.defaults().items():
        filled[part] = {**options, **filled.get(part, {})}
    if method.widths:
        _fill_widths(filled, method, mapping)
    spec = QuantSpec.from_dict(filled)
    if 'tuning' not in filled and spec.calibration.num_images:
        spec = replace(spec, tuning=tuple(method.tuning(spec)))
    build_stages(spec.tuning)
    check_data_free(spec)
    return spec


def _fill_widths(filled: dict[str, Any], method: Method, mapping: Mapping[str, Any]) -> None:
    """The widest of a method's widths are those of the layers; see ``Method.activation_widths``.

    Args:
        filled: The request, changed.
        method: As it says.
        mapping: What was written.
    """
    written = mapping.get('activation', {})
    if 'activation_widths' not in mapping.get('method', {}) and \
            written.get('num_bits') is not None:
        filled['method'] = {**filled['method'], 'activation_widths': [written['num_bits']]}
    else:
        tied = method.activation_widths == 'tied'
        inputs = method.widths if tied else method.activation_widths
        if inputs and written.get('num_bits', 0) is not None:
            filled['activation'] = {**filled.get('activation', {}), 'num_bits': max(inputs)}
    filled['weight'] = {**filled.get('weight', {}), 'num_bits': max(method.widths)}


def check_data_free(spec: QuantSpec) -> None:
    """Raises ``ValueError`` for a request of no images that depends on images."""
    if spec.calibration.num_images:
        return
    where, method = 'quantization.calibration.num_images=0', build_method(spec.method)
    if spec.tuning:
        raise ValueError(f'{where}: quantization.tuning learns on calibration images. Use images, '
                         'or leave it out.')
    if method.looks_at_images:
        free = [name for name, cls in METHODS.items() if not cls().looks_at_images]
        raise ValueError(
            f"{where}: {spec.method['type']} with these options chooses codes on calibration "
            f'images. Use images, or a method that can do without: {", ".join(free)}.')
    bits = [spec.activation.num_bits, *(override.activation.get('num_bits')
                                        for override in spec.overrides)]
    bits += [row.input_bits for row in (spec.plan.layers if spec.plan is not None else ())
             if row.input_bits != AS_REQUESTED]
    if bits != [None] * len(bits):
        raise ValueError(
            f'{where}: inputs are to be quantized, and their scales come from calibration images. '
            'Set quantization.activation.num_bits=None (weights only), or use images.')
