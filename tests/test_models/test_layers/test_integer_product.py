"""Products that multiply bytes give what they give in float, but for the rounding of float32."""

import copy
import pickle

import pytest
import torch
from attention_nets import Attention
from torch import nn

from mmbitsplit.models import integer_layers, to_integer
from mmbitsplit.models.layers import integer_product
from mmbitsplit.models.layers.integer_support import why_no_integers, why_no_products
from mmbitsplit.models.layers.product import Product
from mmbitsplit.structures import QParams
from mmbitsplit.structures.products import Log2Params, ProductSolution

pytestmark = pytest.mark.skipif(why_no_integers() is not None, reason='torch without bytes')
exact_here = pytest.mark.skipif(why_no_products() is not None, reason=str(why_no_products()))

HEADS, SIZE = 3, 64
SIDES = {  # scales, zero points, lowest and highest code
    'softmax': ([1 / 255], [0], 0, 255),
    'signed': ([0.03], [0], -128, 127),
    'asymmetric': ([0.03], [77], 0, 255),
    'narrow': ([0.4], [5], 0, 15),
    'a head': ([0.02, 0.03, 0.05], [0, 130, 255], 0, 255),
}
# Orders that matrices have in memory: plain, columns first, cut out of one tensor, and neither.
ORDERS = {
    'plain': lambda x: x,
    'columns': lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    'cut': lambda x: torch.stack([x.transpose(1, 2)] * 3, 2)[:, :, 1].transpose(1, 2),
    'steps': lambda x: x.repeat_interleave(2, -1)[..., ::2],
}


def qparams(name):
    scales, points, low, high = SIDES[name]
    return QParams(torch.tensor(scales), torch.tensor(points), low, high, unit=True)


def product_of(a='asymmetric', b='signed', seed=0):
    """A product, and inputs that leave the range of their codes at both ends."""
    product, generator = Product(), torch.Generator().manual_seed(seed)
    product.install(ProductSolution(qparams(a), qparams(b)))
    draw = lambda *shape: 3 * torch.randn(*shape, generator=generator)  # noqa: E731
    return product.eval(), draw(2, HEADS, SIZE, 40), draw(2, HEADS, 40, SIZE)


def exact(product, a, b):
    """In double precision."""
    y = 1.0
    for quantizer in product.in_use().values():
        y = y * quantizer.scale.double().view(-1, 1, 1)
    codes = [quantizer(x) for quantizer, x in zip(product.in_use().values(), (a, b))]
    return y * (codes[0].double() @ codes[1].double())


def assert_bytes(product, a, b, expected):
    """It is what is expected, and it was multiplied as bytes."""
    found = product.byte_product().product(a, b)
    assert (product(a, b) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(found, product(a, b))


@exact_here
@pytest.mark.parametrize('a', SIDES)
@pytest.mark.parametrize('b', SIDES)
def test_both_sides(a, b):
    product, x, y = product_of(a, b)
    expected = exact(product, x, y)
    assert to_integer(product).integer == ('',)
    assert_bytes(product, x, y, expected)


@exact_here
@pytest.mark.parametrize('a', ORDERS)
@pytest.mark.parametrize('b', ORDERS)
def test_orders_in_memory(a, b):
    product, x, y = product_of('a head', 'asymmetric')
    expected = exact(product, x, y)
    to_integer(product)
    assert_bytes(product, ORDERS[a](x), ORDERS[b](y), expected)


@exact_here
def test_matrices_without_heads_and_with_more_dimensions(monkeypatch):
    monkeypatch.setattr(integer_product.IntegerProduct, 'least', 0)
    product, x, y = product_of()
    to_integer(product)
    for shape in (lambda t: t[0, 0], lambda t: t[0], lambda t: t.unsqueeze(1)):
        assert_bytes(product, shape(x), shape(y), exact(product, shape(x), shape(y)))
    several = x[:, :, None, :5], y[:, :, None]
    assert_bytes(product, *several, exact(product, *several))


@exact_here
def test_where_floats_are_taken():
    product, x, y = product_of()
    before = product(x, y)
    to_integer(product)
    multiplied = product.byte_product()
    assert multiplied.product(x[..., :8, :], y) is None and 'so small' in product.left
    assert integer_layers(product).left.keys() == {''}
    assert multiplied.product(x, y[0]) is None  # one matrix for several
    assert multiplied.product(x.double(), y) is None
    missing = x.clone()
    missing[0, 0, 0, 0] = float('nan')
    assert product(missing, y).isnan().any() and product.left is not None
    assert product(x.requires_grad_(), y).requires_grad
    with torch.no_grad():
        assert (product(x, y) - before).abs().max() <= 1e-5 * before.abs().max()
    assert product.left is None and integer_layers(product).integer == ('',)


@exact_here
def test_back_again_copies_and_other_scales():
    product, x, y = product_of()
    before = product(x, y)
    to_integer(product)
    now = product(x, y)
    for other in (copy.deepcopy(product), pickle.loads(pickle.dumps(product))):
        assert other.integers and torch.equal(other(x, y), now)
    product.install(ProductSolution(qparams('a head'), qparams('narrow')))
    assert_bytes(product, x, y, exact(product, x, y))
    product.install(ProductSolution(Log2Params(4), qparams('narrow')))
    assert product.byte_product() is None and product(x, y).isfinite().any()
    assert 'powers of two' in to_integer(product, 'auto').left['']
    product.install(ProductSolution(qparams('asymmetric'), qparams('signed')))
    to_integer(product, False)
    assert not product.integers and torch.equal(product(x, y), before)


@exact_here
def test_several_widths():
    product, x, y = product_of()
    narrow = QParams(torch.tensor([0.5]), torch.tensor([0]), -8, 7, unit=True)
    product.install(ProductSolution(qparams('signed'), qparams('signed'), (narrow,), (narrow,)))
    to_integer(product)
    for widths in ((8, 8), (4, 8), (8, 4)):
        product.use(*widths)
        assert_bytes(product, x, y, exact(product, x, y))


def test_what_cannot():
    product, x, y = product_of()
    product.install(ProductSolution(None, qparams('signed')))
    with pytest.raises(ValueError, match='none of 1 layers'):
        to_integer(nn.ModuleList([product]))
    assert 'float' in to_integer(product, 'auto').left['']


@exact_here
def test_masks_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(integer_product.IntegerProduct, 'least', 0)
    torch.manual_seed(0)
    attention, x = Attention().eval(), torch.randn(2, 20, 16)
    attention.scores.install(ProductSolution(qparams('asymmetric'), qparams('signed')))
    attention.mixed.install(ProductSolution(qparams('softmax'), qparams('signed')))
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, -4:] = True
    with torch.no_grad():
        before = attention(x, mask)
        assert len(to_integer(attention).integer) == 2
        after = attention(x, mask)
    assert attention.scores.byte_product().used and attention.mixed.byte_product().used
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
