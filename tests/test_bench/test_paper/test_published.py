"""The paper's numbers: those its text names, and what must hold among them."""

import csv
from importlib.resources import files

import pytest

from bench.paper import METHOD_ROWS, TABLES, Bits, published, published_float

TOP1, TOP5 = 'accuracy/top1', 'accuracy/top5'
NETWORKS = ('ResNet-18', 'ResNet-50', 'ResNet-101', 'VGG-16-BN')


@pytest.mark.parametrize('table, model, method, bits, metric, value', [
    (1, 'ResNet-18', 'TF-Lite', Bits(4, None), TOP1, 55.53),
    (1, 'ResNet-18', 'Bit-split (A8)', Bits(3, 8), TOP5, 87.46),
    (1, 'VGG-16-BN', 'Bit-split', Bits(3, None), TOP1, 72.11),
    (2, 'ResNet-18', 'ECAQ', Bits(8, 3), TOP1, 66.21),
    (2, 'ResNet-18', 'Per-layer', Bits(8, 4), TOP1, 68.31),
    (3, 'ResNet-101', 'TF-Lite', Bits(6, 6), TOP1, 31.78),
    (3, 'ResNet-50', 'Bit-split', Bits(4, 4), TOP5, 91.62),
    (4, 'ResNet-18', 'LAPQ', Bits(4, 4), TOP1, 59.8),
    (4, 'VGG-16-BN', 'Bit-split-per-channel', Bits(4, 4), TOP1, 71.8),
    (4, 'VGG-16-BN', 'TensorRT', Bits(4, 4), TOP1, None),
    (5, 'Mask R-CNN', 'Bit-split', Bits(4, 8), 'coco/segm_mAP', 33.4),
    (5, 'RetinaNet', 'Bit-split', Bits(4, 8), 'coco/bbox_mAP_75', 36.5),
    (5, 'RetinaNet', 'Bit-split', Bits(4, 8), 'coco/bbox_mAP_s', None),
    (3, None, 'Bit-split', Bits(4, 4), TOP1, None),
    (3, 'ResNet-18', None, Bits(4, 4), TOP1, None),
])
def test_numbers_as_printed(table, model, method, bits, metric, value):
    assert published(table, model, method, bits, metric) == value


@pytest.mark.parametrize('model', NETWORKS)
def test_the_float_models_are_the_same_in_all_tables(model):
    for table in (3, 4):
        assert published_float(table, model, TOP1) == published_float(1, model, TOP1)
    assert published_float(3, model, TOP5) == published_float(1, model, TOP5)


@pytest.mark.parametrize('model', NETWORKS)
def test_table_4_repeats_tables_1_and_3_to_one_decimal(model):
    for method in ('TF-Lite', 'Bit-split'):
        for table, bits, same in ((1, Bits(4, None), Bits(4, 8)), (3, Bits(4, 4), Bits(4, 4))):
            ours = published(table, model, method, bits, TOP1)
            assert abs(ours - published(4, model, method, same, TOP1)) < 0.1  # rounded or cut off


@pytest.mark.parametrize('model', NETWORKS)
@pytest.mark.parametrize('table', (1, 3))
def test_bit_split_is_far_above_at_few_bits(table, model):
    for bits in TABLES[table].bits[-2:]:
        assert published(table, model, 'Bit-split', bits, TOP1) - published(
            table, model, 'TF-Lite', bits, TOP1) > 4


def test_every_method_of_the_paper_that_the_bench_has_is_spelt_as_in_its_tables():
    text = files('bench.paper').joinpath('published.csv').read_text()
    named = {row['method'] for row in csv.DictReader(text.splitlines())} - {'float'}
    ours = {row.paper for row in METHOD_ROWS.values() if row.paper}
    assert ours <= named
