"""What a budget is given: the program's plan, or a uniform one that loses less as a whole."""

from types import SimpleNamespace

import pytest

from mmbitsplit.models.switching import LayerWidths
from mmbitsplit.planning.front_search import FrontSearch
from mmbitsplit.planning.genetic_search import GeneticOptions
from mmbitsplit.planning.plan_search import PlanProblem
from mmbitsplit.planning.width_blocks import WidthBlock
from mmbitsplit.structures import Widths, WidthTable

CHOICES = tuple(map(Widths, (3, 4, 8)))


@pytest.fixture
def search():
    """Searches two equal blocks; alone they lose 1.5 and 1 at 3 and 4 bits, both at 4 ``four``."""
    def make(four: float) -> FrontSearch:
        blocks = [WidthBlock(name, (name,), CHOICES) for name in 'ab']
        alone = {name: dict(zip(CHOICES, (1.5, 1.0, 0.0))) for name in 'ab'}
        costs = {'weight_bits': WidthTable({
            name: {own: own.weight / 2 for own in CHOICES} for name in 'ab'})}

        def loss(plan):
            return four if set(plan.values()) == {Widths(4)} else sum(
                alone[name][own] for name, own in plan.items())

        losses = SimpleNamespace(blocks=blocks, of=loss, widths={
            name: LayerWidths(weight=(3, 4, 8)) for name in 'ab'})
        return FrontSearch(PlanProblem(WidthTable(alone), 0.0, costs, CHOICES), losses, 'program',
                           GeneticOptions(), None)
    return make


@pytest.mark.parametrize(('four', 'wanted'), [
    (0.5, ['program 5.5', 'uniform W4 in 5.5']), (1.9, ['program 5.5'])])
def test_a_uniform_plan_that_loses_less_is_the_budgets(four, wanted, search):
    found = search(four).within('5.5', {'weight_bits': 5.5})
    assert [one.found.name for one in found] == wanted
    assert [one.best for one in found] == [*[False] * (len(found) - 1), True]
    assert found[0].found.whole == 1.5 and found[-1].found.whole == min(four, 1.5)
    assert all(one.budget == '5.5' and one.found.costs['weight_bits'] <= 5.5 for one in found)
    rows = {row.name: row.weight_bits for row in found[-1].plan.layers}
    assert (rows == {'a': 4, 'b': 4}) == (four < 1.5)


def test_a_uniform_plan_beyond_the_budget_is_not(search):
    assert len(search(0.5).within('3.5', {'weight_bits': 3.5})) == 1
