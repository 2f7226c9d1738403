"""What a method is, how a config names one, and what naming it stands for."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from mmbitsplit.methods.refinement import Refinement
from mmbitsplit.structures import (
    LayerStatistics,
    Options,
    QuantSpec,
    RowStatistics,
    WeightSolution,
    from_mapping,
    nearest,
)


class Method(Options):
    """Chooses weight codes of a layer from its statistics.

    Its fields are the options of a config; their annotations say what is allowed.

    Attributes:
        bias_correction: Fit the bias together with the weights.
        guard: Take plain rounding instead where it is better on held-out positions.
        looks_at_images: Whether codes depend on the statistics; where they do not and no input is
            quantized, a model can be quantized without calibration images.
        refines: Whether ``refine`` is to be called.
        loss, loss_batches: See ``ModelLoss``; for methods that refine.
    """

    bias_correction: bool = False
    guard: bool = False
    looks_at_images: bool = True
    refines: bool = False
    loss: str = 'auto'
    loss_batches: int = 4

    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """Returns options of other parts of the request that this method stands for.

        They fill what a request leaves open (``read_request``); what it says wins.
        """
        return {}

    def packages(self) -> Mapping[str, str]:
        """Returns packages that the method imports late, each with the extra that brings it."""
        return {}

    def solve(self, statistics: LayerStatistics, weight: Tensor, num_bits: int,
              ) -> WeightSolution:
        """Returns codes and scales.

        Args:
            statistics: Sums over the sampled positions, centred when ``bias_correction``.
            weight: (G, M, N) float weight on the scale of the inputs of the sums.
            num_bits: 2 to 8.
        """
        raise NotImplementedError

    def solve_rows(self, rows: RowStatistics, weight: Tensor, num_bits: int) -> WeightSolution:
        """The same for a layer too large for sums of products.

        Args:
            rows: The positions, to be centred when ``bias_correction``.
            weight, num_bits: As for ``solve``.
        """
        raise NotImplementedError

    def round(self, weight: Tensor, num_bits: int) -> WeightSolution:
        """Chooses the codes of a weight (G, M, N) alone; for methods that look at no image.

        The objective is left open.
        """
        raise NotImplementedError

    def quick(self) -> 'Method':
        """Returns a cheaper method whose results rank input quantizations alike."""
        return self

    def refine(self, refinement: Refinement) -> dict[str, Any]:
        """Improves the whole model after every layer has been solved.

        Args:
            refinement: The layers, what was seen of them, and the loss of the model.

        Returns:
            What was done, for the report; plain values.
        """
        raise NotImplementedError


METHODS: dict[str, type] = {}


def register_method(cls: type) -> type:
    """Makes a frozen dataclass derived from ``Method`` known by its class name."""
    METHODS[cls.__name__] = cls
    return cls


def build_method(config: Mapping[str, Any]) -> Method:
    """Builds the method that ``config['type']`` names, with the other keys as its options.

    Raises:
        ValueError: The method or one of its options is unknown, with the nearest; or an option
            has a value that its type or the method does not allow.
    """
    options = dict(config)
    name = options.pop('type')
    if name not in METHODS:
        raise ValueError(f"method.type='{name}' is not known; {nearest(name, METHODS)}.")
    return from_mapping(METHODS[name], options, f'quantization.method ({name})')


def read_request(mapping: Mapping[str, Any]) -> QuantSpec:
    """Reads a ``quantization`` dict; its method fills what the dict leaves open.

    The rule: an option that is written stands; one that is not is the method's
    (``Method.defaults``); one that neither names is the option's own default. So naming a method
    is enough to get all that it stands for, its input scales too.

    Raises:
        ValueError: Whatever ``QuantSpec.from_dict``, ``build_method`` and ``check_data_free``
            refuse; or a package that the method needs is not installed.
    """
    spec = QuantSpec.from_dict(mapping)
    filled, method = dict(mapping), build_method(spec.method)
    for package, extra in method.packages().items():
        if find_spec(package) is None:  # said before hours of work, not after them
            raise ValueError(f"quantization.method: {spec.method['type']} needs the package "
                             f"'{package}', which is not installed: pip install "
                             f"'mmbitsplit[{extra}]', or choose another method.")
    for part, options in method.defaults().items():
        filled[part] = {**options, **filled.get(part, {})}
    spec = QuantSpec.from_dict(filled)
    check_data_free(spec)
    return spec


def check_data_free(spec: QuantSpec) -> None:
    """Raises ``ValueError`` for a request of no images that depends on images."""
    if spec.calibration.num_images:
        return
    where, method = 'quantization.calibration.num_images=0', build_method(spec.method)
    if method.looks_at_images:
        free = [name for name, cls in METHODS.items() if not cls().looks_at_images]
        raise ValueError(
            f"{where}: {spec.method['type']} with these options chooses codes on calibration "
            f'images. Use images, or a method that can do without: {", ".join(free)}.')
    bits = [spec.activation.num_bits, *(override.activation.get('num_bits')
                                        for override in spec.overrides)]
    if bits != [None] * len(bits):
        raise ValueError(
            f'{where}: inputs are to be quantized, and their scales come from calibration images. '
            'Set quantization.activation.num_bits=None (weights only), or use images.')
