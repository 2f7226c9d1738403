"""What is done with embeddings: tables that are looked up, weights only; and with what shares one.

A row has a scale of its own, so rounding it to the nearest codes is best for it whatever the others
are and however often it is looked up.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from mmbitsplit.models.layers.geometry import layer_kind
from mmbitsplit.models.watch.data_flow import DataFlow
from mmbitsplit.planning.first_and_last import settings_of_role
from mmbitsplit.planning.request_rules import left_in_float, weight_of
from mmbitsplit.structures import EmbeddingPlan, LayerPlan, QuantSpec

SUMMED = ('EmbeddingBag adds rows up in one kernel that knows no codes; nn.Embedding and a sum are '
          'quantized')
NEVER_LOOKED_UP = 'an embedding that is never called: what reads its weight takes it as it is'


@dataclass(frozen=True)
class EmbeddingPlans:
    """What ``plan_embeddings`` decides.

    Args:
        embeddings: Tables that are quantized.
        layers: The plans given, where a layer multiplies by a table with ``codes_of``.
        kept: Tables that stay float by name: why, and whether the request says so.
    """

    embeddings: tuple[EmbeddingPlan, ...]
    layers: tuple[LayerPlan, ...]
    kept: Mapping[str, tuple[str, bool]] = field(default_factory=dict)


def plan_embeddings(model: nn.Module, flow: DataFlow, spec: QuantSpec,
                    layers: Sequence[LayerPlan], within: Container[str]) -> EmbeddingPlans:
    """Decides for every embedding whether it is quantized.

    Args:
        model: The float model.
        flow: Its data flow.
        spec: The request.
        layers: Plans of its layers.
        within: Modules that are parts of layers.

    Raises:
        ValueError: A table that several modules share was given several widths.
    """
    modules = dict(model.named_modules())
    planned = {layer.name: layer for layer in layers}
    embeddings, kept = {}, {}
    for name, module in modules.items():
        if name in within:
            continue
        if isinstance(module, nn.EmbeddingBag):
            kept[name] = SUMMED, False
        elif isinstance(module, nn.Embedding):
            if reason := left_in_float(name, spec):
                kept[name] = reason, True
            elif reason := _cannot(name, module, flow):
                kept[name] = reason, False
            else:
                weight = weight_of(name, settings_of_role('first', spec)[0], spec)
                embeddings[name] = EmbeddingPlan(name, weight)
    shared = {name: list(_sharing(modules, name)) for name in embeddings}
    tied: dict[str, str] = {}
    for name, others in shared.items():
        unlike = next((other for other in others if other not in embeddings
                       and not _multiplies_by_it(other, modules, planned, flow)), None)
        if unlike is not None:
            kept[name] = (f"its weight is also that of '{unlike}', which stays float or takes it "
                          'in another way', False)
            continue
        for other in others:
            if other in planned:
                tied.setdefault(other, name)
            _check_widths(embeddings[name], planned.get(other, embeddings.get(other)), spec)
    order = [name for name in flow.embeddings if name in embeddings and name not in kept]
    return EmbeddingPlans(tuple(embeddings[name] for name in order), tuple(
        _tied(layer, embeddings[tied[layer.name]]) if layer.name in tied else layer
        for layer in layers), kept)


def _cannot(name: str, module: nn.Embedding, flow: DataFlow) -> str:
    """Why an embedding must stay float; empty where it need not."""
    if module.max_norm is not None:
        return f'max_norm={module.max_norm:g} changes its rows whenever they are looked up'
    if name in flow.read_elsewhere:
        return (f"its weight is read outside of its own calls (by '{flow.read_elsewhere[name]}')"
                if name in flow.embeddings else NEVER_LOOKED_UP)
    if name not in flow.embeddings:
        return NEVER_LOOKED_UP
    if [*map(id, module.parameters())] != [id(module._parameters.get('weight'))]:
        return f'its class {type(module).__name__} has more than its table'
    return ''


def _sharing(modules: Mapping[str, nn.Module], name: str) -> Iterator[str]:
    """Names of the other modules that hold an embedding's weight."""
    weight = modules[name].weight
    for other, module in modules.items():
        if other != name and any(held is weight for held in module.parameters(recurse=False)):
            yield other


def _multiplies_by_it(name: str, modules: Mapping[str, nn.Module],
                      planned: Mapping[str, LayerPlan], flow: DataFlow) -> bool:
    """Whether a module is a linear layer that is quantized and does no more than its class."""
    return name in planned and layer_kind(modules[name]) == 'linear' and name not in flow.inside


def _tied(layer: LayerPlan, embedding: EmbeddingPlan) -> LayerPlan:
    """A layer that multiplies by a table's codes: one scale for all of its inputs, as scales a
    channel would have to go into the weights."""
    return replace(layer, weight=embedding.weight, codes_of=embedding.name,
                   activation=replace(layer.activation, mode='per_tensor'))


def _check_widths(embedding: EmbeddingPlan, other: LayerPlan | EmbeddingPlan | None,
                  spec: QuantSpec) -> None:
    if other is not None and other.weight.num_bits != embedding.weight.num_bits:
        raise ValueError(
            f"Embedding '{embedding.name}' and '{other.name}' share their weight, and the request "
            f'gives the one {embedding.weight.num_bits} bits and the other '
            f'{other.weight.num_bits}. Give both the same, by overrides=['
            f"dict(match='{embedding.name}', weight=dict(num_bits=...)), "
            f"dict(match='{other.name}', weight=dict(num_bits=...))].")
