"""Costs: bytes are those of a file that is written, operations those that are counted by hand."""

import pytest
import torch
from attention_nets import Encoder
from torch import nn

from mmbitsplit.calibration import calibrate
from mmbitsplit.export import pack_checkpoint, read_checkpoint
from mmbitsplit.functional import pack_codes, packed_bytes
from mmbitsplit.models import describe, prepare, watch
from mmbitsplit.planning import make_plan
from mmbitsplit.planning.costs import PRODUCTS, cost_tables, layer_times
from mmbitsplit.planning.latency_table import latencies_text, read_latencies
from mmbitsplit.structures import PlanRow, PlanSpec, Widths


def written_bytes(prepared, folder):
    torch.save(pack_checkpoint(prepared.model.state_dict(), describe(prepared), {}),
               folder / 'packed.pth')
    return read_checkpoint(folder / 'packed.pth').payload_bytes


@pytest.mark.parametrize('settings', [
    {'activation': {'mode': 'per_tensor', 'placement': 'residual'}},
    {'activation': {'mode': 'ecaq', 'symmetry': 'asymmetric'}, 'first_last': {
        'weight_bits': None, 'activation_bits': None}},
], ids=['streams', 'asymmetric'])
def test_bytes_are_those_of_a_file_that_is_written(residual_net, images, make_spec, run_model, see,
                                                   tmp_path, settings):
    def make(widths):
        given = PlanSpec(tuple(PlanRow(name, own.weight) for name, own in widths.items()))
        return calibrate(residual_net(), images(), make_spec(
            method={'type': 'RoundToNearest'}, plan=given, **settings), run=run_model)[0]

    names = ['stem', 'blocks.0.conv1', 'blocks.0.conv2', 'blocks.1.conv1', 'blocks.1.conv2',
             'classify', 'regress']
    widths = {name: Widths(2 + number % 7) for number, name in enumerate(names)}
    base = make(dict.fromkeys(names, Widths(8)))
    choices = {name: (own, Widths(8)) for name, own in widths.items()}
    flow = see(residual_net(), images()[0])
    table = cost_tables(base, flow, choices)['bytes']
    mixed = make(widths)
    assert table.sum(widths) == written_bytes(mixed, tmp_path)
    assert table.sum(dict.fromkeys(names, Widths(8))) == written_bytes(base, tmp_path)
    assert cost_tables(mixed, flow, choices)['bytes'] == table


def test_bytes_are_near_before_anything_is_solved(residual_net, images, make_spec, run_model,
                                                  make_ready, see, tmp_path):
    model = residual_net()
    prepared = make_ready(model, images()[0])
    choices = {name: (Widths(8),) for name in prepared.layers}
    expected = cost_tables(prepared, see(residual_net(), images()[0]), choices)['bytes'].sum({})
    solved = calibrate(residual_net(), images(), make_spec(
        weight={'num_bits': 8}), run=run_model)[0]
    assert expected == pytest.approx(written_bytes(solved, tmp_path), rel=0.05)
    assert not any(layer.quantized for layer in prepared.layers.values())


@pytest.mark.parametrize('num_bits', [2, 3, 5, 8])
def test_a_row_of_codes_takes_the_bytes_that_packing_gives_it(num_bits):
    for number in (1, 7, 8, 9):
        packed = pack_codes(torch.zeros(3, number, dtype=torch.int8), num_bits)
        assert packed.shape == (3, packed_bytes(number, num_bits))


def test_operations_and_mean_bits_are_as_counted_by_hand(make_net, make_ready, see):
    def run(net, x):
        return net.last(net.up(net.depthwise(net.first(x))).flatten(1))

    def make():
        return make_net(run, first=nn.Conv2d(3, 4, 3, stride=2, padding=1),
                        depthwise=nn.Conv2d(4, 4, 3, padding=1, groups=4),
                        up=nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
                        last=nn.Linear(2 * 8 * 8, 5))

    x = torch.randn(2, 3, 8, 8)
    amounts = {'first': 2 * 16 * 4 * 27, 'depthwise': 2 * 16 * 4 * 9, 'up': 2 * 16 * 4 * 2 * 9,
               'last': 2 * 128 * 5}
    prepared = make_ready(make(), x)
    choices = {'first': (Widths(8),), 'depthwise': (Widths(2, 4), Widths(8, 8)),
               'up': (Widths(3, 8), Widths(8, 8)), 'last': (Widths(8),)}
    tables = cost_tables(prepared, see(make(), x), choices)
    plan = {'depthwise': Widths(2, 4), 'up': Widths(3, 8)}
    whole = 64 * sum(amounts.values()) + 8 * 24 * amounts['first']  # the image is float
    part = whole - (64 - 8) * amounts['depthwise'] - (64 - 24) * amounts['up']
    assert tables['bitops'].sum(plan) == pytest.approx(part / whole)
    # Weights: 36 in depthwise, 72 in up; first and last are not chosen.
    assert tables['weight_bits'].sum(plan) == pytest.approx((2 * 36 + 3 * 72) / 108)
    assert tables['weight_bits'].sum({'depthwise': Widths(8, 8), 'up': Widths(8, 8)}) == 8


def test_operations_of_products_count_with_both_widths(make_spec, images, seeded):
    model, image = seeded(Encoder), images()[0]
    flow = watch(model, lambda: model(image), inputs=image)
    prepared = prepare(model, flow, make_plan(model, flow, make_spec(
        activation=dict(num_bits=4))))
    choices = {plan.name: (Widths(8, 8),) for plan in prepared.plan.layers} | {
        'patch': (Widths(8),)}
    table = cost_tables(prepared, flow, choices)['bitops']
    products = 2 * 2 * 2 * 16 * 16 * 8
    layers = 2 * (16 * (12 * 16 + 16 * 48 + 16 * 16 + 2 * 16 * 24) + 16 * 5)
    image_is_float = 2 * 16 * 12 * 16 * 8 * 24
    whole = 64 * (products + layers) + image_is_float
    assert table.layers[PRODUCTS] == {Widths(8): pytest.approx(16 * products / whole)}
    assert table.sum({}) == pytest.approx(1 - 48 * products / whole)


def write(folder, *rows, head='layer,weight_bits,activation_bits,microseconds'):
    path = folder / 'times.csv'
    path.write_text('\n'.join([head, *rows]) + '\n')
    return path


def test_times_are_those_of_the_next_wider_entry(tmp_path, make_net, make_ready):
    prepared = make_ready(make_net(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(3, 3, 1),
                                   b=nn.Conv2d(3, 3, 1)), torch.randn(1, 3, 4, 4))
    plans = {plan.name: plan for plan in prepared.plan.layers}
    path = tmp_path / 'times.csv'
    path.write_text(latencies_text([('a', 32, 32, 4), ('a', 8, 8, 1), ('b', 32, 32, 8),
                                    ('b', 8, 8, 6), ('b', 4, 8, 2), ('of another model', 8, 8, 9)]))
    table = layer_times(read_latencies(path), plans, {
        'a': (Widths(8),), 'b': (Widths(3, 8), Widths(4, 4), Widths(5, 8), Widths(8, 8))})
    # The image is float, and so 'a' takes 4 whatever its weights; in all 10 with 8 bits.
    assert table.layers == {'a': {Widths(8): 0.4}, 'b': {
        Widths(3, 8): 0.2, Widths(4, 4): 0.2, Widths(5, 8): 0.6, Widths(8, 8): 0.6}}


@pytest.mark.parametrize(('rows', 'head', 'told'), [
    (['a,8,8,1'], 'layer,weight_bit,activation_bits,microseconds',
     "lacks the column 'weight_bits' .did you mean 'weight_bit'"),
    (['a,9,8,1'], None, "line 2: weight_bits='9' is no width; allowed are 2 to 8"),
    (['a,8,8,1', 'a,8,8,2'], None, 'line 3: .*second row'),
    (['a,8,8,fast'], None, "line 2: microseconds='fast' is no time"),
    (['a,8,8,-1'], None, "microseconds='-1' is no time"),
    (['block.conv,8,8,1'], None, "lacks layer 'block.conv1'.*did you mean 'block.conv'"),
    (['block.conv1,4,8,1'], None, "no time of layer 'block.conv1' with 8 bits.*has 4/8"),
    ([], '', "lacks the column 'layer' .it is empty"),
])
def test_what_a_latency_table_lacks_is_named(tmp_path, rows, head, told):
    kwargs = {} if head is None else {'head': head}
    with pytest.raises(ValueError, match=f'times.csv.*{told}'):
        read_latencies(write(tmp_path, *rows, **kwargs)).of('block.conv1', 8, 8)
    with pytest.raises(ValueError, match='there is no such file'):
        read_latencies(tmp_path / 'other.csv')
