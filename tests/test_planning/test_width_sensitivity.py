"""The table of widths is what a naive loop measures, and the model is float again afterwards."""

import copy

import pytest
import torch
from calibration_nets import ResidualNet
from calibration_nets import _calls_of as calls_of
from calibration_nets import _spec as make_request
from lockstep_nets import Optional
from pyramids import Detector, LevelHead
from thread_team import together
from torch import nn
from width_study import BUDGET, Classifier

from mmbitsplit.calibration import ReplayPoint, build_method, calibrate
from mmbitsplit.calibration.journal import WidthFiles
from mmbitsplit.models import apply, prepare, watch
from mmbitsplit.passes.capture import Sampler
from mmbitsplit.planning import make_plan, width_losses, width_solutions
from mmbitsplit.planning.width_bank import bytes_for
from mmbitsplit.planning.width_choices import with_widths
from mmbitsplit.planning.width_tables import noise_in, sensitivities
from mmbitsplit.solving.solve_layer import solve_layer
from mmbitsplit.structures import Widths, WidthTable


def naive(model, batches, spec, base, name, widths):
    """Loss of the base model with one layer at other widths: kl of one output, else raw."""
    flow = watch(model.eval(), lambda: model(batches[0]), inputs=batches[0])
    plan = make_plan(model, flow, with_widths(spec, {**base, name: widths}))
    prepared = prepare(model, flow, plan)
    with torch.no_grad():
        wanted = [model(x) for x in batches]  # batch norms folded
    sampler = Sampler(spec.calibration, len(batches), {one: 1 for one in prepared.layers})
    solutions = {}
    for own in plan.layers:
        layer, captures, targets = prepared.layers[own.name], [], []
        with calls_of(layer) as calls, torch.no_grad():
            for x in batches:
                model(x)
        for number, (x, y) in enumerate(calls):
            targets.append(sampler.target(own.name, layer, 0, number, x.shape, y))
            captures.append(sampler.capture(own.name, layer, 0, number, x))
        solutions[own.name] = solve_layer(layer, own, build_method(spec.method), captures,
                                          targets).solution
    for one, solution in solutions.items():
        apply(prepared.layers[one], solution)
    with torch.no_grad():
        found = [model(x) for x in batches]
    if not isinstance(wanted[0], tuple):
        wanted, found = torch.cat(wanted).double(), torch.cat(found).double()
        wanted = wanted.log_softmax(-1)
        return float((wanted.exp() * (wanted - found.log_softmax(-1))).sum(-1).mean())
    errors = []
    for ours, theirs in zip(zip(*wanted), zip(*found)):
        ours, theirs = torch.cat(ours).double(), torch.cat(theirs).double()
        errors.append((ours - theirs).square().mean() / ours.var(correction=0))
    return float(sum(errors) / len(errors))


@pytest.mark.parametrize(('make', 'method'), [
    (Classifier, 'BitSplit'), (ResidualNet, 'RoundToNearest')])
def test_entries_are_those_of_a_naive_loop(seeded, images, make_spec, study, make, method):
    request = dict(budget=BUDGET, method=dict(type=method),
                   activation=dict(mode='per_tensor'))
    with study(seeded(make), **request) as found:
        table = found.measure()
        for name, widths in (('blocks.0.conv2', Widths(2, 2)), ('blocks.1.conv1', Widths(8, 8))):
            expected = naive(seeded(make), images(), make_spec(**request), found.base, name,
                             widths)
            assert found.measured.layers[name][widths] == pytest.approx(expected, rel=1e-6)
            assert table.layers[name][widths] == pytest.approx(
                max(0.0, expected - found.base_loss), rel=1e-6)
        assert found.losses.loss.kind == ('kl' if make is Classifier else 'raw')
        assert found.choices['stem'] == (Widths(8),) and found.base['classify'] == Widths(8)
        # Four float forwards, four of the base model, four for each layer and narrower width.
        assert found.losses.forwards == 8 + 4 * 4 * 2


def test_more_bits_are_more_accurate_and_a_plan_can_be_measured(seeded, study):
    with study(seeded(ResidualNet)) as found:
        table = found.measure()
        for name, row in table.layers.items():
            if len(row) > 1:
                assert row[Widths(2, 2)] > row[Widths(4, 4)] > row[Widths(8, 8)] == 0, name
        assert not found.noise
        one = {'blocks.0.conv1': Widths(2, 2)}
        assert found.loss_of(one) == found.measured.layers['blocks.0.conv1'][Widths(2, 2)]
        everywhere = {name: row[0] for name, row in found.choices.items()}
        assert found.loss_of(everywhere) > 2 * found.loss_of(one)
        assert found.loss_of({}) == found.base_loss
        with pytest.raises(ValueError, match="'blocks.0.conv1' has no solution at W3A3"):
            found.loss_of({'blocks.0.conv1': Widths(3, 3)})
        with pytest.raises(ValueError, match="'stern'"):
            found.loss_of({'stern': Widths(8)})


def test_weights_are_measured_beside_inputs_of_8_bits(seeded, study):
    """Rounding inputs to 3 bits would hide what weights lose."""
    def measured(bits):
        with study(seeded(ResidualNet), budget={**BUDGET, 'activation_widths': None},
                   activation=dict(mode='per_tensor', num_bits=bits)) as found:
            return found.measure(), found.base_loss, found.loss_of({'blocks.0.conv1': Widths(2)})

    (table, base, narrow), (wanted, base8, narrow8) = measured(3), measured(8)
    assert table == wanted and len(table.layers['blocks.0.conv1']) == 3
    assert base > 20 * base8 and narrow > narrow8  # plans have the inputs that were asked for


def test_the_model_is_float_again_also_after_an_error(seeded, images, study, assert_same_state):
    model, untouched = seeded(ResidualNet).train(), seeded(ResidualNet)
    modules = dict(model.named_modules())

    def check():
        assert dict(model.named_modules()).items() == modules.items() and model.training
        assert_same_state(model, untouched)
        with torch.no_grad():
            for x in images():
                assert all(map(torch.equal, copy.deepcopy(model).eval()(x), untouched(x)))

    with study(model) as found, torch.no_grad():
        found.loss_of({'blocks.0.conv1': Widths(2, 2)})
        assert not torch.equal(model(images()[0])[1], untouched(images()[0])[1])
        found.bank.take_out()
        assert torch.allclose(model(images()[0])[1], untouched(images()[0])[1], atol=1e-5)
    check()

    def failing_at(stage):
        def progress(step):
            if (step.stage, step.step) == (stage, 2):
                raise KeyboardInterrupt
        return progress

    for stage in ('gather', 'solve', 'measure'):
        with pytest.raises(KeyboardInterrupt), study(model, progress=failing_at(stage)) as found:
            found.measure()
        check()


def test_what_is_handed_out_is_what_would_be_computed(seeded, study, monkeypatch):
    """Heads that levels share are called several times; layers before are not computed again."""
    def measured():
        with study(seeded(lambda: Detector(LevelHead()))) as found:
            found.measure()
            return found.measured, found.loss_of({'neck.down.1': Widths(2, 2),
                                                  'heads.0.towers.1.2': Widths(4, 4)})
    kept = measured()
    assert len(kept[0].layers['heads.0.towers.0.0']) == 3
    monkeypatch.setattr(width_losses, 'SHARED_BYTES', 0)
    assert measured() == kept
    # Positions of all layers at once, or of one after the other.
    monkeypatch.setattr(width_solutions, 'ROW_BYTES', 1)
    assert measured() == kept


def test_layers_that_some_batches_call(seeded, images, study):
    batches = [x + (1 if number % 2 else -1) for number, x in enumerate(images())]
    with study(seeded(Optional), batches, first_last=dict(weight_bits=None,
                                                          activation_bits=None)) as found:
        narrow = {'branch': Widths(2, 2)}
        losses = found.losses_of(narrow)
        assert losses[::2] == found.losses.base[::2]  # dark: the branch is not called
        assert all(ours > base for ours, base in zip(losses[1::2], found.losses.base[1::2]))
        assert found.losses.forwards == 4 + 4 + 2


class Choosing(nn.Module):
    """Looks at the places that its first part finds most remarkable."""

    def __init__(self):
        super().__init__()
        self.score, self.first = nn.Conv2d(3, 1, 3, padding=1), nn.Linear(3, 6)
        self.second = nn.Linear(6, 4)

    def choose(self, scores):
        return scores.flatten(1).topk(5).indices

    def forward(self, x):
        places = self.choose(self.score(x))
        found = x.flatten(2).gather(2, places.unsqueeze(1).expand(-1, 3, -1))
        return self.second(torch.relu(self.first(found.transpose(1, 2))))


def test_choices_that_depend_on_the_data_are_replayed(seeded, study):
    model = seeded(Choosing)
    request = dict(budget={**BUDGET, 'activation_widths': None},
                   first_last=dict(weight_bits=None))
    with study(model, points=[ReplayPoint(model, 'choose')], **request) as found:
        narrow = found.losses_of({'score': Widths(2)})
        assert found.losses.loss.kind == 'raw'
    with study(model, points=[ReplayPoint(model, 'choose')], **request) as found:
        table = found.measure()
    # At other places 2 bits of the second layer would not change the outputs alike.
    assert all(ours > 0 for ours in narrow)
    assert all(row[Widths(2)] > row[Widths(4)] > 0 for row in table.layers.values())


def test_several_processes_measure_what_one_does(seeded, images, study):
    models = [seeded(ResidualNet) for _ in range(3)]  # threads share one generator

    def work(team):
        batches = [images()[number] for number in team.batches(4)]
        with study(models.pop(), batches, team=team) as found:
            return found.measure(), found.measured, found.loss_of({'blocks.1.conv1': Widths(2, 2)})

    one = together(1, work)[0]
    assert together(2, work) == [one, one]


def test_methods_that_learn_units_learn_each_layer_by_itself(seeded, images, study):
    """As a calibration in which the layer's inputs are float and it is the only one there is."""
    method = dict(type='AdaQuant', iterations=4, flavour='parallel', weight_rate=0.01)
    budget = dict(weight_bits=4, widths=[2, 8])
    request = dict(budget=budget, method=method, activation=dict(
        mode='per_tensor', symmetry='asymmetric', scale_search='minmax', num_bits=None))
    models = [seeded(ResidualNet) for _ in range(3)]

    def work(team):
        batches = [images()[number] for number in team.batches(4)]
        with study(models.pop(), batches, team=team, **request) as found:
            return {name: row[min(row)].solution.codes.clone()
                    for name, row in found.bank.layers.items()}

    one = together(1, work)[0]
    for codes in together(2, work):
        assert all(map(torch.equal, codes.values(), one.values()))
    name = 'blocks.0.conv2'
    alone = seeded(ResidualNet)
    others = [dict(match=other, skip=True) for other in one if other != name]
    calibrate(alone, images(), make_request(
        weight=dict(num_bits=2), method=method, activation=request['activation'],
        overrides=others), run=lambda model, batch: model(batch))
    assert torch.equal(alone.get_submodule(name).codes, one[name])


def test_a_gain_by_fewer_bits_is_noise():
    base = {'a': Widths(8), 'b': Widths(8)}
    losses = WidthTable({'a': {Widths(2): 1.5, Widths(4): 2.0, Widths(8): 1.0},
                         'b': {Widths(2): 3.0, Widths(4): 0.5, Widths(8): 1.0}})
    assert noise_in(losses, base) == {'a': [Widths(4)], 'b': [Widths(8)]}
    table = sensitivities(losses, base)
    assert table.layers == {'a': {Widths(2): 0.5, Widths(4): 1.0, Widths(8): 0.0},
                            'b': {Widths(2): 2.0, Widths(4): pytest.approx(2e-6), Widths(8): 0.0}}
    assert sensitivities(losses, base, monotone=True).layers['a'][Widths(2)] == 1.0


class Killed(BaseException):
    """As a process that is killed: nothing is cleared up after it."""


class Dying(WidthFiles):
    """Written to so often and no more."""

    left = 0

    def _lives(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    def keep_solved(self, name, row):
        self._lives()
        super().keep_solved(name, row)

    def keep_losses(self, name, row):
        self._lives()
        super().keep_losses(name, row)


def test_what_was_killed_goes_on_to_the_same_table(seeded, study, tmp_path, monkeypatch):
    solved = []
    add = WidthFiles.keep_solved

    def measured(journal):
        with study(seeded(ResidualNet), journal=journal) as found:
            return found.measure(), found.loss_of({'blocks.0.conv1': Widths(2, 2)})

    whole = measured(None)
    for left, folder in ((3, 'a'), (9, 'b')):  # of 7 layers solved, and then measured
        dying = Dying.open(tmp_path / folder, {'of': 'a test'}, resume=False)
        dying.left = left
        with pytest.raises(Killed):
            measured(dying)
        monkeypatch.setattr(WidthFiles, 'keep_solved', lambda journal, name, row: (
            solved.append(name), add(journal, name, row)))
        solved.clear()
        files = WidthFiles.open(tmp_path / folder, {'of': 'a test'}, resume=True)
        assert len(files.losses()) == max(0, left - 7)
        assert measured(files) == whole
        assert len(solved) == max(0, 7 - left)
        monkeypatch.undo()
    # A damaged file is solved again, and its layer measured; the rest is taken over.
    path = tmp_path / 'b' / '0001.widths'
    path.write_bytes(path.read_bytes()[:-1])
    files = WidthFiles.open(tmp_path / 'b', {'of': 'a test'}, resume=True)
    assert len(files.problems) == 1 and len(files.solved()) == 6 and len(files.losses()) == 6
    assert measured(files) == whole
    with pytest.raises(ValueError, match='of is'):
        WidthFiles.open(tmp_path / 'b', {'of': 'another'}, resume=True)


def test_errors_of_layers_alone_and_weighted(seeded, images, study):
    """Backwards through the float model say what the loss rises by, about."""
    tables = {}
    for kind in ('measured', 'fisher', 'error'):
        with study(seeded(ResidualNet), budget={**BUDGET, 'sensitivity': kind}) as found:
            tables[kind] = found.measure().layers
            assert found.forwards_run == (8 + 4 * 4 * 2 if kind == 'measured' else 0)
            before = found.loss_of({'blocks.0.conv1': Widths(4, 4)})
            assert before > found.base_loss
    for name, row in tables['measured'].items():
        for widths in row:
            if len(row) > 1 and widths != Widths(8, 8):
                assert 0.5 < tables['fisher'][name][widths] / row[widths] < 2.5
                assert tables['error'][name][widths] > 0


def test_the_bank_is_as_large_as_was_said(seeded, study):
    with study(seeded(ResidualNet)) as found:
        geometries = {name: layer.geometry for name, layer in found.prepared.layers.items()}
        said = bytes_for(geometries, found.choices)
        assert 0.8 < found.bank.bytes / said < 1.2
    with pytest.raises(ValueError, match=r'Measuring widths would hold about .* of codes of all'), \
            study(seeded(ResidualNet), calibration=dict(memory_budget=1e-6)):
        pass
