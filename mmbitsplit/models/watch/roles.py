"""Which layers are first and last, from what was watched."""

from mmbitsplit.models.watch.data_flow import DataFlow


def layer_role(name: str, flow: DataFlow) -> str:
    """Returns ``'first'``, ``'last'``, ``'first+last'`` or ``'inner'``.

    First: a call is fed by the model's input alone, no layer between; after an addition with a
    layer's output, or after an embedding, which is a layer, it is not. Last: its output reaches no
    other layer, data-dependent steps (box decoding) not counted.
    """
    parts = []
    if name in flow.fed_by_image:
        parts.append('first')
    if not flow.feeds.get(name, set()) - {name}:
        parts.append('last')
    return '+'.join(parts) or 'inner'


def after_first(name: str, flow: DataFlow) -> bool:
    """Whether a layer's input comes from first layers alone, such as what follows a stem."""
    sources = flow.sources.get(name, set())
    return bool(sources) and all('first' in layer_role(source, flow) for source in sources)


def last_layers(flow: DataFlow) -> list[str]:
    """Names of the layers that make the model's raw outputs, in the order of their first call."""
    return [name for name in flow.order if 'last' in layer_role(name, flow)]
