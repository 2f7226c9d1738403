"""What a calibration will hold in memory, estimated before it starts, and what there is."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from mmbitsplit.functional.solvers.bitsplit_rows import PART
from mmbitsplit.functional.statistics import MOST_INPUTS_IN_DOUBLE
from mmbitsplit.methods.tuning import STEP_IMAGES, TuningStage
from mmbitsplit.models import DataFlow, layer_role
from mmbitsplit.passes.capture import SAMPLES_PER_LAYER
from mmbitsplit.passes.free_memory import gb
from mmbitsplit.passes.product_capture import capture_bytes
from mmbitsplit.passes.repeated_calls import Owner
from mmbitsplit.passes.sampling import rows_per_call
from mmbitsplit.passes.team import Team
from mmbitsplit.solving.model_loss import MOST_ELEMENTS
from mmbitsplit.solving.statistics import MOST_INPUTS_FOR_GRAM
from mmbitsplit.structures import LayerGeometry, Unit

# Copies of a layer's sampled rows and of its gram that are alive at once while it is solved.
ROW_COPIES, GRAM_COPIES = 3, 4
PRODUCT_COPIES = 2  # of a product's sampled matrices: as they are, and those of a call rounded
WEIGHT_BYTES = 4 + 1 + 4  # of a weight of a layer that is put in: float, code, what that stands for
# Of a layer's output, in the graph of gradients: it, what the activation makes of it, and what
# additions and concatenations do.
GRAPH_COPIES = 3
# The same where gradients reach scales: inputs before and after rounding, too. Saved were 2
# (ResNet-20) to 4.5 (YOLOX) and what is made while gradients flow.
TUNED_COPIES = 5
# Float64 numbers a code while codes are learned, beside one a batch of a step: the point, the best,
# its gradient, two moments of Adam, and what is made on the way.
CODE_VECTORS = 7
TUNED_WEIGHT_BYTES = 8  # of a weight in each of its layer's calls: the real code, the weight
IO_OF_A_UNIT = 3  # float input, quantized input, float output
# Smaller blocks stay with the C library when they are freed, and larger ones cannot use them
# (glibc's DEFAULT_MMAP_THRESHOLD_MAX).
KEPT_BLOCK = 32 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one process will hold beyond what it holds now.

    Args:
        suspended: Of all batches at the layer where their forwards hold most.
        running: Of the batch whose forward is running, beside what it holds asleep.
        targets: Float outputs at the sampled positions.
        solving: Rows and sums of the largest layer.
        weights: Of the layers that are put in: codes and the weights that stand for them, beside
            the float weights, which are kept until the end.
        refining: For a method that needs the model's loss: samples of all inputs, and outputs.
        units: For a method that solves units: inputs and outputs of those that are open at once.
            Forwards are held asleep twice then.
        learning: For the same: a step of the unit that takes most, after its layers are solved.
        gradients: Of one batch's graph, where importance is asked for: before anything is held
            asleep.
        tuning: Of the graph of a batch in which the whole model is tuned, when nothing is asleep
            any more.
        no_tuning: Why it is left out, where it would be too much.
    """

    suspended: int
    running: int
    targets: int
    solving: int
    weights: int
    refining: int = 0
    units: int = 0
    learning: int = 0
    gradients: int = 0
    tuning: int = 0
    no_tuning: str = ''

    @property
    def total(self) -> int:
        """Most that is held at once."""
        later = (self.suspended + self.running + self.targets + self.refining + self.units
                 + max(self.solving, self.learning))
        return self.weights + max(later, self.gradients, self.tuning)


NOTHING = MemoryEstimate(suspended=0, running=0, targets=0, solving=0, weights=0)


def estimate_memory(flow: DataFlow, geometries: Mapping[str, LayerGeometry],
                    owners: Mapping[str, Owner], sizes: Mapping[int, float],
                    rows_per_layer: int, num_batches: int,
                    products: Sequence[str] = ()) -> MemoryEstimate:
    """Estimates from one watched batch what all batches of this process will hold.

    Args:
        flow: What was seen of the watched batch.
        geometries: Of the planned layers.
        owners: Calls that are repeated.
        sizes: Of this process's batches, in units of the watched batch.
        rows_per_layer: Sampled positions of a layer.
        num_batches: Batches of all processes.
        products: Names of the planned products of activations.
    """
    targets = solving = weights = 0
    for name, geometry in geometries.items():
        outputs = geometry.out_channels
        most = rows_per_call(rows_per_layer, num_batches, flow.calls[name])
        rows = sum(min(most, int(size * scale / outputs)) for scale in sizes.values()
                   for size in flow.output_sizes[name])
        inputs = geometry.inputs_per_output
        targets += 4 * rows * outputs
        weights += WEIGHT_BYTES * math.prod(geometry.weight_shape)
        real = 8 if inputs <= MOST_INPUTS_IN_DOUBLE else 4
        grams = GRAM_COPIES * inputs if inputs <= MOST_INPUTS_FOR_GRAM else PART
        solving = max(solving, geometry.groups * inputs * (
            4 * ROW_COPIES * rows + real * grams))
    for name in products:
        solving = max(solving, PRODUCT_COPIES * capture_bytes(
            flow.products[name].shapes, flow.calls[name] * len(sizes)))
    return MemoryEstimate(
        suspended=int(_most_held(_held(flow, [*geometries, *products], owners))
                      * sum(sizes.values())),
        running=int(flow.peak_bytes * max(sizes.values(), default=0)), targets=targets,
        solving=solving, weights=weights)


def refining_bytes(flow: DataFlow, geometries: Mapping[str, LayerGeometry],
                   sizes: Mapping[int, float], batches: Sequence[int]) -> int:
    """Bytes that a method which needs the model's loss keeps until all layers are solved.

    Args:
        flow, geometries, sizes: See ``estimate_memory``.
        batches: Numbers of those that the loss is taken of.
    """
    samples = sum(4 * SAMPLES_PER_LAYER * geometry.in_channels for geometry in geometries.values())
    last = [name for name in geometries if 'last' in layer_role(name, flow)]
    # A linear layer of class scores is compared whole, others at evenly spread elements.
    whole = len(last) == 1 and geometries[last[0]].kind == 'linear'
    outputs = sum(4 * min(int(size * sizes[batch]), math.inf if whole else 2 * MOST_ELEMENTS)
                  for batch in batches for name in last for size in flow.output_sizes[name])
    return samples + outputs


def with_gradients(estimate: MemoryEstimate, flow: DataFlow, sizes: Mapping[int, float],
                   rows: int) -> MemoryEstimate:
    """Adds what finding importance takes.

    Args:
        estimate: Of the same request without.
        flow, sizes: See ``estimate_memory``.
        rows: Positions of all layers together that are kept.
    """
    outputs = sum(size for calls in flow.output_sizes.values() for size in calls)
    graph = int(4 * GRAPH_COPIES * outputs * max(sizes.values(), default=0))
    return replace(estimate, gradients=graph, targets=estimate.targets + 8 * rows)


def tuning_bytes(flow: DataFlow, geometries: Mapping[str, LayerGeometry],
                 sizes: Mapping[int, float], stages: Sequence[TuningStage], asleep: int) -> int:
    """Bytes that a stage holds which tunes the whole model: one batch's graph, and raw outputs.

    Args:
        flow, geometries, sizes: See ``estimate_memory``.
        stages: The largest of them counts.
        asleep: Held by all batches side by side, as a stage that renews norms has them.
    """
    outputs = sum(size for calls in flow.output_sizes.values() for size in calls)
    weights = sum((flow.calls[name] + 1) * math.prod(geometry.weight_shape)
                  for name, geometry in geometries.items())
    last = [name for name in flow.order if 'last' in layer_role(name, flow)]
    kept = sum(4 * min(int(size * scale), 2 * MOST_ELEMENTS) for scale in sizes.values()
               for name in last for size in flow.output_sizes[name])
    kept *= 1 + any(stage.mirrored for stage in stages)
    copies = TUNED_COPIES + any(stage.inner != 0 for stage in stages)  # what float layers read
    vectors = max((CODE_VECTORS + (stage.batch_size or STEP_IMAGES) for stage in stages
                   if 'codes' in stage.learns), default=0)
    codes = sum(math.prod(geometry.weight_shape) for geometry in geometries.values())
    graph = int(4 * copies * outputs * max(sizes.values(), default=0)
                + TUNED_WEIGHT_BYTES * weights + 8 * vectors * codes)
    return kept + max((asleep if stage.works_on == 'norms' else graph for stage in stages),
                      default=0)


def with_tuning(estimate: MemoryEstimate, tuning: int, budget: float,
                stages: Sequence[TuningStage], team: Team) -> MemoryEstimate:
    """Adds what tuning takes, or why it is left out where all stages allow that.

    Args:
        estimate: Of the request without tuning.
        tuning: See ``tuning_bytes``.
        budget: Bytes that this process may take.
        stages: Of the request.
        team: All leave it out where it is too much for one.
    """
    more = replace(estimate, tuning=tuning)
    if all(stage.if_possible for stage in stages) and any(team.gather(more.total > budget)):
        return replace(estimate, no_tuning=f'a step would take {gb(more.total)}, and the memory '
                                           f'budget is {gb(budget)}')
    return more


def with_widths(estimate: MemoryEstimate, forwards: int, pairs: int) -> MemoryEstimate:
    """Adds what several widths take.

    Args:
        estimate: Of one width.
        forwards: Of each batch, that sleep side by side.
        pairs: Widths that a layer is solved for at once, each with rows and sums of its own.
    """
    return replace(estimate, suspended=forwards * estimate.suspended,
                   solving=pairs * estimate.solving)


def with_units(estimate: MemoryEstimate, flow: DataFlow, units: Sequence[Unit], total: float,
               budget: int, learning: int = 0) -> MemoryEstimate:
    """Adds what a method that solves units takes.

    Args:
        estimate: Of the same request with a method that solves layers.
        flow: See ``estimate_memory``.
        units: Of the model.
        total: All batches of all processes, in units of the watched one: the process that learns
            a unit gets the calls of all.
        budget: Bytes of inputs and outputs of units.
        learning: Bytes of a step, see ``unit_memory``.
    """
    largest = max((sum(flow.output_sizes[name]) for unit in units for name in unit.layers),
                  default=0)
    return replace(estimate, suspended=2 * estimate.suspended, learning=learning,
                   units=int(min(budget, 4 * IO_OF_A_UNIT * largest * total)))


def _held(flow: DataFlow, layers: Iterable[str], owners: Mapping[str, Owner],
          ) -> Iterable[list[int]]:
    """Bytes of each tensor that the watched batch holds asleep, at one layer or product after
    another."""
    seen = set()
    for name in sorted(layers, key=flow.sites.index):
        owner = next((owner for owner in owners.values() if name in owner.layers), None)
        if owner is None:
            yield flow.live_blocks[name]
        elif owner.layers not in seen:
            seen.add(owner.layers)
            before = min((flow.live_blocks[layer] for layer in owner.layers), key=sum)
            outputs = {layer: [4 * size for size in flow.output_sizes[layer]]
                       for layer in owner.layers}
            kept = [blocks for layer, blocks in outputs.items() if layer not in owner.readers]
            passing = sorted((outputs[layer] for layer in owner.readers), key=sum, reverse=True)
            yield [*before, *chain.from_iterable([*kept, *passing[:2]])]


def _most_held(states: Iterable[list[int]]) -> int:
    """Most bytes that a sequence of states takes, with the small blocks of those before."""
    most = small = 0
    for blocks in states:
        small = max(small, sum(size for size in blocks if size < KEPT_BLOCK))
        most = max(most, small + sum(size for size in blocks if size >= KEPT_BLOCK))
    return most


def check_memory(estimate: MemoryEstimate, budget: int, num_images: int,
                 num_processes: int = 1) -> None:
    """Raises ``ValueError`` when the estimate exceeds the budget; says how many images fit.

    Args:
        estimate: Of this process.
        budget: Bytes.
        num_images: Of this process.
        num_processes: How many share the images; the advice is about all of them.
    """
    if estimate.total <= budget:
        return
    growing = estimate.suspended  # the rest depends on the number of rows, not of images
    least = replace(estimate, suspended=0).total
    fit = int(num_images * max(0, budget - least) / max(1, growing)) * num_processes
    advice = f'about {fit} images would fit: set quantization.calibration.num_images={fit}' \
        if fit else ('not one image would fit: set quantization.calibration.batch_size or '
                     'rows_per_layer lower')
    more = f", {gb(estimate.refining)} for the model's loss" if estimate.refining else ''
    more += f', {gb(estimate.gradients)} for gradients before' if estimate.gradients else ''
    more += f', {gb(estimate.units)} for inputs and outputs of units' if estimate.units else ''
    if estimate.learning:
        more += f', {gb(estimate.learning)} for a step in which a unit is learned'
    if estimate.tuning:
        more += f', {gb(estimate.tuning)} to tune the whole model afterwards'
    if not fit and estimate.tuning and estimate.weights + estimate.tuning > budget:
        advice = ('a batch of quantization.tuning does not fit: set '
                  'quantization.calibration.batch_size lower, or leave quantization.tuning out')
    if not fit and estimate.learning > estimate.solving:
        advice = ('the steps do not fit: set quantization.method.batch_size or granularity lower, '
                  'or divide the largest unit (`mmbitsplit units`)')
    raise ValueError(
        f'Calibrating on {num_images} images would hold about {gb(estimate.total)} '
        f'({gb(estimate.suspended)} of suspended forwards, {gb(estimate.running)} of the running '
        f'one, {gb(estimate.targets)} of float outputs, {gb(estimate.solving)} to solve the '
        f'largest layer, {gb(estimate.weights)} of weights and their codes{more}); the budget '
        f'is {gb(budget)}. {advice}, share the images between several processes, or raise '
        'quantization.calibration.memory_budget (GB) if you know better.')
