"""Files of several widths: one tensor a width, split and joined, damage and mix-ups refused."""

import itertools
from pathlib import Path

import pytest
import torch
from width_solutions import (
    KINDS,
    assert_computes_alike,
    description_of,
    expecting,
    load,
    net_of,
    state_of,
)

from mmbitsplit.export import (
    BASE,
    HEADER_KEY,
    PAYLOAD_KEY,
    check_fit,
    pack_checkpoint,
    read_checkpoint,
    split_checkpoint,
    summarise,
    unpack_state,
)

META = {'versions': {'torch': '2'}}
FURTHER = (3, 5, 8)


@pytest.fixture(scope='module')
def net():
    return net_of()


@pytest.fixture(scope='module')
def whole(net):
    return pack_checkpoint(state_of(net), description_of(net), META)


@pytest.fixture(scope='module')
def files(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    torch.save(whole, folder / 'whole.pth')
    for width, one in split_checkpoint(read_checkpoint(folder / 'whole.pth')).items():
        torch.save(one, folder / f'{width}.pth')
    return folder


def test_a_file_gives_state_and_description_back(net, whole):
    packed = unpack_state(whole['state_dict'])
    assert packed.version == 4 and packed.description == description_of(net)
    assert packed.state.keys() == state_of(net).keys()
    for name, value in state_of(net).items():
        assert torch.equal(packed.state[name], value), name
    assert_computes_alike(net, load(expecting(packed.description), packed.state))


def test_files_of_one_width_are_of_the_version_before():
    one = net_of(KINDS[1:2])
    packed = unpack_state(pack_checkpoint(state_of(one), description_of(one), META)['state_dict'])
    assert packed.version == 2 and 'widths' not in packed.description['layers']['0']


def test_each_width_is_one_tensor(whole, files):
    sizes = read_checkpoint(files / 'whole.pth').width_bytes
    assert list(sizes) == [BASE, *FURTHER]
    state = state_of(net_of())
    assert sizes[3] == sum(value.numel() for name, value in state.items()
                           if name.endswith('.bits_3'))


def test_layers_under_a_second_name_come_back(net):
    state = {**state_of(net), **{name.replace('model.0.', 'model.twin.'): value
                                 for name, value in state_of(net).items()
                                 if name.startswith('model.0.')}}
    packed = pack_checkpoint(state, description_of(net), META)
    found = unpack_state(packed['state_dict'])
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], value) for name, value in state.items())
    assert packed['state_dict'][PAYLOAD_KEY].numel() == pack_checkpoint(
        state_of(net), description_of(net), META)['state_dict'][PAYLOAD_KEY].numel()
    base = split_checkpoint(found)[BASE]
    assert any(name.startswith('model.twin.') for name in unpack_state(base['state_dict']).state)


@pytest.mark.parametrize('count', range(4))
def test_the_first_files_are_the_model_without_the_other_widths(net, files, count):
    packed = read_checkpoint(files / f'{BASE}.pth',
                             [files / f'{width}.pth' for width in FURTHER[:count]][::-1])
    other = expecting(packed.description)
    check_fit(packed.state, state_of(other))
    load(other, packed.state)
    most = FURTHER[count - 1] if count else 2
    for layer, like in zip(other, net, strict=True):
        widths = like.weight_quantizer.widths
        assert layer.weight_quantizer.widths == tuple(
            width for width in widths if width <= max(most, widths[0]))
    assert_computes_alike(net, other)
    assert packed.lacking == FURTHER[count:] and packed.meta == META


def test_all_files_joined_are_the_file_that_was_split(files, whole):
    packed = read_checkpoint(files / f'{BASE}.pth', [files / f'{width}.pth' for width in FURTHER])
    again = pack_checkpoint(packed.state, packed.description, packed.meta)
    for key, value in whole['state_dict'].items():
        assert torch.equal(again['state_dict'][key], value)
    assert packed.payload_bytes == whole['state_dict'][PAYLOAD_KEY].numel()


@pytest.mark.parametrize('version', [3, 4])
def test_files_of_every_version_are_split_and_joined_in_it(version, tmp_path):
    path = Path(__file__).parents[1] / f'packed_files/packed_v{version}.pth'
    for width, one in split_checkpoint(read_checkpoint(path)).items():
        torch.save(one, tmp_path / f'{width}.pth')
    names = sorted(tmp_path.glob('*.pth'))
    packed, kept = read_checkpoint(names[0], names[1:]), torch.load(path, weights_only=True)
    assert packed.version == version
    again = pack_checkpoint(packed.state, packed.description, packed.meta)
    for name in (HEADER_KEY, PAYLOAD_KEY):
        assert torch.equal(again['state_dict'][name], kept['state_dict'][name])


def test_a_gap_is_named(files):
    with pytest.raises(ValueError, match='residual file of width 3 is missing: width 5 is made'):
        read_checkpoint(files / f'{BASE}.pth', [files / '5.pth'])


def test_files_of_another_checkpoint_are_refused(files):
    other = net_of()
    other[0].weight_quantizer.quantizers['8'].scale[0] *= 2
    states = [one['state_dict'] for one in split_checkpoint(unpack_state(pack_checkpoint(
        state_of(other), description_of(other), META)['state_dict'])).values()]
    own = torch.load(files / f'{BASE}.pth')['state_dict']
    with pytest.raises(ValueError, match='width 3 is of another checkpoint than the base'):
        unpack_state(own, states[1:2])


def test_files_in_the_wrong_place_are_told(files):
    for name, residuals, message in (
            ('3', [], 'is the residual file of width 3'),
            (str(BASE), ['whole'], 'is a whole checkpoint'),
            ('whole', ['3'], 'was not split: it has all widths')):
        with pytest.raises(ValueError, match=message):
            read_checkpoint(files / f'{name}.pth', [files / f'{one}.pth' for one in residuals])
    with pytest.raises(ValueError, match='no quantization plan|given as a residual file is none'):
        unpack_state(torch.load(files / f'{BASE}.pth')['state_dict'], [{'a': torch.zeros(1)}])
    one = net_of(KINDS[1:2])
    packed = unpack_state(pack_checkpoint(state_of(one), description_of(one), META)['state_dict'])
    with pytest.raises(ValueError, match='nothing to split'):
        split_checkpoint(packed)


@pytest.mark.parametrize('name', [str(BASE), '3', 'whole'])
def test_any_damage_is_told(files, name):
    state = torch.load(files / f'{name}.pth')['state_dict']
    places = itertools.chain(((HEADER_KEY, place) for place in range(
                                 0, state[HEADER_KEY].numel(), 7)),
                             ((PAYLOAD_KEY, place) for place in range(
                                 0, state[PAYLOAD_KEY].numel(), 11)))
    base = torch.load(files / f'{BASE}.pth')['state_dict']
    for key, place in places:
        damaged = {**state, key: state[key].clone()}
        damaged[key][place] ^= 16
        with pytest.raises(ValueError, match='damaged'):
            if name == '3':
                unpack_state(base, [damaged])
            else:
                unpack_state(damaged)


def test_a_damaged_width_is_named(whole):
    state = dict(whole['state_dict'])
    state[PAYLOAD_KEY] = state[PAYLOAD_KEY].clone()
    state[PAYLOAD_KEY][-1] ^= 1
    with pytest.raises(ValueError, match=r'such as \*\.bits_8\)'):
        unpack_state(state)


def test_a_summary_lists_widths(files):
    summary = summarise(read_checkpoint(files / 'whole.pth'), 1)
    assert list(summary['width_bytes']) == ['narrowest', '3', '5', '8']
    assert summary['layers'][0]['weight_widths'] == [2, 3, 5, 8]
    assert summary['layers'][0]['input_widths'] == [4, 8]
    assert 'weight_widths' not in summary['layers'][1]
    assert not summary['float_leftovers'] and not summary['lacking_widths']
    base = summarise(read_checkpoint(files / f'{BASE}.pth'), 1)
    assert base['lacking_widths'] == [3, 5, 8]
    assert [row['weight_bits'] for row in base['layers']] == [2, 4, 3, 2, 4]
