"""However attention is written: opened, a module gives the numbers it gave, and multiplies no
activations outside of its children."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from attention_nets import left_to_open
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.opening import find_calls, open_calls, reopen

DIM, HEADS = 16, 4


class Written(nn.Module):
    """Attention around one of several ways to write its two products."""

    def __init__(self, products):
        super().__init__()
        self.qkv, self.proj, self.products = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), products

    def forward(self, x, mask=None):
        samples, length, _ = x.shape
        q, k, v = self.qkv(x).view(samples, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = self.products(q, k, v, mask)
        return self.proj(y.transpose(1, 2).reshape(samples, length, DIM))


def _masked(scores, mask):
    return scores if mask is None else scores + mask


def plain(q, k, v, mask):
    return _masked(q @ k.transpose(-2, -1) / 2, mask).softmax(-1) @ v


def methods(q, k, v, mask):
    return _masked((q * 0.5).matmul(k.mT), mask).softmax(-1).matmul(v)


def merged(q, k, v, mask):
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    added = torch.zeros(1) if mask is None else mask
    weights = torch.baddbmm(added, q, k.mT, alpha=0.5).softmax(-1)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS))


def letters(q, k, v, mask):
    scores = torch.einsum('bhid, bhjd -> bhij', q, k) / 2
    return torch.einsum('...ij,...jd->...id', F.dropout(_masked(scores, mask).softmax(-1), 0.0), v)


def transposed(q, k, v, mask):
    weights = _masked(q @ k.mT / 2, mask).softmax(-1)
    return (v.mT @ weights.mT).mT


def fused(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def check(model, *inputs, names=('product_qk', 'product_av'), **options):
    """Opens a model and holds it against itself; returns what was opened."""
    model.eval()
    fresh, before = copy.deepcopy(model), {name: (type(one), list(one._parameters), list(
        one._modules), len(one._forward_pre_hooks)) for name, one in model.named_modules()}
    with torch.no_grad():
        expected = model(*inputs, **options)
        opened = open_calls(model, lambda: model(*inputs, **options), inputs=(inputs, options))
        assert opened.closed == ()
        _same(model(*inputs, **options), expected)
        again = find_calls(model, lambda: model(*inputs, **options), inputs=(inputs, options))
        assert left_to_open(again) == [] and again.closed == []
        reopen(fresh, json.loads(json.dumps(opened.describe())))
        _same(fresh(*inputs, **options), expected)
        copied = copy.deepcopy(model)
        _same(copied(*inputs, **options), expected)
        found = {name.rpartition('.')[2]: one for name, one in model.named_modules()
                 if isinstance(one, Product)}
        assert {*found} == {*names}
        opened.close()
        _same(model(*inputs, **options), expected)
    assert before == {name: (type(one), list(one._parameters), list(one._modules), len(
        one._forward_pre_hooks)) for name, one in model.named_modules()}
    return copied


def _same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('products', [plain, methods, merged, letters, transposed, fused])
def test_products_however_they_are_written(products, masked):
    mask = torch.full((5, 5), -torch.inf).triu(1) if masked else None
    opened = check(Written(products), torch.randn(2, 5, DIM), mask)
    assert opened.product_av.softmax in ('a', 'b') and opened.product_qk.softmax is None


masks = st.sampled_from(['none', 'bool', 'float', 'heads'])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_multihead_attention_in_all_its_arguments(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    torch.manual_seed(data.draw(st.integers(0, 99)))
    batch_first, samples = draw(False, True), draw(None, 1, 3)
    kind = draw('self', 'shared', 'apart', 'kdim')
    length, source = draw(1, 4, 7), draw(3, 5)
    kdim, vdim = (6, 10) if kind == 'kdim' else (DIM, DIM)
    attention = nn.MultiheadAttention(
        DIM, HEADS, batch_first=batch_first, bias=draw(True, False), add_bias_kv=draw(True, False),
        add_zero_attn=draw(True, False), dropout=0.3,
        **({'kdim': kdim, 'vdim': vdim} if kind == 'kdim' else {}))
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)

    def tokens(count, width):
        x = torch.randn(count, width) if samples is None else torch.randn(samples, count, width)
        return x if samples is None or batch_first else x.transpose(0, 1)

    query = tokens(length, DIM)
    key = query if kind == 'self' else tokens(source, kdim)
    value = key if kind in ('self', 'shared') else tokens(source, vdim)
    source = length if kind == 'self' else source
    options = {'need_weights': draw(True, False), 'average_attn_weights': draw(True, False)}
    mask = data.draw(masks)
    if mask != 'none':
        shape = (length, source) if mask != 'heads' else ((samples or 1) * HEADS, length, source)
        hidden = torch.rand(shape) < 0.4
        hidden[..., 0] = False
        options['attn_mask'] = hidden if mask == 'bool' else torch.where(
            hidden, -torch.inf, torch.randn(shape))
    if draw(True, False):
        padding = torch.rand(source if samples is None else (samples, source)) < 0.4
        padding[..., 0] = False
        options['key_padding_mask'] = padding if options.get('attn_mask', padding).dtype \
            == torch.bool else torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
    opened = check(attention, query, key, value, **options)
    together = kind == 'self'
    assert hasattr(opened, 'in_proj') is together and hasattr(opened, 'k_proj') is not together


@pytest.mark.parametrize('options', [
    {'is_causal': True}, {'scale': 0.3}, {'enable_gqa': True},
    {'attn_mask': torch.tensor([[False] * 5, *[[True] * 5] * 4])},
    {'attn_mask': torch.zeros(5, 5).index_fill(0, torch.tensor([1]), -torch.inf)}],
    ids=['causal', 'scale', 'gqa', 'all_masked', 'all_minus_infinity'])
def test_the_fused_function_in_all_its_arguments(options):
    class Direct(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, **options)

    keys = 2 if 'enable_gqa' in options else HEADS
    check(Direct(), torch.randn(2, HEADS, 5, 8), torch.randn(2, keys, 5, 8),
          torch.randn(2, keys, 5, 6))


@pytest.mark.parametrize('need_weights', [False, True])
def test_a_causal_hint(need_weights):
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    x = torch.randn(2, 4, DIM)
    check(nn.MultiheadAttention(DIM, HEADS, batch_first=True), x, x, x, attn_mask=mask,
          is_causal=True, need_weights=need_weights)


def test_the_fused_path_of_an_encoder_layer_hides_nothing():
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True)
    check(layer, torch.randn(2, 5, DIM))
    check(layer, torch.randn(2, 5, DIM),
          src_key_padding_mask=torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
    check(nn.TransformerDecoderLayer(DIM, HEADS, 32), torch.randn(3, 2, DIM),
          torch.randn(4, 2, DIM))


LETTERS = 'abcd'


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_contraction_of_two_tensors(data):
    sizes = {letter: data.draw(st.integers(1, 3)) for letter in LETTERS}
    left = data.draw(st.lists(st.sampled_from(LETTERS), min_size=1, unique=True))
    right = data.draw(st.lists(st.sampled_from(LETTERS), min_size=1, unique=True))
    shared = sorted({*left} & {*right})
    if not shared:
        return
    inner = data.draw(st.sampled_from(shared))
    allowed = sorted({*left, *right} - {inner})
    out = data.draw(st.permutations(allowed)) if allowed else []
    out = out[:data.draw(st.integers(0, len(out)))]
    dots = data.draw(st.booleans())
    equation = f'{"..." * dots}{"".join(left)},{"..." * dots}{"".join(right)}' \
        f'->{"..." * dots}{"".join(out)}'

    class Equation(nn.Module):
        def forward(self, a, b):
            return torch.einsum(equation, a, b)

    def tensor(letters, extra):
        # A size of 1 is repeated.
        return torch.randn(*extra * dots, *(
            1 if data.draw(st.integers(0, 4)) == 0 else sizes[letter] for letter in letters))

    check(Equation(), tensor(left, (2, 1)), tensor(right, (3,)), names=['product_0'])
