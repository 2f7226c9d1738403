"""Which layers and products get several widths: those of which nothing else says a width."""

from dataclasses import replace

from mmbitsplit.methods import build_method
from mmbitsplit.planning.given_plan import row_of
from mmbitsplit.planning.request_rules import matches
from mmbitsplit.structures import LayerPlan, QuantSpec
from mmbitsplit.structures.given_plan import AS_REQUESTED


def with_widths(layer: LayerPlan, spec: QuantSpec) -> LayerPlan:
    """The plan of a layer with the widths of a method that solves several.

    Layers whose width the rule of first and last layers, an override or a given plan says keep it,
    of weights and of inputs apart.

    Args:
        layer: As the request plans it.
        spec: The request.
    """
    method = build_method(spec.method)
    widths, inputs = tuple(method.widths), method.input_widths(spec)
    first_last = spec.first_last
    inner, row = layer.role == 'inner', row_of(layer.name, spec)
    if widths and (inner or first_last.weight_bits is None) \
            and not _said(layer.name, 'weight', spec) \
            and (row is None or row.weight_bits == AS_REQUESTED):
        layer = replace(layer, widths=widths,
                        weight=replace(layer.weight, num_bits=widths[-1]))
    if inputs and inner and layer.activation.num_bits is not None \
            and not _said(layer.name, 'activation', spec) \
            and (row is None or row.input_bits == AS_REQUESTED):
        layer = replace(layer, input_widths=inputs,
                        activation=replace(layer.activation, num_bits=inputs[-1]))
    return replace(layer, widths=layer.widths if len(layer.widths) > 1 else (),
                   input_widths=layer.input_widths if len(layer.input_widths) > 1 else ())


def product_widths(name: str, spec: QuantSpec) -> tuple[int, ...]:
    """The widths of both inputs of a product, rising; ``()`` for the one that the request says.

    They are those of layers' inputs. ``products.num_bits``, an override or a given plan says one.

    Args:
        name: Of the product.
        spec: The request.
    """
    method = build_method(spec.method)
    given = spec.plan is not None and any(row.name == name for row in spec.plan.products)
    one = spec.products is not None and spec.products.num_bits is not None
    if given or one or _said(name, 'activation', spec):
        return ()
    return method.input_widths(spec)


def _said(name: str, part: str, spec: QuantSpec) -> bool:
    """Whether an override says the width of a layer's weight or input."""
    return any('num_bits' in getattr(override, part) and matches(name, override.match)
               for override in spec.overrides)
