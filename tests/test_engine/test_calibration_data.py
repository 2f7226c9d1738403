"""Calibration images: from the training split, prepared as for testing, chosen by the seed."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmbitsplit.engine.data.calibration_data import (
    calibration_dataset_config,
    check_disjoint,
    evaluated_files,
    load_calibration_data,
)
from mmbitsplit.engine.run.quantize import read_spec

pytestmark = pytest.mark.usefixtures('det_scope')


def load(cfg, evaluated=()):
    return load_calibration_data(cfg, read_spec(cfg).calibration, evaluated)


def test_training_images_through_the_test_pipeline_without_annotations(demo_config, data_root):
    cfg = demo_config(num_images=5)
    dataset = calibration_dataset_config(cfg, read_spec(cfg).calibration)
    assert dataset['ann_file'] == 'train.json'
    types = [step['type'] for step in dataset['pipeline']]
    assert types == ['LoadImageFromFile', 'Resize', 'PackDetInputs']
    data = load(cfg)
    assert len(data.batches) == len(data.labels) == len(data.image_ids) == len(data.paths) == 5
    assert all(path.startswith(str(data_root / 'train')) for path in data.paths)
    assert data.labels == data.paths and len(set(data.paths)) == 5
    for batch, path in zip(data.batches, data.paths, strict=True):
        image, = batch['inputs']
        assert image.shape == (3, 160, 160)  # resized as in the test
        assert batch['data_samples'][0].img_path == path
        index = data.image_ids[data.paths.index(path)] - 1
        assert float(image.float().mean()) == pytest.approx(10 * index)


def test_the_config_is_left_as_it_was(demo_config):
    cfg = demo_config(num_images=2)
    before = cfg.pretty_text
    load(cfg)
    assert cfg.pretty_text == before


def test_the_seed_chooses(demo_config):
    torch.manual_seed(0)
    first = load(demo_config(num_images=4, seed=0))
    torch.manual_seed(1)
    assert load(demo_config(num_images=4, seed=0)).paths == first.paths
    others = [load(demo_config(num_images=4, seed=seed)).paths for seed in (1, 2, 3)]
    assert any(paths != first.paths for paths in others)


def test_batches_hold_several_images_and_name_them(demo_config):
    data = load(demo_config(num_images=5, batch_size=2))
    assert [len(batch['inputs']) for batch in data.batches] == [2, 2, 1]
    assert len(data.image_ids) == 5
    assert data.labels[0] == ', '.join(data.paths[:2])


@pytest.mark.parametrize('wrap', [
    lambda inner: dict(type='RepeatDataset', times=3, dataset=inner),
    lambda inner: dict(type='RepeatDataset', times=3, dataset=dict(
        type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner))])
def test_wrappers_that_repeat_are_taken_off(wrap, demo_config):
    cfg = demo_config(num_images=12)
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset)
    assert len(set(load(cfg).paths)) == 12


def test_a_dataloader_of_its_own(demo_config):
    cfg = demo_config(num_images=2)
    cfg.quantization.calibration.dataloader = dict(dataset=cfg.test_dataloader.dataset)
    data = load(cfg)
    assert all('val' in path for path in data.paths)
    cfg.quantization.calibration.dataloader = dict(batch_size=1)
    with pytest.raises(ValueError, match="lacks its 'dataset'"):
        load(cfg)


def test_overlap_with_the_evaluation_images_names_one(demo_config):
    cfg = demo_config(num_images=2)
    evaluated = evaluated_files(DATASETS.build(cfg.test_dataloader.dataset))
    assert len(evaluated) == 3
    assert load(cfg, evaluated)
    cfg.quantization.calibration.dataloader = dict(dataset=cfg.test_dataloader.dataset)
    with pytest.raises(ValueError, match=r'2 of 2 calibration.*val\d\.png.*training split'):
        load(cfg, evaluated)


def test_overlap_is_seen_through_links_and_spellings(tmp_path):
    image, link = tmp_path / 'a.png', tmp_path / 'link.png'
    image.write_bytes(b'')
    link.symlink_to(image)
    check_disjoint([str(tmp_path / 'b.png')], [str(image)])
    for path in (link, tmp_path / 'x' / '..' / 'a.png'):
        with pytest.raises(ValueError, match='1 of 1'):
            check_disjoint([str(path)], [str(image)])


def test_too_few_images(demo_config):
    with pytest.raises(ValueError, match='has 12 images, num_images=13'):
        load(demo_config(num_images=13))
    assert len(load(demo_config(num_images=12)).paths) == 12


@pytest.mark.parametrize('missing', ['train_dataloader', 'test_dataloader'])
def test_a_config_without_data(missing, demo_config):
    cfg = demo_config()
    cfg[missing] = None
    with pytest.raises(ValueError, match='quantization.calibration.dataloader'):
        load(cfg)


def test_data_sets_that_cannot_tell_their_files_are_not_compared():
    assert evaluated_files([1, 2, 3]) == []
    with pytest.raises(ValueError, match="no 'quantization'"):
        read_spec(Config(dict(model=dict())))
