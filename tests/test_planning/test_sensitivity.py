"""Each layer alone: the model is itself again afterwards, and codes are those of calibrate."""

import copy

import pytest
import torch
from torch import nn

from mmbitsplit.calibration import ReplayPoint, Sensitivity, calibrate
from mmbitsplit.planning.sensitivity import relative_error
from mmbitsplit.structures import QuantSpec


class PlainNet(nn.Module):
    """Three layers and no batch norm, so that nothing is folded."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.middle(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def probe(residual_net, images, make_spec, run_model):
    return Sensitivity(residual_net(), images(), make_spec(), run=run_model)


def test_more_bits_mean_less_error_in_every_layer(probe):
    assert torch.is_grad_enabled()
    for plan in probe.layers:
        trials = list(probe.trials(plan, (2, 4, 8), (2, 4, 8)))
        weights = [trial.error for trial in trials if trial.what == 'weight']
        inputs = [trial.error for trial in trials if trial.what == 'activation']
        assert weights[0] > weights[1] > weights[2] > 0, plan.name
        assert [trial.num_bits for trial in trials[:3]] == [2, 4, 8]
        assert all(trial.layer == plan.name for trial in trials)
        if 'first' in plan.role:
            assert not inputs  # the image stays float
        else:
            assert inputs[0] > inputs[1] > inputs[2] > 0, plan.name


def test_raw_outputs_are_those_of_the_last_layers(probe):
    assert set(probe.outputs) == {'classify', 'regress'}


def test_the_model_is_float_again_after_each_trial(probe, images):
    x = images()[0]
    with torch.no_grad():
        before = probe.model(x)
        for plan in probe.layers[:3]:
            for _ in probe.trials(plan, (2,), (2,)):
                changed = probe.model(x)
                assert any(not torch.equal(a, b) for a, b in zip(changed, before))
            assert all(torch.equal(a, b) for a, b in zip(probe.model(x), before))
    assert relative_error(probe.reference, probe._raw_outputs()) == 0


def test_a_caller_that_stops_leaves_the_model_float(probe, images):
    x = images()[0]
    with torch.no_grad():
        before = probe.model(x)
        trials = probe.trials(probe.layers[1], (2, 4))
        next(trials)
        trials.close()
        assert all(torch.equal(a, b) for a, b in zip(probe.model(x), before))


@pytest.mark.parametrize('name', ['stem', 'middle', 'head'])
def test_codes_are_those_of_a_calibration_that_skips_all_others(seeded, images, make_spec,
                                                                run_model, name):
    model = seeded(PlainNet)
    probe = Sensitivity(copy.deepcopy(model), images(), make_spec(), run=run_model)
    plan = next(plan for plan in probe.layers if plan.name == name)
    for _ in probe.trials(plan, (3,)):
        ours = probe.model.get_submodule(name)
        codes, scale, bias = ours.codes.clone(), ours.weight_scale.clone(), ours.bias.clone()
    others = {'stem', 'middle', 'head'} - {name}
    spec = make_spec(weight=dict(num_bits=3), activation=dict(num_bits=None),
                     first_last=dict(weight_bits=None),
                     overrides=[dict(match=other, skip=True) for other in others])
    calibrate(model, images(), spec, run=run_model)
    theirs = model.get_submodule(name)
    assert torch.equal(codes, theirs.codes)
    assert torch.equal(scale, theirs.weight_scale) and torch.equal(bias, theirs.bias)


def test_the_error_is_that_of_the_outputs(seeded, images, run_model):
    """With all positions sampled, the error is the model's own relative output error."""
    spec = QuantSpec.from_dict({'calibration': {'rows_per_layer': 10 ** 6}})
    batches = images()
    probe = Sensitivity(seeded(PlainNet), batches, spec, run=run_model)
    with torch.no_grad():
        expected = torch.cat([probe.model(x) for x in batches])
        trials = probe.trials(probe.layers[1], (2,))
        trial = next(trials)
        outputs = torch.cat([probe.model(x) for x in batches])
    spread = (expected - expected.mean(0)).square().sum()
    assert trial.error == pytest.approx(float((outputs - expected).square().sum() / spread),
                                        rel=1e-4)


class Choosing(nn.Module):
    """A head that looks at the places its first part finds most remarkable."""

    def __init__(self):
        super().__init__()
        self.score, self.refine = nn.Conv2d(3, 1, 3, padding=1), nn.Linear(3, 4)

    def choose(self, scores):
        return scores.flatten(1).topk(5).indices

    def forward(self, x):
        places = self.choose(self.score(x))
        found = x.flatten(2).gather(2, places.unsqueeze(1).expand(-1, 3, -1))
        return self.refine(found.transpose(1, 2))


def test_choices_that_depend_on_the_data_are_replayed(seeded, images, make_spec, run_model):
    model = seeded(Choosing)
    probe = Sensitivity(model, images(), make_spec(), run=run_model,
                        replay_points=[ReplayPoint(model, 'choose')])
    trials = {plan.name: next(iter(probe.trials(plan, (2,)))) for plan in probe.layers}
    # The places stay: of two last layers, the one that is not quantized has no error.
    assert set(probe.outputs) == {'score', 'refine'}
    for name in trials:
        other = ({'score', 'refine'} - {name}).pop()
        for _ in probe.trials(next(plan for plan in probe.layers if plan.name == name), (2,)):
            pass
        assert torch.equal(probe.reference[other], probe._raw_outputs()[other])
        assert trials[name].error > 0


def test_no_images_are_refused(residual_net, make_spec, run_model):
    with pytest.raises(ValueError, match='empty'):
        Sensitivity(residual_net(), [], make_spec(), run=run_model)


def test_error_without_spread_and_over_several_layers():
    constant, other = torch.ones(1, 1, 4), torch.tensor([[[0.0, 2.0, 0.0, 2.0]]])
    assert relative_error({'a': constant}, {'a': constant}) == 0
    # In parts of the outputs themselves.
    assert relative_error({'a': constant}, {'a': constant + 1}) == 1
    assert relative_error({'a': other, 'b': constant},
                          {'a': other + 1, 'b': constant}) == pytest.approx(0.5)


def test_generators_are_as_before_and_random_steps_draw_alike(images, make_spec, run_model):
    class Shuffled(PlainNet):
        def forward(self, x):
            return super().forward(x[..., torch.randperm(x.shape[-1])])

    torch.manual_seed(0)
    model = Shuffled().eval()
    before = torch.get_rng_state()
    probe = Sensitivity(model, images(), make_spec(), run=run_model)
    assert relative_error(probe.reference, probe._raw_outputs()) == 0
    assert torch.equal(torch.get_rng_state(), before)
