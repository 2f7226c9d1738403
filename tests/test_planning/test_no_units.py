"""Why parts of small nets are no units."""

import pytest
import torch
from divided_nets import block, divide, in_a_row, net, reasons, rectified, shapes, two_in

from mmbitsplit.passes.replay import ReplayPoint, barrier


@pytest.fixture
def image():
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def kept_outside(net, x):
    y = net.part.more = net.stem(x)
    return net.last(net.part(y.relu()))


def kept_inside(net, x):
    return net.last(net.part(net.stem(x))) + net.part.kept.mean()


def two_out(net, x):
    return net.last(sum(net.part(net.stem(x))))


def keeps(part, x):
    part.kept = part.a(x)
    return part.b(part.kept.relu())


def returns_input(part, x):
    part.kept = rectified(part, x)
    return x[:, :, :3]


def reads_a_number(part, x):
    y = part.a(x)
    return part.b(y if y.mean() > 0 else -y)


def picks(part, x):
    y = part.a(x)
    return part.b(y[:, y.mean((0, 2, 3)).topk(4)[1]])


def layer_again(net, x):
    return net.last(net.part.a(net.part(net.stem(x)).relu()))


def by_turns(net, x):
    y = net.part(net.stem(x).relu())
    return net.last(net.part(y * 2))


def one_of_two(part, x):
    part.turn = not getattr(part, 'turn', False)
    return rectified(part, x) if part.turn else part.b(x)


@pytest.mark.parametrize('outer, inner, reason', [
    (two_in, lambda part, x, y: x + rectified(part, y), 'takes 2 tensors'),
    (lambda net, x: net.last(net.part([net.stem(x)])), lambda part, x: rectified(part, x[0]),
     'takes its tensor in a container'),
    (kept_outside, lambda part, x: rectified(part, x) + part.more,
     'reads 1 tensor from outside beside the one that it takes'),
    (two_out, lambda part, x: (part.a(x), part.b(x)), 'gives 2 tensors'),
    (lambda net, x: net.last(net.part(net.stem(x))['y']),
     lambda part, x: dict(y=rectified(part, x)),
     'gives its tensor in a container'),
    (lambda net, x: net.last(net.part(net.stem(x)).float()),
     lambda part, x: rectified(part, x).long(), 'gives a tensor of int64'),
    (in_a_row, returns_input,
     'gives a tensor that was made before it'),
    (kept_inside, keeps, '1 tensor made inside is read outside beside the one that it gives'),
    (in_a_row, reads_a_number,
     'what follows depends on values inside (gt)'),
    (in_a_row, picks,
     'what follows depends on values inside (topk)'),
    (layer_again, rectified, "holds 'part.a', which is called elsewhere too"),
    (by_turns, one_of_two, 'does not call the same layers each time')])
def test_why_a_part_is_no_unit(image, outer, inner, reason):
    units = divide(net(outer, part=block(inner)), [image])
    assert all(unit.name != 'part' for unit in units)
    assert reasons(units, 'part.a') == {f"'part' {reason}"}


def test_a_replayed_step_inside(image):
    part = block(lambda part, x: part.b(part.decode(part.a(x))))
    part.decode = lambda y: y.relu()
    units = divide(net(part=part), [image], barriers=[barrier([ReplayPoint(part, 'decode')])])
    assert reasons(units, 'part.a', 'part.b') == {
        "'part' a step whose result is replayed lies inside"}


def test_calls_that_differ_between_batches(image):
    def run(net, x):
        y = net.part(net.stem(x).relu())
        return net.last(net.part(y * 2) if len(x) > 2 else y)
    model = net(run, part=block())
    assert shapes(divide(model, [image, image])) == [('part',)]
    units = divide(model, [image, image.repeat(2, 1, 1, 1)])
    assert reasons(units, 'part.a') == {
        "'part' is called 1 times in one batch and 2 times in another"}
    units = divide(model, [image], counts={0: {'part.a': 1}, 1: {'part.a': 2}})
    assert reasons(units, 'part.a') == {
        "'part' holds 'part.a', which some batches call more often than others"}


def test_what_another_batch_contradicts_is_no_unit(image):
    def run(net, x):
        y = net.part(net.stem(x).relu())
        return net.last(y) + (net.part.kept.mean() if len(x) > 2 else 0)
    units = divide(net(run, part=block(keeps)), [image, image.repeat(2, 1, 1, 1)])
    assert reasons(units, 'part.a') == {
        "'part' 1 tensor made inside is read outside beside the one that it gives"}


def test_too_large(image):
    model = net(part=block())
    assert reasons(divide(model, [image], max_layers=1), 'part.a') == {
        "'part' holds 2 layers, more than 1"}
    (reason,) = reasons(divide(model, [image], max_bytes=100), 'part.a')
    assert reason.startswith("'part' makes 4.61e-06 GB of tensors in a call, more than 1e-07")
