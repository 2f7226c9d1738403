"""Tuning as a part of a calibration: what it changes, what it may not, how it is reported."""


import pytest
import torch
from torch import nn
from width_study import Classifier as ImageClassifier

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import Journal, ReplayPoint, calibrate, memory_check
from mmbitsplit.methods.tuning import OutputTuning
from mmbitsplit.models import quantized_layers
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.solving.tuning import split_batches
from mmbitsplit.structures import CalibrationSpec

LOW = dict(weight=dict(num_bits=2), activation=dict(num_bits=2))
STAGE = dict(type='OutputTuning', steps=30, learning_rate=5e-3, judge_every=10, inner=0)


class Classifier(nn.Module):
    """Ends in one layer of class scores."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                                  nn.Linear(16, 16), nn.ReLU())
        self.scores = nn.Linear(16, 5)
        for parameter in self.parameters():
            parameter.data *= 2.5  # as sure of itself as a trained one

    def forward(self, x):
        return self.scores(self.body(x))


def inputs(count=8, seed=0, rows=32, width=8):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(rows, width, generator=generator) for _ in range(count)]


def divergence(model, wanted, batches):
    with torch.no_grad():
        return float(sum((wanted(x).softmax(-1) * (wanted(x).log_softmax(-1)
                                                   - model(x).log_softmax(-1))).sum()
                         for x in batches) / sum(map(len, batches)))


def codes(model):
    return {name: layer.codes for name, layer in quantized_layers(model)}


def test_a_classifier_comes_nearer_to_the_float_model(seeded):
    models, reports = [seeded(Classifier) for _ in range(2)], []
    for model, tuning in zip(models, ([], STAGE)):
        reports.append(quantize_model(model, inputs(), dict(**LOW, tuning=tuning)))
    wanted, unseen = seeded(Classifier), inputs(16, seed=9)
    assert divergence(models[1], wanted, unseen) < divergence(models[0], wanted, unseen)
    found, = reports[1].tuning
    assert not reports[0].tuning and 'tuning' not in reports[0].seconds
    assert (found['type'], found['loss'], found['kept']) == ('OutputTuning', 'kl', 'tuned')
    assert found['held_out_after'] < found['held_out_before']
    assert (found['fit_batches'], found['held_out_batches'], found['unseen']) == (7, 1, True)
    assert found['learned'] == {'scales': 53, 'input_scales': 48, 'output_scales': 0, 'biases': 53,
                                'codes': 0, 'zero_points': 0, 'output_zero_points': 0}
    assert 0 < found['seconds'] <= reports[1].seconds['tuning'] + 1
    for name, value in codes(models[0]).items():  # what is learned is what is beside the codes
        assert torch.equal(value, codes(models[1])[name])
    for row in reports[1].layers:
        layer = dict(quantized_layers(models[1]))[row.name]
        assert row.weight_scale[1] == pytest.approx(float(layer.weight_scale.max()))
        assert 'were tuned' in row.notes[-1]
    assert not any(value.requires_grad for value in models[1].state_dict().values())


def test_losses_of_the_report_are_those_of_the_model(seeded):
    model = seeded(Classifier)
    report = quantize_model(model, inputs(4), dict(**LOW, tuning=dict(STAGE, holdout=0.5)))
    assert not report.tuning[0]['unseen']  # an eighth of four batches is none
    found, wanted = report.tuning[0], seeded(Classifier)
    both = (found['fit_after'] + found['held_out_after']) / 2
    assert both == pytest.approx(divergence(model, wanted, inputs(4)), rel=1e-4)


def test_the_best_scale_and_bias_of_a_layer_are_found(seeded):
    """Codes of two bits and float inputs: the best scale and bias are a least squares fit."""
    model, batches = seeded(lambda: nn.Sequential(nn.Linear(8, 4))), inputs(1) * 4
    wanted = seeded(lambda: nn.Sequential(nn.Linear(8, 4)))
    quantize_model(model, batches, dict(
        weight=dict(num_bits=2), activation=dict(num_bits=None), method=dict(type='MSE'),
        first_last=dict(weight_bits=None),
        tuning=dict(STAGE, steps=300, learning_rate=0.02, batch_size=1, loss='raw',
                    holdout=0.5)))
    layer, x = model[0], batches[0]
    with torch.no_grad():
        for channel in range(4):
            products = x @ layer.codes[channel].float()
            columns = torch.stack([products, torch.ones_like(products)], 1)
            scale, bias = torch.linalg.lstsq(columns, wanted(x)[:, channel]).solution
            assert float(layer.weight_scale[channel]) == pytest.approx(float(scale), rel=1e-3)
            assert float(layer.product_bias[channel]) == pytest.approx(float(bias), abs=1e-3)


@pytest.mark.parametrize('mode', ['per_tensor', 'per_channel', 'ecaq'])
def test_held_out_loss_never_rises_and_every_layer_is_reached(residual_net, images, mode):
    report = quantize_model(residual_net(), images(16, size=12), dict(
        # The second stage throws all about.
        weight=dict(num_bits=2), activation=dict(num_bits=3, mode=mode),
        first_last=dict(weight_bits=2, activation_bits=3),
        tuning=[dict(STAGE, judge_every=5), dict(STAGE, learning_rate=1.0)]))
    first, second = report.tuning
    assert first['loss'] == 'raw' and first['kept'] == 'tuned'
    assert first['held_out_after'] < first['held_out_before']
    assert second['held_out_before'] == first['held_out_after']
    assert second['held_out_after'] <= second['held_out_before']
    assert 'unreached' not in first


def test_where_nothing_is_better_the_layers_stay_bit_for_bit(residual_net, images,
                                                             assert_same_state):
    models = [residual_net() for _ in range(2)]
    quantize_model(models[0], images(4), dict(**LOW, tuning=[]))
    report = quantize_model(models[1], images(4), dict(
        **LOW, tuning=dict(STAGE, steps=4, learning_rate=3.0)))
    assert report.tuning[0]['kept'] == 'start'
    assert_same_state(*models)
    assert not any('were tuned' in note for row in report.layers for note in row.notes)


def test_outputs_are_tuned_too_where_they_are_quantized(residual_net, images):
    report = quantize_model(residual_net(), images(4), dict(
        weight=dict(num_bits=3), activation=dict(num_bits=3, placement='deploy', output_bits=3),
        tuning=dict(STAGE, scales=False, biases=False)))
    assert report.tuning[0]['learned']['output_scales'] > 0
    assert report.tuning[0]['held_out_after'] <= report.tuning[0]['held_out_before']


def test_zero_points_are_tuned_where_ranges_have_both_signs(seeded):
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)))
    report = quantize_model(model, inputs(), dict(
        weight=dict(num_bits=8), activation=dict(num_bits=3, symmetry='asymmetric'),
        first_last=dict(weight_bits=8, activation_bits=3), method=dict(type='MSE'), tuning=dict(
            STAGE, scales=False, biases=False, input_scales=False, zero_points=True,
            learning_rate=0.02)))
    found = report.tuning[0]
    assert found['learned']['zero_points'] == 2  # the image stays float
    assert found['held_out_after'] < found['held_out_before']
    for layer in [*dict(quantized_layers(model)).values()][1:]:
        assert layer.input_quantizer.zero_point.dtype == torch.int32


def test_batches_to_judge_on_are_those_that_no_layer_was_solved_on():
    """And no others: learning from them would not be seen, layers would not be judged on them."""
    spec = CalibrationSpec(holdout=0.25)
    fit, held_out, unseen = split_batches(10, spec, 0.5)
    sampler = Sampler(spec, 10, {'it': 1})
    for batch in range(10):
        rows = sampler.held_out('it', batch, 5)
        assert bool(rows.all()) == (batch in held_out) != (batch in fit) == (not rows.any())
    assert unseen and len(held_out) == 2
    fit, held_out, unseen = split_batches(3, spec, 0.4)
    assert sorted(fit + held_out) == [0, 1, 2] and len(held_out) == 1 and not unseen


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


def test_recorded_decisions_are_replayed(seeded):
    model = seeded(Decides)
    low = dict(LOW, first_last=dict(weight_bits=2, activation_bits=2), method=dict(type='MSE'))
    report = quantize_model(model, inputs(16), dict(**low, tuning=dict(STAGE, judge_every=5)),
                            replay_points=[ReplayPoint(model, 'choose')])
    found = report.tuning[0]
    # Rows stay aligned: even at 2 bits the outputs are near, not those of other rows.
    assert found['held_out_after'] < found['held_out_before'] < 0.6  # of other rows: about 2
    assert 'unreached' not in found


def test_a_model_that_turns_gradients_off_is_tuned_too(seeded):
    def careful(model, x):
        with torch.inference_mode() if float(x.sum()) > 0 else torch.no_grad():
            return model(x)

    plain = quantize_model(seeded(Classifier), inputs(), dict(**LOW, tuning=STAGE))
    off = quantize_model(seeded(Classifier), inputs(), dict(**LOW, tuning=STAGE), run=careful)
    assert off.tuning[0]['judged'] == plain.tuning[0]['judged']
    with torch.no_grad():  # as it was: what follows turns gradients off again
        assert not torch.is_grad_enabled()


def test_a_model_that_detaches_its_outputs_half_way(seeded):
    """What is behind the cut is tuned; what is before is said to be out of reach."""
    class Cut(Classifier):
        def forward(self, x):
            return self.scores(self.body(x).detach())

    report = quantize_model(seeded(Cut), inputs(), dict(**LOW, tuning=STAGE))
    assert report.tuning[0]['unreached'] == ['body.0', 'body.2', 'body.4']


class Loose(nn.Module):
    """As many rows reach the last layer as values of the first say; nobody replays that."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x[x[:, 0] > 0.1])


@pytest.mark.parametrize('make, batches, tuning, words', [
    (Loose, inputs(), {}, 'other shapes than the float one.*replay point'),
    (Classifier, inputs(1), {}, 'holds calibration batches out.*batch_size'),
    (Decides, inputs(), dict(loss='kl'), "loss='kl' is for.*score, second"),
])
def test_what_cannot_be_tuned_is_refused_and_the_model_is_as_before(
        make, batches, tuning, words, seeded, assert_same_state):
    model = seeded(make)
    with pytest.raises(ValueError, match=words):
        quantize_model(model, batches, dict(**LOW, tuning=dict(STAGE, **tuning),
                                            overrides=[dict(match='last', skip=True)]
                                            if make is Loose else []))
    assert_same_state(model, seeded(make))


@pytest.mark.parametrize('make, batches, words', [
    (Loose, inputs(), 'rows by values'),
    (Classifier, inputs(1), 'one batch'),
    (Classifier, inputs(), 'memory budget is 0.1 GB'),
])
def test_what_cannot_be_tuned_stays_as_solved_where_that_is_allowed(
        make, batches, words, seeded, assert_same_state, monkeypatch):
    request = dict(**LOW, calibration=dict(memory_budget=0.1),
                   overrides=[dict(match='last', skip=True)] if make is Loose else [])
    if 'memory' in words:
        monkeypatch.setattr(memory_check, 'tuning_bytes', lambda *others: 1 << 30)
    models = [seeded(make) for _ in range(2)]
    with pytest.warns(UserWarning, match=f'left out.*as BitSplit has solved it: .*{words}'):
        report = quantize_model(models[0], batches, request)  # the default method's own stage
    assert words in report.tuning[0]['left_out']
    quantize_model(models[1], batches, dict(request, tuning=[]))
    assert_same_state(*models)


class Fails(torch.autograd.Function):
    """Has gradients a few times, then an error of torch's kind."""

    left = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Fails.left -= 1
        if Fails.left < 0:
            raise RuntimeError('not enough memory: you tried to allocate\nmuch')
        return gradient


class Failing(Classifier):
    """Runs out of memory in a later batch's gradients, say."""

    def forward(self, x):
        first, *others = self.body
        x = Fails.apply(first(x))
        for module in others:
            x = module(x)
        return self.scores(x)


def test_an_error_of_torch_on_the_way_leaves_the_model_as_solved(seeded, assert_same_state,
                                                                 monkeypatch):
    models = [seeded(Failing) for _ in range(2)]
    monkeypatch.setattr(Fails, 'left', 5)
    with pytest.warns(UserWarning, match='left out.*as BitSplit has solved it: not enough memory'):
        report = quantize_model(models[0], inputs(), LOW)
    assert Fails.left == -1  # it had begun
    assert report.tuning[0]['left_out'] == 'not enough memory: you tried to allocate'
    quantize_model(models[1], inputs(), dict(LOW, tuning=[]))
    assert_same_state(*models)
    monkeypatch.setattr(Fails, 'left', 5)
    with pytest.raises(RuntimeError, match='not enough memory'):  # what was asked for by name
        quantize_model(seeded(Failing), inputs(), dict(LOW, tuning=STAGE))


def test_batches_come_mirrored_too(residual_net, images):
    """What is learned is another than without; what is judged on is not mirrored."""
    models, found = [residual_net() for _ in range(2)], []
    for model, mirrored in zip(models, (False, 'auto')):
        report = quantize_model(model, images(16, size=12), dict(**LOW, tuning=dict(
            STAGE, mirrored=mirrored, steps=10)))
        found.append(report.tuning[0])
    # The same but for what outputs are divided by: their spread, that of mirrored ones with it.
    assert found[0]['held_out_before'] == pytest.approx(found[1]['held_out_before'], rel=0.02)
    assert found[0]['judged'][1:] != found[1]['judged'][1:]
    assert found[0]['fit_batches'] == found[1]['fit_batches'] == 14
    assert [one['mirrored'] for one in found] == [False, True]


def test_class_scores_are_learned_from_images_as_they_are(seeded, images):
    report = quantize_model(seeded(ImageClassifier), images(16, size=12), dict(**LOW, tuning=dict(
        STAGE, mirrored='auto', steps=2)))
    assert (report.tuning[0]['loss'], report.tuning[0]['mirrored']) == ('kl', False)


def test_large_batches_are_cut_for_more_steps(seeded):
    """Nothing else changes: what is judged is the mean over the same images."""
    found = [quantize_model(seeded(Classifier), inputs(4), dict(**LOW, tuning=dict(
        STAGE, images=images, steps=None, rounds=2, judge_every=100))).tuning[0]
        for images in (4, None)]
    assert [one['fit_batches'] for one in found] == [24, 3]
    assert [one['held_out_batches'] for one in found] == [8, 1]
    assert [one['steps'] for one in found] == [48, 6]
    for name in ('fit_before', 'held_out_before'):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)
    assert found[0]['fit_after'] != found[1]['fit_after']


@pytest.mark.parametrize('if_possible', [False, True])
def test_an_error_on_the_way_takes_back_what_was_moved(seeded, monkeypatch, assert_same_state,
                                                       if_possible):
    def tune(stage, problem):
        problem.move_to(torch.full((problem.size,), 0.3, dtype=torch.float64))
        raise ValueError('quantization.tuning: on the way')

    models, request = [seeded(Classifier) for _ in range(2)], dict(LOW, tuning=[])
    quantize_model(models[0], inputs(), request)
    monkeypatch.setattr(OutputTuning, 'tune', tune)
    request['tuning'] = dict(STAGE, if_possible=if_possible, codes=True)
    if if_possible:
        with pytest.warns(UserWarning, match='left out.*: on the way'):
            quantize_model(models[1], inputs(), request)
        assert_same_state(*models)
    else:
        with pytest.raises(ValueError, match='on the way'):
            quantize_model(models[1], inputs(), request)
        assert_same_state(models[1], seeded(Classifier))


class Killed(Exception):
    """Stands for a kill."""


def test_killed_in_a_stage_it_comes_to_the_same_values(residual_net, images, make_spec, run_model,
                                                       assert_same_state, tmp_path):
    spec = make_spec(**LOW, tuning=STAGE)
    models = [residual_net() for _ in range(3)]
    _, whole = calibrate(models[0], images(), spec, run=run_model)

    def interrupt(step):
        if step.stage == 'tuning' and step.done == 7:
            raise Killed

    with pytest.raises(Killed):
        calibrate(models[1], images(), spec, run=run_model, progress=interrupt,
                  journal=Journal.open(tmp_path, {'of': 'this test'}, resume=False))
    assert_same_state(models[1], residual_net())  # float, as it was
    _, report = calibrate(models[2], images(), spec, run=run_model,
                          journal=Journal.open(tmp_path, {'of': 'this test'}, resume=True))
    assert_same_state(models[2], models[0])
    assert report.calibration['layers_taken_over'] == len(report.layers)
    assert [{**found, 'seconds': 0} for found in report.tuning] == \
        [{**found, 'seconds': 0} for found in whole.tuning]
    assert report.tuning[0]['kept'] == 'tuned'


def test_scales_that_a_residual_stream_shares_stay(residual_net, images, make_spec, run_model):
    """And the float model's outputs are recorded without rounding streams."""
    spec = dict(weight=dict(num_bits=3), activation=dict(num_bits=3, placement='residual'))
    model = residual_net()
    prepared, report = calibrate(model, images(16, size=12), make_spec(
        **spec, tuning=dict(STAGE, judge_every=5)), run=run_model)
    found = report.tuning[0]
    assert found['kept'] == 'tuned' and found['held_out_before'] > 1e-4
    before, _ = calibrate(residual_net(), images(16, size=12), make_spec(**spec), run=run_model)
    shared = {name for stream in prepared.plan.streams for name in stream.readers}
    assert shared
    for name, layer in prepared.layers.items():
        assert not torch.equal(layer.weight_scale, before.layers[name].weight_scale)
        if layer.qparams is not None and name in shared:
            assert torch.equal(layer.qparams.scale, before.layers[name].qparams.scale)
