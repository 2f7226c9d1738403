"""A data root is replaced wherever the config names it, and nowhere else."""

import pytest
from mmengine.config import Config

from mmbitsplit.engine.configs.data_root import move_data


def test_every_place_that_names_the_root_is_moved(tmp_path):
    cfg = Config(dict(
        train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(
            data_root='data/coco/', ann_file='annotations/a.json'))),
        test_dataloader=dict(dataset=dict(data_root='data/coco')),
        test_evaluator=[dict(ann_file='data/coco/annotations/b.json')],
        load_from='data/coco/weights.pth', other='data/coco2/x', words=('data/coco/', 3)))
    move_data(cfg, str(tmp_path))
    new = f'{tmp_path}/'
    assert cfg.train_dataloader.dataset.dataset.data_root == new
    assert cfg.train_dataloader.dataset.dataset.ann_file == 'annotations/a.json'
    assert cfg.test_dataloader.dataset.data_root.rstrip('/') == str(tmp_path)
    assert cfg.test_evaluator[0].ann_file == f'{new}annotations/b.json'
    assert cfg.load_from == f'{new}weights.pth'
    assert cfg.other == 'data/coco2/x' and tuple(cfg.words) == (new, 3)


@pytest.mark.parametrize('cfg', [{}, {'train_dataloader': {'dataset': {'type': 'A'}}}])
def test_a_config_without_a_root(cfg):
    with pytest.raises(ValueError, match='has no data_root to replace'):
        move_data(Config(cfg), 'x')
