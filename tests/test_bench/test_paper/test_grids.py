"""Grids hold the paper's cells, and each cell asks for what its table says."""

import pytest

from bench.paper import (
    BENCH_MODELS,
    METHOD_ROWS,
    TABLES,
    Bits,
    Cell,
    at_iterations,
    bench_model,
    cells_of,
    check_rows,
    data_kind,
    method_row,
    parse_bits,
)
from bench.paper import methods as methods_module
from mmbitsplit.calibration import METHODS, build_method, read_request

BASE = {'weight': {'num_bits': 8}, 'activation': {'num_bits': 8, 'mode': 'ecaq', 'symmetry':
        'signed'}, 'method': {'type': 'BitSplit', 'guard': False},
        'calibration': {'num_images': 16, 'seed': 5}, 'overrides': [{'match': 'a', 'skip': True}]}


@pytest.mark.parametrize('number', TABLES)
def test_every_cell_is_a_valid_request_of_its_own(number):
    table = TABLES[number]
    check_rows(table.methods)
    cells = cells_of(table, 'resnet18', seeds=(0, 1))
    assert len({cell.folder for cell in cells}) == len(cells) == len(set(cells))
    for cell in cells:
        spec = read_request(cell.quantization(BASE))
        assert (spec.weight.num_bits, spec.activation.num_bits) == (
            cell.bits.weight, cell.bits.activation)
        assert (spec.calibration.seed, spec.scope) == (cell.seed, cell.scope)


def test_all_methods_share_layers_images_and_what_they_do_not_set():
    names = TABLES[4].methods
    cells = cells_of(TABLES[4], 'resnet18', bits=[Bits(4, 4)])
    specs = [read_request(cell.quantization(BASE)) for cell in cells]
    assert len(specs) == len(names)
    for spec in specs:
        assert spec.overrides[0].match == 'a' and spec.calibration.num_images == 16
        assert spec.first_last == specs[0].first_last
        assert spec.activation.symmetry != 'signed'  # nothing of the config's leaks into a row
    assert specs[names.index('bitsplit')].method == {'type': 'BitSplit'}
    assert BASE['weight'] == {'num_bits': 8} and BASE['calibration']['seed'] == 5


def test_the_tables_are_the_papers():
    assert TABLES[1].bits[0] == Bits(8, None) and TABLES[1].bits[-1] == Bits(3, None)
    assert [bits.weight for bits in TABLES[2].bits] == [8] * 6
    assert [str(bits) for bits in TABLES[3].bits] == ['w8a8', 'w7a7', 'w6a6', 'w5a5', 'w4a4',
                                                      'w3a3']
    assert TABLES[5].bits == (Bits(8, 8), Bits(4, 8), Bits(4, 4), Bits(3, 8))
    assert TABLES[5].scopes == ('all', 'backbone+neck') and TABLES[5].detectors


def test_table_1_has_one_row_with_activations_quantized():
    cells = cells_of(TABLES[1], 'resnet18', bits=[Bits(4, None)])
    bits = {cell.method: cell.bits for cell in cells}
    assert bits.pop('bitsplit_published_a8') == Bits(4, 8)
    assert set(bits.values()) == {Bits(4, None)}


def test_rounding_of_weights_alone_is_run_once():
    cells = cells_of(TABLES[1], 'resnet18', bits=[Bits(4, None)], seeds=(3, 4, 5))
    seeds = {name: [cell.seed for cell in cells if cell.method == name]
             for name in TABLES[1].methods}
    assert seeds['tflite'] == [3] and seeds['bitsplit'] == [3, 4, 5]
    both = cells_of(TABLES[3], 'resnet18', bits=[Bits(4, 4)], methods=['tflite'], seeds=(3, 4))
    assert [cell.seed for cell in both] == [3, 4]


def test_folders_say_what_is_in_them():
    cell = Cell(3, 'resnet20', 'tflite', Bits(4, 4))
    assert cell.folder.as_posix() == 'table3/resnet20/tflite_w4a4_s0'
    cell = Cell(5, 'retinanet', 'bitsplit', Bits(3, 8), 2, 'backbone+neck')
    assert cell.folder.as_posix() == 'table5/retinanet/bitsplit_w3a8_backbone+neck_s2'


@pytest.mark.parametrize('table, text, bits', [
    (1, '4', Bits(4, None)), (2, '4', Bits(8, 4)), (3, '4', Bits(4, 4)), (4, 'w2a4', Bits(2, 4)),
    (1, 'W3A32', Bits(3, None))])
def test_bits_are_read(table, text, bits):
    assert parse_bits(TABLES[table], text) == bits


@pytest.mark.parametrize('table, text, message', [
    (4, '4', "bits='4' is not enough for table 4"), (3, '9', 'widths are 2 to 8'),
    (3, 'w4', "bits='w4' is not understood"), (3, 'w4a1', 'widths are 2 to 8')])
def test_bits_that_are_refused(table, text, message):
    with pytest.raises(ValueError, match=message):
        parse_bits(TABLES[table], text)


def test_a_method_that_is_not_there_is_refused_by_name(monkeypatch):
    with pytest.raises(ValueError, match="'bitsplt' is not known; did you mean 'bitsplit"):
        check_rows(['tflite', 'bitsplt'])
    monkeypatch.delitem(METHODS, 'BitSplit')
    with pytest.raises(ValueError, match="'bitsplit' cannot be run.*'BitSplit' is not known"):
        check_rows(['tflite', 'bitsplit'])


def test_options_that_a_method_does_not_take_are_refused(monkeypatch):
    row = methods_module.MethodRow('x', {'type': 'BitSplit', 'no_such': 1})
    monkeypatch.setitem(METHOD_ROWS, 'odd', row)
    with pytest.raises(ValueError, match="method 'odd' cannot be run.*no_such"):
        check_rows(['odd'])


def test_scopes_of_other_tables_are_refused():
    with pytest.raises(ValueError, match="scope='backbone'"):
        cells_of(TABLES[3], 'resnet18', scopes=['backbone'])


def test_labels_are_unique():
    for names in ([row.title for row in METHOD_ROWS.values()],
                  [model.label for model in BENCH_MODELS.values()]):
        assert len(set(names)) == len(names)


def test_models_by_name_and_by_path():
    assert bench_model('retinanet').detector
    own = bench_model('some/where/mine_w4a8.py')
    assert (own.name, own.config, own.paper) == ('mine_w4a8', 'some/where/mine_w4a8.py', None)
    with pytest.raises(ValueError, match="did you mean 'retinanet'"):
        bench_model('retinnet')


def test_data_are_known_by_what_lies_there(tmp_path):
    with pytest.raises(ValueError, match='holds none of the known data sets'):
        data_kind(str(tmp_path))
    for name in ('calib', 'test'):
        (tmp_path / name).mkdir()
    assert data_kind(str(tmp_path)) == 'cifar'


def test_rows_that_learn_say_their_steps_and_can_have_others():
    """Published: as the methods have them by default; all stages in the same proportion."""
    for name, row in METHOD_ROWS.items():
        for option, count in row.steps.items():
            assert getattr(build_method(row.method), option) == count, name
    assert method_row('brecq').title == 'BRECQ, 25000 steps'
    row = method_row('brecq@400')
    assert row.title == 'BRECQ, 500 steps'
    assert row.method == {'type': 'BRECQ', 'iterations': 400, 'input_iterations': 100}
    assert [at_iterations(name, 400) for name in ('brecq', 'mse', 'adaround@5')] == [
        'brecq@400', 'mse', 'adaround@5']
    assert at_iterations('brecq', None) == 'brecq'
    check_rows(['brecq@400'])
    cell, = cells_of(TABLES[6], 'resnet18', methods=['brecq@400'], bits=[Bits(3, 3)])
    assert 'brecq@400' in str(cell.folder)
    assert cell.quantization(BASE)['method'] == row.method


@pytest.mark.parametrize('name', ['mse@3', 'brecq@', 'brecq@0', 'brecq@x'])
def test_steps_of_what_does_not_learn_and_no_steps(name):
    with pytest.raises(ValueError, match=f"'{name}': only methods that learn.*adaround"):
        method_row(name)
