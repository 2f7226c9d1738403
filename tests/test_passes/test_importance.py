"""Squared gradients of raw outputs: closed forms, and models that are made to predict."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from mmbitsplit.functional.probe_vectors import of_divergence, of_squared_error
from mmbitsplit.models import last_layers, prepare, watch
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.importance import ImportancePass
from mmbitsplit.passes.replay import ReplayPoint, barrier
from mmbitsplit.passes.sampling import generator_of
from mmbitsplit.planning import make_plan
from mmbitsplit.structures import QuantSpec, Unit

SEED = 3


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def images(count=2, size=6, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, size, size, generator=generator) for _ in range(count)]


def call(model, batch):
    return model(batch)


def look(model, batches, run=call, replay=(), kind='squared_error', units=(), **more):
    """Maps by batch and layer, and what the pass returns."""
    points = [ReplayPoint(model, name) for name in replay]
    forwards = Forwards.of(model, batches, run, seed=SEED, replay_points=points)
    with forwards.whole(0):
        flow = watch(model, lambda: run(model, batches[0]), inputs=batches[0],
                     barriers=[barrier(points)])
    prepared = prepare(model, flow, make_plan(model, flow, QuantSpec()))
    found = {}
    importance = ImportancePass(
        prepared=prepared, forwards=forwards, last=last_layers(flow), kind=kind, seed=SEED,
        units=units, rows=frozenset(prepared.layers), take=found.__setitem__, **more,
    ).run(lambda done, total: None)
    return found, importance


class Chain(nn.Module):
    """Linear from end to end."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.third = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.third(self.second(self.first(x)))


def chain_unit(name):
    return Unit(name=name, modules=(name,), layers=(name,))


def test_gradients_of_a_linear_net_are_those_of_its_weights():
    model, batches = seeded(Chain), images()
    weight = model.third.weight.detach()[..., 0, 0] @ model.second.weight.detach()[..., 0, 0]
    outputs = [model(batch).detach() for batch in batches]
    found, importance = look(model, batches, units=[chain_unit('first'), chain_unit('third')])
    channels = torch.zeros(4, dtype=torch.float64)
    for number, output in enumerate(outputs):
        squares = sum((weight.t() @ of_squared_error(
            [output], generator_of((SEED, 'probe', number, probe)))[0].flatten(2)).square()
            for probe in range(3))  # (B, 4, positions)
        torch.testing.assert_close(found[number]['first'][0], squares.sum(1).flatten())
        channels += squares.double().mean((0, 2))
    torch.testing.assert_close(importance.channels['first'], channels / channels.mean(),
                               rtol=1e-5, atol=0)
    # Signs of one size at the raw outputs: all count alike there.
    torch.testing.assert_close(importance.channels['third'], torch.ones(2).double())
    assert not importance.unreached


def test_many_probes_come_to_the_diagonal():
    model, batches = seeded(Chain), images(1)
    weight = model.third.weight.detach()[..., 0, 0] @ model.second.weight.detach()[..., 0, 0]
    _, importance = look(model, batches, units=[chain_unit('first')], probes=40)
    expected = weight.square().sum(0).double()
    torch.testing.assert_close(importance.channels['first'], expected / expected.mean(),
                               rtol=0.1, atol=0)


def test_vectors_have_the_curvature_of_the_divergence_for_covariance():
    logits = torch.tensor([[2.0, 0.0, -1.0]]).expand(20000, 3)
    drawn = of_divergence(logits, torch.Generator().manual_seed(0)).double()
    p = logits[0].double().softmax(-1)
    torch.testing.assert_close(drawn.t() @ drawn / len(drawn), p.diag() - p.outer(p),
                               rtol=0, atol=5e-3)


def test_the_importance_of_class_scores_is_their_variance():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scores = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.scores(torch.relu(self.body(x)).mean((2, 3)))

    model = seeded(Classifier)
    with torch.no_grad():
        model.scores.bias.copy_(torch.tensor([3.0, 0.0, -3.0]))
    batches = images(20)
    p = torch.cat([model(batch).softmax(-1) for batch in batches]).double().detach()
    _, importance = look(model, batches, kind='cross_entropy', units=[chain_unit('scores')],
                         probes=20)
    expected = (p * (1 - p)).mean(0)
    torch.testing.assert_close(importance.channels['scores'], expected / expected.mean(),
                               rtol=0.15, atol=0)


class Predicting(nn.Module):
    """Blocks gradients in all ways that predicting allows; ``plain`` computes the same without."""

    def __init__(self, plain=False):
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.body, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.plain = plain

    def forward(self, x):
        x = self.stem(x)
        if self.plain:
            x = x * torch.sigmoid(self.gate(x)) * 2
            return self.head(torch.relu(self.body(torch.relu(x))))
        with torch.no_grad():
            gate = torch.sigmoid(self.gate(x))
            x = x * gate
            gate += 1  # what the product has saved for its gradient
            x *= 2
        x = checkpoint.checkpoint(lambda x: torch.relu_(self.body(torch.relu_(x))), x,
                                  use_reentrant=False)
        output = self.head(x)
        output.detach().numpy()
        shown = output.numpy() if not output.requires_grad or not torch.is_grad_enabled() \
            else np.asarray(output)
        assert shown.shape == output.shape
        kept = output.clone()
        return kept, output.sigmoid_()


@torch.no_grad()
def predict(model, batch):
    return model(batch)


@torch.inference_mode()
def infer(model, batch):
    return model(batch)


@pytest.mark.parametrize('run', [predict, infer])
def test_nothing_that_predicting_does_blocks_gradients(run):
    model, plain = seeded(Predicting), seeded(lambda: Predicting(plain=True))
    enter = torch.inference_mode.__enter__
    found, _ = look(model, images(), run=run)
    assert torch.inference_mode.__enter__ is enter
    expected, _ = look(plain, images())
    for batch, maps in expected.items():
        assert found[batch].keys() == maps.keys()
        for name, (squares,) in maps.items():
            assert len(found[batch][name]) == 1
            torch.testing.assert_close(found[batch][name][0], squares)
            assert squares.any()


class Deciding(nn.Module):
    """Picks rows of a map by scores, which is replayed."""

    def __init__(self):
        super().__init__()
        self.stem, self.score = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def select(self, scores):
        scores.mul_(2)
        best, index = scores.flatten(1).topk(5)
        return index, best.numpy()

    def forward(self, x):
        x = torch.relu(self.stem(x))
        index, weight = self.select(self.score(x))
        rows = x.flatten(2).transpose(1, 2).gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        return self.second(torch.relu(self.first(rows)) * torch.as_tensor(weight).unsqueeze(-1))


def test_what_a_replay_point_decides_is_a_constant():
    model, batches = seeded(Deciding), images(1)
    found, _ = look(model, batches, replay=['select'])
    # Scores are raw outputs of their own: their gradient is what their probes are.
    squares, = found[0]['score']
    torch.testing.assert_close(squares, squares[:1].expand_as(squares))
    chosen = model.select(model.score(torch.relu(model.stem(batches[0]))).detach())[0]
    alone = seeded(Deciding)
    alone.score.weight.data.zero_()  # no gradient comes from the scores to the stem
    alone.select = lambda scores: (chosen, torch.ones(2, 5).numpy())
    stem, = look(alone, batches)[0][0]['stem']
    picked = torch.zeros(2, 36, dtype=torch.bool).scatter(1, chosen, True).flatten()
    assert not stem[~picked].any() and stem[picked].any()


def test_what_no_gradient_reaches_is_named():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.lost = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.head(torch.relu(self.stem(x)) + self.lost(x).detach())

    found, importance = look(seeded(Beside), images(), units=[chain_unit('lost')])
    assert importance.unreached == {'lost'}
    assert not found[0]['lost'][0].any() and found[0]['lost'][0].shape == (2 * 4 * 4,)
    assert torch.equal(importance.channels['lost'], torch.ones(4).double())


def norms():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Conv2d(4, 2, 1))


def broken():
    model = norms()
    with torch.no_grad():
        model[3].bias.fill_(float('nan'))
    return model


@pytest.mark.parametrize('make, around, message', [
    (norms, torch.inference_mode, r"on batch 0.*'0' is called in inference mode.*sampling='even'"),
    (broken, nullcontext, r"at layer '0'.*NaN or infinite on batch 0.*sampling='even'")])
def test_what_cannot_be_done_is_refused_and_the_model_is_as_before(make, around, message):
    model = seeded(make)
    with pytest.raises(ValueError, match=message), around():
        look(model, images())
    assert not any(module._forward_hooks for module in model.modules())
    assert model[2].weight.requires_grad and model[2].weight.grad is None
    assert checkpoint.checkpoint.__module__.startswith('torch')
