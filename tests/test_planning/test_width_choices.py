"""What a budget may choose: all that follows the request, and nothing that a rule fixes."""

import pytest
from torch import nn

from mmbitsplit.calibration import read_request
from mmbitsplit.planning import make_plan
from mmbitsplit.planning.width_choices import uniform_plans, width_choices, with_widths
from mmbitsplit.structures import QuantSpec, Widths, plan_value


@pytest.fixture
def net(make_net):
    def run(net, x):
        return net.head((net.inner(net.stem(x).relu()) + net.skip(net.stem(x).relu())).relu())
    return make_net(run, stem=nn.Conv2d(3, 4, 3), inner=nn.Conv2d(4, 4, 3, padding=1),
                    skip=nn.Conv2d(4, 4, 1), head=nn.Conv2d(4, 2, 1))


@pytest.fixture
def choices_of(net, see, image):
    flow = see(net, image)

    def run(budget=None, **request):
        spec = QuantSpec.from_dict({'budget': {'weight_bits': 4, 'widths': [2, 8],
                                               **(budget or {})}, **request})
        plan = lambda spec: make_plan(net, flow, spec)  # noqa: E731
        return width_choices(plan, spec), spec, plan
    return run


W2, W8 = Widths(2), Widths(8)
ALL = {'first_last': {'weight_bits': None}}


@pytest.mark.parametrize(('request_', 'wanted'), [
    ({}, {'stem': (W8,), 'inner': (W2, W8), 'skip': (W2, W8), 'head': (W8,)}),
    (ALL, dict.fromkeys(('stem', 'inner', 'skip', 'head'), (W2, W8))),
    ({'overrides': [{'match': 'skip', 'weight': {'num_bits': 5}}]},
     {'stem': (W8,), 'inner': (W2, W8), 'skip': (Widths(5),), 'head': (W8,)}),
    ({'overrides': [{'match': 'skip', 'weight': {'scale_search': 'minmax'}}], 'scope': 'skip+head'},
     {'skip': (W2, W8), 'head': (W8,)}),
    ({'weight': {'reduce_range': True}},
     {'stem': (W8,), 'inner': (W2, Widths(7)), 'skip': (W2, Widths(7)), 'head': (Widths(7),)}),
], ids=str)
def test_what_follows_the_request_is_free(request_, wanted, choices_of):
    assert choices_of(**request_)[0] == wanted


def test_inputs_are_chosen_where_the_budget_says_and_no_rule_does(choices_of):
    request = {'overrides': [{'match': 'skip', 'activation': {'num_bits': 6}}]}
    pairs = choices_of({'activation_widths': [8, 4]}, **request)[0]
    assert pairs == {'stem': (W8,), 'head': (W8,), 'skip': (W2, W8), 'inner': (
        Widths(2, 4), Widths(2, 8), Widths(8, 4), Widths(8, 8))}
    assert choices_of({'activation_widths': 'tied'})[0]['skip'] == (Widths(2, 2), Widths(8, 8))
    in_float = choices_of({'activation_widths': 'tied'}, activation={'num_bits': None})[0]
    assert in_float['skip'] == (W2, W8)


def test_a_chosen_plan_is_what_calibration_makes_of_it(choices_of):
    choices, spec, plan = choices_of({'activation_widths': [4, 8]}, **ALL)
    chosen = {name: own[index % len(own)] for index, (name, own) in enumerate(choices.items())}
    made = plan(with_widths(spec, chosen)).layers
    assert {layer.name: layer.weight.num_bits for layer in made} == {
        name: widths.weight for name, widths in chosen.items()}
    assert [layer.activation.num_bits for layer in made] == [
        None if layer.name == 'stem' else chosen[layer.name].activation or 8 for layer in made]


def test_a_uniform_plan_is_that_of_the_request(choices_of):
    choices, spec, plan = choices_of({'widths': [2, 3]})
    uniform = uniform_plans(choices, spec.budget.choices())
    assert list(uniform) == [Widths(2), Widths(3)]
    asked = QuantSpec.from_dict({'weight': {'num_bits': 3}})
    assert plan_value(plan(with_widths(spec, uniform[Widths(3)]))) == plan_value(plan(asked))


def test_nothing_to_choose_is_said(choices_of):
    with pytest.raises(ValueError, match='no layer to choose.*all 4 layers.*first_last'):
        choices_of(overrides=[{'match': '*', 'weight': {'num_bits': 4}}])


def test_what_is_learned_for_few_bits_follows_the_plan():
    asked = {'activation': {'num_bits': 8}, 'budget': {
        'weight_bits': 4, 'activation_widths': [4, 8]}}
    spec = read_request(asked)
    narrow, wide = {'a': Widths(2, 4), 'b': Widths(4, 8)}, {'a': Widths(2, 8), 'b': Widths(4, 8)}
    assert with_widths(spec, narrow).tuning == spec.tuning != ()
    assert with_widths(spec, wide).tuning == ()
    own = {'type': 'OutputTuning', 'steps': 5}
    for tuning in ([], [own]):  # what a request says itself stands
        spec = read_request({**asked, 'tuning': tuning})
        assert with_widths(spec, narrow).tuning == with_widths(spec, wide).tuning == tuple(tuning)
    # Inputs that are not chosen are as the request says.
    spec = read_request({'activation': {'num_bits': 4}, 'budget': {'weight_bits': 4}})
    assert with_widths(spec, {'a': Widths(2)}).tuning == spec.tuning != ()
