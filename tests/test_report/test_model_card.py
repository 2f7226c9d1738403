"""The model card: what the Hub reads, and tables that agree with the run."""

import pytest
import yaml

from mmbitsplit.report.model_card import model_card, task_of

META = {'float_checkpoint': '/home/somebody/float.pth', 'float_checkpoint_sha256': 'ab' * 32}


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split('---\n')[1])


def test_front_matter_has_the_figures_of_the_run(results, layer):
    run, layers = results(), {'layers': [layer('a'), layer('b', weight_bits=8)]}
    text = model_card(run, layers, meta=META, dataset='CocoDataset', base_model='me/base',
                      license='mit')
    found = front_matter(text)
    assert found['pipeline_tag'] == 'object-detection' and found['license'] == 'mit'
    assert found['library_name'] == 'mmbitsplit' and 'quantized' in found['tags']
    row, = found['model-index'][0]['results'][0]['metrics']
    assert row['name'] == 'coco/bbox_mAP' and row['value'] == run['quantized']['coco/bbox_mAP']
    assert found['metrics'] == [row['type']]


def test_tables_say_bits_drop_sizes_and_every_layer(results, layer):
    rows = [layer('stem', weight_bits=8, activation_bits=None), layer('a'), layer('b')]
    kept = [{'name': 'head', 'kind': 'lstm', 'reason': 'no layer | of ours'}]
    text = model_card(results(), {'layers': rows, 'kept_float': kept}, meta=META)
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')]
             for line in text.splitlines() if line.startswith('|')]
    assert ['coco/bbox_mAP, points of 100', '64.50', '63.40', '1.10'] in cells
    assert ['coco/bbox_mAP_l, points of 100', '–', '–', '–'] in cells
    assert ['quantized file', '1.02', '7.0'] in cells
    assert ['8', 'float', '1'] in cells and ['4', '8', '2'] in cells
    assert {f'`{row["name"]}`' for row in rows} <= {cell[0] for cell in cells}
    assert '`head`' in text and 'no layer \\| of ours' in text


def test_no_path_of_whoever_ran_it(results, layer):
    text = model_card(results(), {'layers': [layer('a')]}, meta=META)
    assert 'float.pth' in text and 'somebody' not in text
    text = model_card(results(config='/home/somebody/configs/x.py'), {'layers': [layer('a')]},
                      meta=META)
    assert 'somebody' not in text and '# x, W4A8' in text


def test_random_weights_have_no_figures_for_the_hub(results, layer):
    found = front_matter(model_card(results(untrained=True), {'layers': [layer('a')]}, meta=META,
                                    dataset='CocoDataset'))
    assert 'model-index' not in found


@pytest.mark.parametrize('metric, task', [
    ('coco/bbox_mAP', 'object-detection'), ('coco/segm_mAP', 'image-segmentation'),
    ('accuracy/top1', 'image-classification'), ('perplexity', None)])
def test_the_task_follows_the_metrics(results, metric, task):
    found = results(float={'coco/bbox_mAP': 1, metric: 1} if task == 'image-segmentation'
                    else {metric: 1})
    assert task_of(found) == task
