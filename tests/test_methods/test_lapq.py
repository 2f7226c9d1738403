"""LAPQ and the model's loss: what is compared, how it falls, what is left in the layers."""

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import Journal, ReplayPoint, calibrate, read_request
from mmbitsplit.models import watch
from mmbitsplit.passes.capture import SAMPLES_PER_LAYER
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import Tape
from mmbitsplit.solving.model_loss import ModelLoss

LOW = dict(weight=dict(num_bits=2), activation=dict(num_bits=2))


class Classifier(nn.Module):
    """Two hidden layers and one of class scores."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                  nn.Linear(16, 16), nn.ReLU())
        self.scores = nn.Linear(16, 5)
        for parameter in self.parameters():
            parameter.data *= 2.5  # as sure of itself as a trained one

    def forward(self, x):
        return self.scores(self.body(x))


def inputs(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(32, 8, generator=generator) for _ in range(count)]


def lapq(**options):
    return dict(type='LAPQ', **options)


def loss_of(model, wanted, batches):
    with torch.no_grad():
        return float(sum(-(wanted(x).double().softmax(-1)
                           * model(x).double().log_softmax(-1)).sum() for x in batches)
                     / sum(map(len, batches)))


def test_the_loss_falls_and_is_that_of_the_model_left_behind(seeded):
    batches = inputs()
    model, wanted = seeded(Classifier), seeded(Classifier)
    report = quantize_model(model, batches, dict(
        **LOW, method=lapq(max_evaluations=150, loss_batches=3)))
    found = report.refinement
    assert found['loss'] < found['loss_start'] <= min(found['losses'])
    assert found['evaluations'] <= 150 and len(found['losses']) == len(found['norms'])
    assert 2 <= found['norm'] <= 4
    assert found['loss'] == pytest.approx(loss_of(model, wanted, batches[:3]), rel=1e-6)
    for row in report.layers:
        layer = dict(model.named_modules())[row.name]
        assert row.weight_scale[1] == pytest.approx(float(layer.weight_scale.max()))
        assert 'scales were changed' in row.notes[-1]


def test_it_is_at_least_as_good_as_its_layerwise_start_on_other_inputs(seeded):
    batches, unseen = inputs(16), inputs(8, seed=9)
    wanted, losses = seeded(Classifier), {}
    for name, method in (('start', lapq(norms=(2.0,), max_iterations=0)),
                         ('end', lapq(max_evaluations=300, loss_batches=16))):
        model = seeded(Classifier)
        quantize_model(model, batches, dict(**LOW, method=method))
        losses[name] = loss_of(model, wanted, unseen)
    assert losses['end'] < losses['start']


def test_same_codes_again(seeded, assert_same_state):
    models = [seeded(Classifier) for _ in range(2)]
    reports = [quantize_model(model, inputs(), dict(**LOW, method=lapq(max_evaluations=60)))
               for model in models]
    assert_same_state(*models)
    assert reports[0].refinement == reports[1].refinement


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
@pytest.mark.parametrize('correction', [True, False])
def test_codes_do_not_depend_on_the_input_factor(mode, correction, seeded):
    """Whatever the search did to the input scales, weights are those of the codes and scales."""
    model = seeded(Classifier)
    quantize_model(model, inputs(), dict(
        weight=dict(num_bits=4), activation=dict(num_bits=4, mode=mode),
        method=lapq(max_evaluations=80, weight_correction=correction)))
    wanted = seeded(Classifier)
    for name in ('body.2', 'body.4'):
        layer, weight = (dict(net.named_modules())[name] for net in (model, wanted))
        wanted_weight = weight.weight.detach()
        error = (layer.weight - wanted_weight).square().sum() / wanted_weight.square().sum()
        assert float(error) < 0.05
        assert ('weight_offset' in layer.state_dict()) == correction


def test_weights_only_moves_weight_scales_alone(seeded):
    model = seeded(Classifier)
    report = quantize_model(model, inputs(), dict(
        weight=dict(num_bits=2), activation=dict(num_bits=None),
        method=lapq(max_evaluations=60)))
    assert report.refinement['loss'] < report.refinement['loss_start']
    assert all(row.activation_scale is None for row in report.layers)


def test_detector_like_models_are_compared_by_all_raw_outputs(residual_net, images):
    report = quantize_model(residual_net(), images(), dict(
        **LOW, method=lapq(max_evaluations=30)))
    assert 0 < report.refinement['loss'] <= report.refinement['loss_start'] < 2
    with pytest.raises(ValueError, match="loss='cross_entropy'.*classify, regress.*squared_error"):
        quantize_model(residual_net(), images(), dict(**LOW, method=lapq(loss='cross_entropy')))


class Decides(nn.Module):
    """Keeps the rows of highest score for a second stage, as proposals do."""

    def __init__(self):
        super().__init__()
        self.first, self.score, self.second = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 3)

    def choose(self, scores):
        return scores.flatten().argsort(descending=True)[:5]

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.second(x[self.choose(self.score(x))])


def test_recorded_decisions_are_replayed_for_the_loss(seeded):
    model = seeded(Decides)
    report = quantize_model(model, inputs(), dict(**LOW, method=lapq(max_evaluations=20)),
                            replay_points=[ReplayPoint(model, 'choose')])
    # Rows stay aligned: even at 2 bits the outputs are near, not those of other rows.
    assert report.refinement['loss'] < 0.3


@pytest.mark.parametrize('kind', ['cross_entropy', 'squared_error'])
def test_the_loss_of_the_same_model_is_the_least(kind, seeded):
    model, batches, tape = seeded(Classifier), inputs(), Tape()
    flow = watch(model, lambda: model(batches[0]))
    forwards = Forwards.of(model, batches, lambda model, x: model(x), seed=0)
    loss = ModelLoss(forwards, flow, tape, kind, 2)
    with loss.recording():
        for number in forwards.batches:
            forwards.alone(number)
    assert sorted(loss.wanted) == [0, 1]
    same = loss()
    if kind == 'squared_error':
        assert same == 0
    else:
        assert same == pytest.approx(loss_of(model, seeded(Classifier), inputs()[:2]))
    with torch.no_grad():
        model.scores.weight *= 1.1
    assert loss() > same
    assert ModelLoss(forwards, flow, tape, 'auto', 2).kind == 'cross_entropy'


class Killed(Exception):
    """Stands for a kill."""


def test_killed_in_the_search_it_goes_on_there(seeded, tmp_path, assert_same_state):
    """Layers come from the journal, losses of before too: nothing is measured twice."""
    spec = read_request(dict(**LOW, method=lapq(max_evaluations=40, loss_batches=2)))

    def go(model, folder, most=10 ** 6, resume=True):
        ran = []

        def run(model, x):
            ran.append(1)
            if len(ran) > most:
                raise Killed
            return model(x)

        journal = Journal.open(folder, {'of': 'this test'}, resume=resume)
        return *calibrate(model, inputs(), spec, run=run, journal=journal), len(ran)

    models = [seeded(Classifier) for _ in range(3)]
    _, whole, forwards = go(models[0], tmp_path / 'whole')
    for most in (12, 30, 60):  # between layers, at the norms, in Powell's method
        with pytest.raises(Killed):
            go(seeded(Classifier), tmp_path / 'killed', most, resume=most > 12)
    _, resumed, rest = go(models[1], tmp_path / 'killed')
    assert_same_state(models[0], models[1])
    assert resumed.refinement == whole.refinement
    assert resumed.calibration['layers_taken_over'] == len(resumed.layers) == 4
    for ours, theirs in zip(resumed.layers, whole.layers):
        assert {**vars(ours), 'seconds': 0} == {**vars(theirs), 'seconds': 0}
    assert rest < forwards - 30


def test_errors_are_those_of_the_finished_model(seeded):
    """Against hooks on both models, on the batch that is held out."""
    batches, model, wanted = inputs(), seeded(Classifier), seeded(Classifier)
    report = quantize_model(model, batches, dict(
        **LOW, method=lapq(max_evaluations=60), calibration=dict(holdout=0.25)))
    outputs = []
    for net in (model, wanted):
        seen = {}
        for row in report.layers:
            dict(net.named_modules())[row.name].register_forward_hook(
                lambda module, args, output, name=row.name, seen=seen: seen.update({name: output}))
        with torch.no_grad():
            net(batches[3])
        outputs.append(seen)
    for row in report.layers:
        ours, theirs = (seen[row.name].double() for seen in outputs)
        spread = (theirs - theirs.mean(0)).square().sum()
        assert row.error == pytest.approx(float((ours - theirs).square().sum() / spread), rel=1e-4)
        assert 'that of the finished model' in row.notes[-1]


def test_what_it_keeps_is_in_the_estimate(seeded):
    """Samples of every layer's inputs, and the outputs that the loss compares."""
    plain, refined = (quantize_model(seeded(Classifier), inputs(), dict(**LOW, method=method))
                      for method in (dict(type='MSE'), lapq(max_evaluations=1)))
    samples = 4 * SAMPLES_PER_LAYER * (8 + 3 * 16)
    assert refined.estimated_bytes - plain.estimated_bytes == samples + 4 * 4 * 32 * 5
