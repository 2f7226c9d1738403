"""The tuning stage by itself, on problems whose best point is known."""

import pytest
import torch

from mmbitsplit.methods import read_request
from mmbitsplit.methods.tuning import OutputTuning, build_stages


class Bowl:
    """Squared distance from a best point, another one for the held-out batches."""

    size, images, mirrored, classes = 3, 8, False, 1

    def __init__(self, held_out_best=(0.02, -0.03, 0.01), broken_from=10 ** 6):
        self.fit, self.held_out = [0, 2, 3, 5], [1, 4]
        self.best = torch.tensor([0.02, -0.03, 0.01], dtype=torch.float64)
        self.elsewhere = torch.tensor(held_out_best, dtype=torch.float64)
        self.point = torch.zeros(3, dtype=torch.float64)
        self.drawn, self.told, self.broken_from = [], [], broken_from

    def move_to(self, point):
        self.point = point.clone()

    def loss(self, batches):
        best = self.elsewhere if batches == self.held_out else self.best
        return float((self.point - best).square().sum())

    def gradient(self, batches):
        self.drawn.append(batches)
        gradient = 2 * (self.point - self.best)
        if len(self.drawn) > self.broken_from:
            gradient = gradient * float('nan')
        return self.loss(self.fit), gradient

    def generator(self, step):
        return torch.Generator().manual_seed(step)

    def progress(self, step, steps):
        self.told.append((step, steps))


@pytest.mark.parametrize('options', [dict(learning_rate=3e-3),
                                     dict(optimizer='sgd', learning_rate=0.05)])
def test_the_best_point_is_found(options):
    problem = Bowl()
    report = OutputTuning(steps=200, **options).tune(problem)
    assert torch.allclose(problem.point, problem.best, atol=1e-3)
    assert report['kept'] == 'tuned' and report['best_step'] > 0
    assert report['held_out_after'] < 1e-2 * report['held_out_before']
    assert report['fit_after'] == problem.loss(problem.fit) < report['fit_before']
    assert problem.told[-1] == (200, 200)


def test_what_is_worse_on_held_out_batches_is_not_kept():
    problem = Bowl(held_out_best=(-0.02, 0.03, -0.01))
    report = OutputTuning(steps=50).tune(problem)
    assert not problem.point.any()
    assert report['kept'] == 'start' and report['best_step'] == 0
    assert report['held_out_after'] == report['held_out_before']
    assert report['fit_after'] == report['fit_before']


def test_of_all_points_looked_at_the_best_on_held_out_batches_is_kept():
    problem = Bowl(held_out_best=(0.004, -0.004, 0.004))  # on the way
    report = OutputTuning(steps=100, learning_rate=1e-3, judge_every=1).tune(problem)
    assert 0 < report['best_step'] < 100
    assert report['held_out_after'] == min(loss for _, loss in report['judged'])
    assert report['held_out_after'] == problem.loss(problem.held_out)


def test_a_gradient_that_is_no_number_ends_it_at_the_best_point_so_far():
    problem = Bowl(broken_from=30)
    report = OutputTuning(steps=100, learning_rate=1e-3, judge_every=10).tune(problem)
    assert report['not_finite_at_step'] == 30 == report['best_step']
    assert bool(problem.point.isfinite().all()) and bool(problem.point.any())


def test_batches_come_in_turn_each_round_in_another_order():
    problem = Bowl()
    OutputTuning(steps=20, batch_size=2).tune(problem)
    rounds = [sorted(sum(problem.drawn[first:first + 2], [])) for first in range(0, 20, 2)]
    assert rounds == [problem.fit] * 10
    assert len({tuple(map(tuple, problem.drawn[first:first + 2]))
                for first in range(0, 20, 2)}) > 3


def test_no_step_changes_nothing():
    problem = Bowl()
    assert OutputTuning(steps=0).tune(problem)['kept'] == 'start'
    assert not problem.drawn


def test_a_request_names_stages():
    one = read_request(dict(tuning=dict(type='OutputTuning', steps=5)))
    several = read_request(dict(tuning=[dict(type='OutputTuning', steps=5)]))
    assert one == several and one.tuning == (dict(type='OutputTuning', steps=5),)
    assert build_stages(one.tuning) == [OutputTuning(steps=5)]
    assert one.to_dict()['tuning'] == ({'type': 'OutputTuning', 'steps': 5},)
    assert 'tuning' not in read_request({}).to_dict()  # as journals of before have it


@pytest.mark.parametrize('tuning, words', [
    (dict(type='OutputTunning'), r"tuning\[0\].type='OutputTunning'.*did you mean 'OutputTuning'"),
    ([dict(type='OutputTuning'), dict(steps=5)], r'tuning\[1\].*type'),
    (dict(type='OutputTuning', stepss=5), r"Unknown key 'stepss' in quantization.tuning\[0\]"),
    (dict(type='OutputTuning', steps=-1), r'steps=-1'),
    (dict(type='OutputTuning', optimizer='lion'), r'optimizer=.lion'),
    (dict(type='OutputTuning', holdout=0), r'holdout=0'),
    (dict(type='OutputTuning', scales=False, biases=False, input_scales=False), 'nothing is left'),
])
def test_a_request_that_cannot_be_is_refused(tuning, words):
    with pytest.raises(ValueError, match=words):
        read_request(dict(tuning=tuning))


def test_without_images_there_is_nothing_to_tune_on():
    with pytest.raises(ValueError, match='quantization.tuning learns on calibration images'):
        read_request(dict(tuning=dict(type='OutputTuning'), method=dict(type='MSE'),
                          activation=dict(num_bits=None), calibration=dict(num_images=0)))


@pytest.mark.parametrize('options, images, steps, size', [
    (dict(rounds=3), 8, 12, 1),  # four batches, each of more than a step looks at
    (dict(rounds=3), 1, 3, 4),
    (dict(rounds=2.5, batch_size=2), 1, 5, 2),
    (dict(rounds=3, mirrored='auto'), 8, 6, 1),  # one of each two
    (dict(steps=7, rounds=100), 1, 7, 4),
    (dict(), 8, 32, 1),
    (dict(), 1, 8, 4),
])
def test_rounds_say_how_many_steps_there_are(options, images, steps, size):
    problem = Bowl()
    problem.images, problem.mirrored = images, 'mirrored' in options
    report = OutputTuning(**options).tune(problem)
    assert (report['steps'], report['batches_of_a_step']) == (steps, size)
    assert len(problem.drawn) == steps and {len(drawn) for drawn in problem.drawn} == {size}


@pytest.mark.parametrize('budget, bits, tuned', [
    (dict(activation_widths=[4, 8]), 8, True), (dict(activation_widths=[5, 8]), 4, False),
    (dict(activation_widths='tied', widths=[3, 8]), 8, True), (dict(widths=[2, 8]), 8, False),
    (dict(widths=[2, 8]), 4, True), (dict(activation_widths=[2]), None, False)])
def test_the_default_method_learns_where_a_budget_may_give_inputs_few_bits(budget, bits, tuned):
    request = dict(budget=dict(weight_bits=4, **budget), activation=dict(num_bits=bits))
    assert bool(read_request(request).tuning) == tuned
    assert read_request(dict(request, tuning=[])).tuning == ()


@pytest.mark.parametrize('bits, effort, tuned', [
    (4, 'default', True), (4, 'fast', False), (4, 'best', True), (3, None, True),
    (8, 'default', False), (8, 'best', True), (None, None, False)])
def test_the_default_method_learns_where_inputs_have_few_bits(bits, effort, tuned):
    method = dict(type='BitSplit', **({} if effort is None else dict(effort=effort)))
    request = dict(activation=dict(num_bits=bits), method=method)
    spec = read_request(request)
    assert bool(spec.tuning) == tuned
    if tuned:
        stage, = build_stages(spec.tuning)
        assert stage.if_possible and 'codes' in stage.learns
        assert stage.rounds == (40 if effort == 'best' else None)
    assert read_request(dict(request, tuning=[])).tuning == ()
    own = (dict(type='OutputTuning', steps=3),)
    assert read_request(dict(request, tuning=own)).tuning == own


def test_class_scores_get_more_rounds_and_many_batches_no_more_than_so_many_steps():
    problem = Bowl()
    problem.classes = 10
    assert OutputTuning().tune(problem)['steps'] == 48
    problem.fit = [*range(100)]
    assert OutputTuning().tune(problem)['steps'] == 240


def test_published_bitsplit_learns_nothing():
    assert not read_request(dict(activation=dict(num_bits=3),
                                 method=dict(type='PublishedBitSplit'))).tuning
