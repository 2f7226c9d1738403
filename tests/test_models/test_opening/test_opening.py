"""What is opened, what stays closed and why, and what opening does not disturb."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmbitsplit.models.opening import (
    OpenedCallError,
    describe_opened,
    find_calls,
    open_calls,
    opened_modules,
    release_originals,
    reopen,
)

DIM = 8


class Calls(nn.Module):
    """A module that does what it is given, with a matrix of its own."""

    def __init__(self, body):
        super().__init__()
        self.w = nn.Parameter(torch.randn(DIM, DIM))
        self.b = nn.Parameter(torch.randn(DIM))
        self.inner = nn.Linear(DIM, DIM)
        self.body = body

    def forward(self, *args):
        return self.body(self, *args)


def opened(module, *args):
    """Opens a module; returns its children and what stays closed."""
    module.eval()
    with torch.no_grad():
        expected = module(*args)
        found = open_calls(module, lambda: module(*args), inputs=args)
        torch.testing.assert_close(module(*args), expected, rtol=1e-4, atol=1e-5)
    return found, {name: type(child).__name__ for name, child in module.named_children()
                   if name != 'inner'}


X = torch.randn(3, 5, DIM)


@pytest.mark.parametrize(('body', 'children'), [
    (lambda m, x: F.linear(x, m.w, m.b), {'linear_0': 'Linear'}),
    (lambda m, x: F.linear(x[0, 0], m.w), {'linear_0': 'Linear'}),
    (lambda m, x: x @ m.w + m.b, {'linear_0': 'Linear'}),
    (lambda m, x: m.w @ x.mT, {'linear_0': 'Linear'}),
    (lambda m, x: torch.addmm(m.b, x[0], m.w), {'linear_0': 'Linear'}),
    (lambda m, x: torch.addmm(x[0], x[0], m.w.t(), beta=0.5, alpha=2), {'linear_0': 'Linear'}),
    (lambda m, x: torch.einsum('bnd,de->ben', x, m.w), {'linear_0': 'Linear'}),
    (lambda m, x: F.linear(F.linear(x, m.w[:3]), m.w[3:].t()[:3, :3]), {}),
    (lambda m, x: torch.cat([F.linear(x, m.w[:3], m.b[:3]), F.linear(x, m.w[3:], m.b[3:])], -1),
     {'linear_0': 'Linear', 'linear_1': 'Linear'}),
    (lambda m, x: F.linear(F.linear(x, m.w, m.b), m.w, m.b), {'linear_0': 'Linear'}),
    (lambda m, x: F.linear(x, m.w, m.b * 2), {'linear_0': 'Linear'}),
    (lambda m, x: F.conv2d(x.mT[..., None], m.w[..., None, None], m.b), {'conv_0': 'Conv2d'}),
    (lambda m, x: F.conv1d(x.mT, m.w[..., None], m.b, stride=2), {'conv_0': 'Conv2d'}),
    (lambda m, x: F.conv1d(x[:, :1], m.w.view(8, 1, 8), m.b * 2, 1, 'same', (2,)),
     {'conv_0': 'Conv2d'}),
    (lambda m, x: x @ (m.w * 2), {'product_0': 'Product'}),
    (lambda m, x: x[0, 0] @ x[0].mT @ x[0], {'product_0': 'Product', 'product_1': 'Product'}),
    (lambda m, x: x + (m.w @ m.w)[0], {}),
    (lambda m, x: (x.long() @ x.long().mT).float(), {}),
    (lambda m, x: F.linear(x, m.inner.weight, m.inner.bias), {}),
    (lambda m, x: m.inner.forward(x), {})],
    ids=['linear', 'vector', 'matmul', 'on_the_left', 'addmm', 'addmm_scaled', 'einsum', 'a_part',
         'parts', 'twice', 'bias_computed', 'conv', 'conv1d', 'conv1d_options', 'weight_computed',
         'vectors', 'constants',
         'counts', 'of_a_layer', 'forward_of_a_layer'])
def test_what_is_a_layer_and_what_a_product(body, children):
    module = Calls(body)
    _, found = opened(module, X)
    assert found == children
    assert ('w' in module._parameters) is not ('linear_0' in found or 'conv_0' in found)
    copied = copy.deepcopy(module)
    release_originals(copied)
    assert torch.equal(copied.w, module.w) and torch.equal(copied.b, module.b)


@pytest.mark.parametrize(('body', 'args', 'reason'), [
    (lambda m, x: m.inner(x) + F.linear(x, m.inner.weight, m.inner.bias), (X,), 'called too'),
    (lambda m, x: F.linear(x, m.inner.weight[:2]), (X,), 'a part of the weight'),
    (lambda m, x: F.linear(x, m.w[:2]), (X,), 'not all'),
    (lambda m, x: F.conv3d(x.mT[..., None, None], m.w[..., None, None, None]), (X,),
     'kind of layer'),
    (lambda m, x: F.conv1d(x[0].mT, m.w[..., None]), (X,), 'kind of layer'),
    (lambda m, x: F.conv1d(x.mT, x[:1, :1, :3].expand(8, 8, 3)), (X,), 'computed from the input'),
    (lambda m, x: torch.tensordot(x, x, 3), (X,), 'not known'),
    (lambda m, x: torch.einsum('ijk,ijk,ijk->i', x, x, x), (X,), '3 tensors'),
    (lambda m, x: torch.einsum('ii,ij->ij', x[0, :5, :5], x[0]), (X,), 'diagonal'),
    (lambda m, x: torch.mm(x[0], m.w, out=torch.empty(5, 8)), (X,), 'out='),
    (lambda m, x: x @ x.mT * torch.rand(1, generator=m.generator), (X,), 'differs by')])
def test_what_stays_closed_says_why(body, args, reason):
    module = Calls(body)
    module.generator = torch.Generator()
    module.eval()
    with torch.no_grad():
        found = open_calls(module, lambda: module(*args), inputs=args)
    assert any(reason in call.reason for call in found.closed), found.closed
    assert not opened_modules(module) or reason == 'called too'


def test_a_conv1d_of_several_calls_stays_closed():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.step, self.once = nn.Conv1d(5, 5, 1), nn.Conv1d(5, 5, 1)

        def forward(self, x):
            return self.once(self.step(self.step(x)))

    module = Steps()
    found, _ = opened(module, X)
    assert [(call.module, call.function) for call in found.closed] == [('step', 'conv1d')]
    assert 'called several times' in found.closed[0].reason
    assert list(opened_modules(module)) == ['once']


def test_calls_that_differ_stay_closed():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = Calls(lambda m, x, n: sum(x @ x.mT for _ in range(n)))

        def forward(self, x):
            return self.one(x, 1) + self.one(x, 2)

    found, _ = opened(Twice(), X)
    assert [(call.module, call.reason) for call in found.closed] == [
        ('one', 'their number differs from call to call')]


def test_a_call_with_more_or_fewer_or_other_products_is_an_error_that_names_the_module():
    model = nn.Sequential(Calls(lambda m, x: x @ x.mT if m.fine else m.other(x)))
    model[0].fine = True
    opened(model, X)
    model[0].fine = False
    for other, words in ((lambda x: x @ x.mT @ x, 'more often'), (lambda x: x, '0 times'),
                         (lambda x: torch.einsum('bij,bkj->bik', x, x), 'calls einsum')):
        model[0].other = other
        with pytest.raises(OpenedCallError, match=f"Module '0' .*{words}"):
            model(X)
    model[0].fine = True  # no mode is left behind
    assert model(X).shape == (3, 5, 5)


def test_a_child_opened_too_answers_for_its_own_calls_alone():
    inner = Calls(lambda m, x: x @ x.mT)
    outer = nn.Sequential(Calls(lambda m, x: x @ m.part(x) @ m.part[0].forward(x.mT)))
    outer[0].part = nn.Sequential(inner)
    with pytest.raises(RuntimeError):
        outer(X)  # of shapes
    outer[0].body = lambda m, x: m.part(x.mT) @ x.mT @ x @ m.part[0].forward(x.mT)
    assert opened(outer, X)[0].closed == ()
    assert {name: sum('product' in child for child in module._modules)
            for name, module in opened_modules(outer).items()} == {'0': 4, '0.part.0': 1}


def test_caches_of_keys_and_values():
    def grown(m, x):
        m.cache = x if m.cache is None else torch.cat([m.cache, x], 1)
        return (x @ m.cache.mT).softmax(-1) @ m.cache

    def given(m, x, cache):
        cache.append(x)
        return (x @ torch.cat(cache, 1).mT).softmax(-1) @ torch.cat(cache, 1)

    kept, handed = (Calls(body).eval() for body in (grown, given))
    kept.cache, caches = None, ([], [])
    for module, run in ((kept, lambda: kept(X)), (handed, lambda: handed(X, []))):
        twin, found = copy.deepcopy(module), open_calls(module, run, inputs=X)
        module.cache = None  # of the runs
        assert found.closed == () and 'product_av' in module._modules
        for _ in range(3):
            results = [one(X) if module is kept else one(X, cache)
                       for one, cache in zip((module, twin), caches)]
            torch.testing.assert_close(*results)


def test_inputs_changed_in_place_are_seen_once():
    module = Calls(lambda m, x: x.mul_(1.1) @ x.mT).eval()
    assert open_calls(module, lambda: module(X.clone())).closed == ()
    assert 'product_0' in module._modules


def test_it_is_pickled_moved_and_closed():
    module = Calls(torch_linear)
    found, _ = opened(module, X)
    expected = module(X)
    assert torch.equal(pickle.loads(pickle.dumps(module))(X), expected)
    wide = copy.deepcopy(module).double()
    torch.testing.assert_close(wide(X.double()), expected.double(), rtol=1e-4, atol=1e-5)
    assert wide.w.dtype == torch.float64
    description = found.describe()
    found.close()
    assert type(module) is Calls and list(module._parameters) == ['w', 'b']
    assert torch.equal(module(X), expected) and not module._forward_pre_hooks
    with pytest.raises(ValueError, match="no parameter 'w'"):
        del module._parameters['w']
        reopen(module, description)
    with pytest.raises(ValueError, match="no module '0'"):
        reopen(nn.Linear(1, 1), {'0': description['']})


def torch_linear(m, x):
    return F.linear(x, m.w, m.b) @ x.mT


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_under_autocast_it_gives_what_it_gave(dtype):
    attention = nn.MultiheadAttention(DIM, 2, batch_first=True).eval()
    written = Calls(lambda m, x: torch.baddbmm(x[:, :, :5], x, x.mT).softmax(-1) @ F.linear(x, m.w))
    with torch.no_grad(), torch.autocast('cpu', dtype):
        for module, run in ((attention, lambda: attention(X, X, X)), (written, lambda: written(X))):
            expected = run()
            assert open_calls(module, run, inputs=X).closed == ()
            torch.testing.assert_close(run(), expected, rtol=0.05, atol=0.05)


def test_gradients_are_those_of_the_closed_module():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True).eval()
    twin = copy.deepcopy(layer)
    open_calls(layer, lambda: layer(X), inputs=X)
    found = []
    for one in (layer, twin):
        x = X.clone().requires_grad_()
        one(x).square().sum().backward()
        found.append((x.grad, one.linear1.weight.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.self_attn.in_proj.weight.grad,
                               twin.self_attn.in_proj_weight.grad, rtol=1e-4, atol=1e-5)


def test_threads_run_it_side_by_side():
    module = Calls(lambda m, x: m.inner((x @ x.mT).softmax(-1) @ x))
    opened(module, X)
    inputs, found, expected = [torch.randn(2, n, DIM) for n in range(1, 9)], {}, {}

    def run(number):
        for _ in range(20):
            found[number] = module(inputs[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    expected = {number: module(x) for number, x in enumerate(inputs)}
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], expected[number]) for number in range(8))


def test_traced_and_exported_it_gives_the_same():
    model = nn.Sequential(nn.MultiheadAttention(DIM, 2, batch_first=True)).eval()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner[0](x, x, x, need_weights=False)[0]

    whole = Whole()
    opened(whole, X)
    expected = whole(X)
    with torch.no_grad():
        traced = torch.jit.trace(whole, (X,), check_trace=False)
        torch.testing.assert_close(traced(X), expected)
        exported = torch.export.export(whole, (X,), strict=False)
        torch.testing.assert_close(exported.module()(X), expected)


def test_methods_whose_results_are_replayed_are_not_looked_at():
    class Decodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(DIM, DIM)

        def decode(self, x):
            return x @ x.mT

        def forward(self, x, skip=False):
            x = self.inner(x)
            return x @ x.mT if skip else self.decode(x @ x.mT)

    module = Decodes().eval()
    open_calls(module, lambda: module(X), inputs=X, hidden=('decode',))
    assert [row['kind'] for row in describe_opened(module)['']['rows']] == ['product']
    assert module(X).shape == module(X, skip=True).shape
    assert not find_calls(module, lambda: module(X), inputs=X, hidden=('decode',)).sequences[''][0]
