"""Misspelled types and arguments of a config are answered with the nearest name."""

import pytest
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mmbitsplit.engine.configs.config_errors import ConfigError, naming_config_errors
from mmbitsplit.engine.data.calibration_images import reading_data_set


def refused(build, *parts):
    with pytest.raises(ConfigError) as error, naming_config_errors():
        build()
    for part in parts:
        assert part in str(error.value)
    assert '\n' not in str(error.value)


def test_a_misspelled_type_is_answered_with_the_nearest(det_scope):
    refused(lambda: MODELS.build(dict(type='ResNett', depth=18)), "type='ResNett' is not known",
            "did you mean 'ResNet'?", 'custom_imports')
    refused(lambda: DATASETS.build(dict(type='CocoDatasett')), "did you mean 'CocoDataset'?")


def test_a_type_of_another_scope_is_found_there(det_scope):
    with DefaultScope.overwrite_default_scope('mmengine'):
        refused(lambda: MODELS.build(dict(type='RetinaNet')), "known in mmdet, not in mmengine",
                "'mmdet.RetinaNet'", "default_scope='mmdet'")


def test_a_type_like_no_other_is_said_without_a_guess(det_scope):
    with pytest.raises(ConfigError) as error, naming_config_errors():
        MODELS.build(dict(type='Qqqqqqqqqqqq'))
    assert 'did you mean' not in str(error.value)


def test_arguments_too_many_and_too_few_are_named(det_scope):
    refused(lambda: MODELS.build(dict(type='ResNet', depth=18, num_stagess=4)),
            "gives ResNet the argument 'num_stagess'", "did you mean 'num_stages'?")
    refused(lambda: MODELS.build(dict(type='ResNet')), 'does not give ResNet', "'depth'")


def test_what_a_runner_cannot_use_is_said(det_scope, tmp_path):
    from mmengine.config import Config
    from mmengine.registry import RUNNERS
    usual = dict(model=dict(type='mmengine.ToyModel'), work_dir=str(tmp_path))
    refused(lambda: RUNNERS.build(Config(dict(usual, runner_type='Runer'))), "runner_type='Runer'")
    refused(lambda: RUNNERS.build(Config(dict(usual, randomness=dict(seeed=1)))),
            "randomness of the config has the key 'seeed'")
    refused(lambda: RUNNERS.build(Config(dict(usual, env_cfg=dict(mp_cfg=dict(seeed=1))))),
            "env_cfg.mp_cfg of the config has the key 'seeed'")
    refused(lambda: MODELS.build(dict(type='RetinaNet', backbone=3, neck=None, bbox_head=None)),
            "Where a dict(type='...') belongs", "<class 'int'>")


@pytest.mark.parametrize('error', [KeyError('name'), TypeError('no number'), KeyError(),
                                   RuntimeError('out of memory')])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, naming_config_errors():
        raise error
    assert caught.value is error


def test_a_slip_in_a_data_set_is_not_taken_for_a_damaged_file(det_scope):
    with pytest.raises(ConfigError, match="did you mean 'CocoDataset'"), \
            reading_data_set('evaluation set', dict(type='CocoDatasett', ann_file='a.json')):
        DATASETS.build(dict(type='CocoDatasett'))


def test_annotations_are_spoken_of_only_where_there_are_some():
    for ann_file, said in (('a.json', 'Its annotations: a.json'), ('', 'Look at its dataloader')):
        with pytest.raises(ValueError, match=f'evaluation set cannot be read.*odd.*{said}'), \
                reading_data_set('evaluation set', dict(type='X', ann_file=ann_file)):
            raise ValueError('odd')
