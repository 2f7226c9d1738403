"""The loss that a whole model is tuned by, against the formula."""

import pytest
import torch

from mmbitsplit.solving.tuning import OutputLoss


class Team:
    def gather(self, value):
        return [value]


class Forwards:
    team = Team()


class Raw:
    """Names of last layers; nothing is run."""

    forwards = Forwards()

    def __init__(self, *names):
        self.modules = {name: torch.nn.Conv2d(1, 1, 1) for name in names}


def maps(seed, channels):
    """Two levels of a pyramid, one output a channel count in each."""
    generator = torch.Generator().manual_seed(seed)
    return [(name, 3 * torch.randn(2, count, side, side, generator=generator) - 2)
            for side in (6, 3) for name, count in channels.items()]


def sure(outputs):
    """Of each output, (2, 1, side, side): the surest class of the least sure at its place."""
    by_side = {}
    for _, output in outputs:
        score = output.amax(1, keepdim=True).sigmoid()
        side = output.shape[-1]
        by_side[side] = torch.minimum(by_side.get(side, score), score)
    return [by_side[output.shape[-1]] for _, output in outputs]


HEADS = {'scores': 5, 'boxes': 4}


def test_places_count_as_sure_as_either_model_is_of_them():
    loss = OutputLoss(Raw(*HEADS), 'auto', 0)
    batches = {number: maps(number, HEADS) for number in range(3)}
    for number, outputs in batches.items():
        loss.add(number, outputs)
    loss.settle()
    assert loss.kind == 'confidence'
    given = maps(9, HEADS)
    found = loss(1, given)
    expected = torch.zeros((), dtype=torch.float64)
    for place in range(4):  # one output of a level
        alike = torch.stack([outputs[place][1] for outputs in batches.values()]).double()
        usual = torch.stack([sure(outputs)[place] for outputs in batches.values()]).double().mean()
        count = alike[0].numel()
        weight = torch.maximum(sure(batches[1])[place], sure(given)[place]).double()
        change = (given[place][1].double() - batches[1][place][1].double()).square()
        expected += (weight * change).sum() / (
            4 * count * usual * alike.var(correction=0))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_what_the_quantized_model_sees_alone_counts():
    """Where the float model sees nothing, an object that is not there is no small matter."""
    loss, nothing = OutputLoss(Raw(*HEADS), 'confidence', 0), maps(0, HEADS)
    nothing = [(name, output.clamp(max=-4)) for name, output in nothing]
    loss.add(0, nothing)
    loss.settle()
    wrong = [(name, output.clone()) for name, output in nothing]
    for _, output in wrong[:2]:
        output[0, :, 2, 2] += 8
    quiet = [(name, output.clone()) for name, output in nothing]
    for _, output in quiet[:2]:
        output[0, :, 2, 2] -= 8
    assert float(loss(0, wrong)) > 5 * float(loss(0, quiet)) > 0


def test_gradients_leave_the_weights_alone():
    loss = OutputLoss(Raw(*HEADS), 'confidence', 0)
    loss.add(0, maps(0, HEADS))
    loss.settle()
    given = [(name, output.requires_grad_()) for name, output in maps(1, HEADS)]
    gradient, = torch.autograd.grad(loss(0, given), given[0][1])
    change = given[0][1].detach() - maps(0, HEADS)[0][1]
    weight = torch.maximum(sure(maps(0, HEADS))[0], sure(given)[0].detach())
    ratio = gradient / (change * weight)
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4)


@pytest.mark.parametrize('asked, heads, kind', [
    ('auto', {'map': 3}, 'raw'), ('raw', HEADS, 'raw'), ('confidence', HEADS, 'confidence')])
def test_one_map_is_no_dense_head(asked, heads, kind):
    loss = OutputLoss(Raw(*heads), asked, 0)
    loss.add(0, maps(0, heads))
    loss.settle()
    assert loss.kind == kind


def test_rows_of_two_layers_are_no_dense_head():
    outputs = [('classes', torch.randn(4, 3)), ('boxes', torch.randn(4, 12))]
    for asked in ('auto', 'confidence'):
        loss = OutputLoss(Raw('classes', 'boxes'), asked, 0)
        loss.add(0, outputs)
        if asked == 'auto':
            loss.settle()
            assert loss.kind == 'raw'
        else:
            with pytest.raises(ValueError, match="'confidence' is for a dense head.*classes"):
                loss.settle()


def test_beside_a_dense_head_rows_and_masks_count_alike_everywhere():
    """A region proposal network is a dense head, what comes of its regions is none."""
    rest = [('classes', torch.randn(4, 3)), ('masks', torch.randn(4, 2, 5, 5))]
    loss = OutputLoss(Raw(*HEADS, 'classes', 'masks'), 'auto', 0)
    loss.add(0, maps(0, HEADS) + rest)
    loss.settle()
    assert loss.kind == 'confidence'
    for place, (_, output) in enumerate(rest, start=4):
        given = [(name, one.clone()) for name, one in maps(0, HEADS) + rest]
        given[place][1][0] += 1  # of four rows
        assert float(loss(0, given)) == pytest.approx(
            1 / 4 / 4 / float(output.var(correction=0)), rel=1e-4)
