"""What runs of a model show: which layers run, in which order, and whose output feeds whom."""

from dataclasses import dataclass, field

from mmbitsplit.models.layers.steps import StepList
from mmbitsplit.models.watch.closed_call import ClosedCall
from mmbitsplit.models.watch.layer_inside import LayerInside
from mmbitsplit.models.watch.module_calls import RunCalls
from mmbitsplit.models.watch.output_readers import Reading
from mmbitsplit.models.watch.product_calls import ProductCalls
from mmbitsplit.models.watch.weight_reads import ForeignWeight
from mmbitsplit.structures import Selection

IMAGE = '<image>'


@dataclass
class DataFlow:
    """What one run of the model showed.

    Args:
        order: Names of the layers of a supported kind, in the order of their first call.
        embeddings: Names of the embeddings that were called, in the order of their first call.
        sites: The same with the products of activations. ``calls``, ``stacks``, ``live_blocks`` and
            ``output_sizes`` are of these, too.
        products: What the calls of each product showed.
        calls: How often each was called.
        sources: For each layer, the nearest layers upstream of its inputs; ``IMAGE`` when
            the model's input reaches it without a layer between. Where an operation of a kind that
            is no layer here multiplies the input by a weight or looks it up (an embedding, a
            one-dimensional convolution), the name of the module that does it.
        fed_by_image: Layers of which a call was fed by the model's input and by nothing else.
        feeds: For each layer, the layers it is a source of.
        read_elsewhere: For layers and batch norms whose weight is read outside of their calls, the
            operation that does so; where they must stay as they are for it.
        also_read: The same for layers of which others only read what a quantized layer can show
            them: its weight and bias, as numbers that do not enter a product.
        foreign_weights: Weights that the model multiplies by and none of its modules holds.
        inside: Of layers whose class does more than their attributes say, what it does.
        unlike_torch: Layers, and batch norms, whose class does what a quantized layer, or folding,
            cannot, or whose input is no ordinary tensor; with the reason.
        norm_steps: For batch norms, the steps that their class takes after normalizing.
        norm_after: For each batch norm, the layer whose output channels it normalizes, or
            ``None`` when calls disagree, the tensor comes from elsewhere, the norm does something
            else than its torch parent class, or the tensor was still held when the model read a
            number: it may decide by that whether to read the tensor too.
        norm_calls: How often each batch norm was called.
        consumers: For each layer, what reads its output tensor: layers and batch norms by
            name, ``'operation'``, and ``'output'`` when the model returns it.
        readings: For each layer and batch norm, how its output is read, a ReLU looked through.
        stacks: For each layer and call, the module calls around it from the outside in, each
            as (module name, which of its calls).
        returned: For each module with children, the layers whose values reach what its calls
            return without another layer between.
        deciding: Layers whose values became an index, a mask or a number without another layer
            between: what follows depends on them in ways that no flow of values shows.
        selections: Steps outside of barriers that pick rows by values of layers, with the layers
            that get them.
        output_sizes: For each layer and call, the number of elements of its output.
        input_sizes: For the same, of its input.
        output_rows: For the same, how many images, boxes or rows these are.
        live_blocks: For each layer, sizes in bytes of the tensors that the run had made and
            still held when a call of it began, the call with most of them in sum.
        peak_bytes: Most bytes that the run had made and held at once.
        closed_calls: Calls that multiply activations in a module's own forward, known before.
        module_calls: Of each run, its module calls and what they share with the rest.
    """

    order: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    products: dict[str, ProductCalls] = field(default_factory=dict)
    embeddings: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    sources: dict[str, set[str]] = field(default_factory=dict)
    fed_by_image: set[str] = field(default_factory=set)
    feeds: dict[str, set[str]] = field(default_factory=dict)
    read_elsewhere: dict[str, str] = field(default_factory=dict)
    also_read: dict[str, str] = field(default_factory=dict)
    foreign_weights: list[ForeignWeight] = field(default_factory=list)
    inside: dict[str, LayerInside] = field(default_factory=dict)
    unlike_torch: dict[str, str] = field(default_factory=dict)
    norm_steps: dict[str, StepList] = field(default_factory=dict)
    norm_after: dict[str, str | None] = field(default_factory=dict)
    norm_calls: dict[str, int] = field(default_factory=dict)
    consumers: dict[str, set[str]] = field(default_factory=dict)
    readings: dict[str, set[Reading]] = field(default_factory=dict)
    stacks: dict[str, list[tuple[tuple[str, int], ...]]] = field(default_factory=dict)
    returned: dict[str, set[str]] = field(default_factory=dict)
    deciding: set[str] = field(default_factory=set)
    selections: dict[Selection, list[str]] = field(default_factory=dict)
    output_sizes: dict[str, list[int]] = field(default_factory=dict)
    input_sizes: dict[str, list[int]] = field(default_factory=dict)
    output_rows: dict[str, list[int]] = field(default_factory=dict)
    live_blocks: dict[str, list[int]] = field(default_factory=dict)
    peak_bytes: int = 0
    closed_calls: list[ClosedCall] = field(default_factory=list)
    module_calls: list[RunCalls] = field(default_factory=list)
