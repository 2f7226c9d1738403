"""Decides which products of activations are quantized, and how."""

from collections.abc import Mapping

from torch import nn

from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.opening import may_be_opened
from mmbitsplit.models.watch.product_calls import ProductCalls
from mmbitsplit.planning.several_widths import product_widths
from mmbitsplit.spelling import nearest
from mmbitsplit.structures import (
    ActivationSpec,
    BitPlan,
    FloatRemainder,
    PlannedProduct,
    ProductInput,
    ProductPlan,
    ProductSpec,
    QuantSpec,
)
from mmbitsplit.structures.plan_file import PRODUCT

BY_REQUEST = 'products=None leaves products of activations in float'
BY_PLAN = 'left in float by the plan'
FLOAT_INPUTS = 'as the inputs of layers are (activation.num_bits=None)'
NO_IMAGES = 'scales of its inputs come from calibration images (calibration.num_images=0)'


def product_names(model: nn.Module) -> list[str]:
    """Names of the products of a model, called or not."""
    return [name for name, module in model.named_modules() if isinstance(module, Product)]


def plan_product(name: str, calls: ProductCalls, activation: ActivationSpec, spec: QuantSpec,
                 ) -> ProductPlan | str:
    """The plan of one product, or why it stays in float.

    Args:
        name: Of its module.
        calls: What was seen of it.
        activation: Of the request, with what overrides say of this name.
        spec: The request; a given plan wins.
    """
    row = given_product(name, spec)
    if spec.products is None and row is None:
        return BY_REQUEST
    asked = spec.products or ProductSpec()
    bits = activation.num_bits if asked.num_bits is None else asked.num_bits
    if row is None and activation.num_bits is None:
        return FLOAT_INPUTS
    if not spec.calibration.num_images:
        return NO_IMAGES
    several = product_widths(name, spec)
    bits = several[-1] if several else bits
    widths = {'a': bits, 'b': bits} if row is None else {'a': row.a_bits, 'b': row.b_bits}
    if widths['a'] is None and widths['b'] is None:
        return BY_PLAN
    return ProductPlan(name, *(_side(side, widths[side], calls, activation, asked)
                               for side in widths),
                       widths=several if len(several) > 1 else ())


def keeps_product(name: str, spec: QuantSpec) -> bool | None:
    """Whether a given plan leaves a product in float; ``None`` where it does not say."""
    row = given_product(name, spec)
    return None if row is None else row.a_bits is None and row.b_bits is None


def given_product(name: str, spec: QuantSpec) -> PlannedProduct | None:
    """The row of a product in the given plan, ``None`` where there is none."""
    return None if spec.plan is None else next(
        (row for row in spec.plan.products if row.name == name), None)


def check_given_products(model: nn.Module, spec: QuantSpec, opened: bool = True) -> None:
    """Raises ``ValueError`` where the given plan names products that the model has not.

    Args:
        model: Float model.
        spec: The request.
        opened: Whether its calls are opened; if not, there are no products yet, and names of those
            that may come are let pass.
    """
    known = product_names(model)
    for row in spec.plan.products if spec.plan is not None else ():
        if row.name not in known and (opened or not may_be_opened(row.name)):
            near = nearest(row.name, known[:12]) if known else 'there is none'
            raise ValueError(f"quantization.plan has a product '{row.name}' that the model does "
                             f'not have; {near}. Take it out.')


def float_product(name: str, reason: str, requested: bool) -> FloatRemainder:
    """What is said of a product that stays in float."""
    return FloatRemainder(name, PRODUCT, reason, 0, 0.0, requested)


def multiplication_shares(amounts: Mapping[str, int]) -> dict[str, float]:
    """Shares of all multiplications, 0 to 1, by the name of the layer or product."""
    total = sum(amounts.values()) or 1
    return {name: amount / total for name, amount in amounts.items()}


def quantized_shares(plan: BitPlan, amounts: Mapping[str, int], uncounted: int,
                     ) -> dict[str, float]:
    """What part of the counted multiplications is quantized; the rest ``kept_float`` lists.

    Args:
        plan: Of the model.
        amounts: Multiplications by the name of the layer or product.
        uncounted: Calls that multiply in float and are in no amount, as no module stands for them.

    Returns:
        ``'total'`` multiplications; shares of them, 0 to 1: ``'quantized'`` in all, of which
        ``'layers'`` and ``'products'``; ``'one_float'`` is the part of these whose one factor is
        float all the same, as the image is that the first layer reads; ``'uncounted'`` as given.
    """
    shares = multiplication_shares(amounts)
    layers = sum(shares[layer.name] for layer in plan.layers)
    products = sum(shares[product.name] for product in plan.products)
    one_float = sum(shares[layer.name] for layer in plan.layers
                    if layer.activation.num_bits is None)
    one_float += sum(shares[product.name] for product in plan.products
                     if None in (product.a.num_bits, product.b.num_bits))
    return {'total': sum(amounts.values()), 'quantized': layers + products, 'layers': layers,
            'products': products, 'one_float': one_float, 'uncounted': uncounted}


def _side(side: str, num_bits: int | None, calls: ProductCalls, activation: ActivationSpec,
          asked: ProductSpec) -> ProductInput:
    by_head = asked.granularity == 'head' and (calls.heads(side) or 1) > 1
    return ProductInput(
        num_bits, activation.symmetry, activation.scale_search, activation.norm,
        'head' if by_head else 'tensor', asked.softmax if side in calls.softmax else None)
