"""Zoo tables and metafiles say what was measured, what was not, and what is the paper's."""

import pytest
import yaml

from bench.model_zoo import entries, metafile_text, model_index_text, zoo_table
from bench.stored_runs import stored_text

CONFIG = "_base_ = ['mmpretrain::resnet/r.py', './_base_/q.py']\nload_from = 'w.pth'\n" \
         'quantization = dict(weight=dict(num_bits=4))\n'


@pytest.fixture
def root(make_run, tmp_path):
    """A repository with two configs, one of which has been run."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'results/openmmlab').mkdir(parents=True)
    for name in ('resnet18_w4a4', 'retinanet_r50_w4a8'):
        (tmp_path / f'configs/{name}.py').write_text(CONFIG)
    run = make_run(66.25, config='configs/resnet18_w4a4.py')
    del run['cell']
    store(tmp_path, [run])
    return tmp_path


def store(root, runs):
    (root / 'results/openmmlab/configs.json').write_text(stored_text(runs))


def rows(table):
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in table.split('\n')[2:]]


def test_measured_numbers_and_the_papers_have_columns_of_their_own(root):
    measured, not_run = rows(zoo_table(root, 'bitsplit'))
    assert measured == ['[resnet18_w4a4.py](resnet18_w4a4.py)', 'W4A4', 'Top-1', '70.00', '66.25',
                        '3.75', '4.00', '0.50', '12', '69.76', '67.56']
    assert not_run == ['[retinanet_r50_w4a8.py](retinanet_r50_w4a8.py)', 'W4A8', 'Box AP',
                       'not run', 'not run', '-', '-', '-', '-', '35.60', '34.40']


def test_the_metafile_has_results_of_what_was_run_alone(root):
    content = yaml.safe_load(metafile_text(root, 'bitsplit'))
    measured, not_run = content['Models']
    assert measured['Results'] == [{'Task': 'Image Classification', 'Dataset': 'ImageNet-1k',
                                    'Metrics': {'Top 1 Accuracy': 66.25, 'Top 5 Accuracy': 80.0}}]
    assert measured['Float Model'] == {
        'Config': 'mmpretrain::resnet/r.py', 'Weights': 'w.pth',
        'Metrics': {'Top 1 Accuracy': 70.0, 'Top 5 Accuracy': 90.0}}
    assert measured['Metadata']['Weight Bits'] == 4
    assert 'Results' not in not_run and 'Metrics' not in not_run['Float Model']
    assert not_run['Metadata']['Status'] == 'not run on COCO'
    assert {model['In Collection'] for model in content['Models']} == {
        collection['Name'] for collection in content['Collections']}


def test_the_index_names_what_works_without_the_checkout():
    assert yaml.safe_load(model_index_text()) == {
        'Import': ['configs/metafile.yml', 'configs/qdrop/metafile.yml',
                   'configs/transformers/metafile.yml']}


def test_runs_that_are_not_the_config_as_it_stands(root, make_run):
    run = make_run(60.0, config='configs/resnet18_w4a4.py')
    store(root, [run, run])
    with pytest.raises(ValueError, match='two runs of configs/resnet18_w4a4.py'):
        entries(root, 'bitsplit')
    store(root, [make_run(60.0, config='configs/resnet18_w4a4.py', bits=(3, 3))])
    with pytest.raises(ValueError, match='is W3A3; store the one of the config'):
        entries(root, 'bitsplit')
    store(root, [make_run(60.0, config='configs/gone_w4a4.py')])
    with pytest.raises(ValueError, match='not in configs: configs/gone_w4a4.py'):
        entries(root, 'bitsplit')


def test_a_config_of_no_known_model(root):
    (root / 'configs/other_w4a8.py').write_text(CONFIG)
    with pytest.raises(ValueError, match='configs named configs/other'):
        entries(root, 'bitsplit')


def test_configs_that_stand_on_others_have_their_float_model(root):
    """And no columns of a paper whose method they do not have."""
    (root / 'configs/qdrop').mkdir()
    (root / 'configs/qdrop/qdrop_resnet18_w4a4.py').write_text("_base_ = '../resnet18_w4a4.py'\n")
    (root / 'results/openmmlab/qdrop.json').write_text(stored_text([]))
    entry, = entries(root, 'qdrop')
    assert (entry.model.name, entry.weights) == ('resnet18', 'w.pth')
    assert entry.float_config == 'mmpretrain::resnet/r.py'
    assert rows(zoo_table(root, 'qdrop')) == [
        ['[qdrop_resnet18_w4a4.py](qdrop_resnet18_w4a4.py)', 'W4A4', 'Top-1', 'not run', 'not run',
         *'----']]
    content = yaml.safe_load(metafile_text(root, 'qdrop'))
    assert content['Collections'][0]['Paper']['Title'].startswith('QDrop')
