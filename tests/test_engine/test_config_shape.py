"""Settings of a wrong type, and keys that two bases set, are told in one sentence."""

import pytest
from mmengine.config import Config

from mmbitsplit.engine.configs.config_shape import ALLOWED, check_shape, explain_duplicates

USUAL = dict(
    model=dict(type='Toy', data_preprocessor=dict(mean=[0])), work_dir='x', load_from=None,
    train_dataloader=dict(batch_size=2, num_workers=0, dataset=dict(type='A', pipeline=[])),
    test_dataloader=dict(batch_size=1, num_workers=0, dataset=dict(
        type='A', pipeline=[dict(type='Load'), dict])),
    test_evaluator=[dict(type='M')], val_evaluator=dict(type='M'), test_cfg=dict(),
    default_hooks=dict(timer=dict(type='T'), logger=None), custom_hooks=[dict(type='H')],
    env_cfg=dict(mp_cfg=dict(), dist_cfg=dict(backend='nccl')), randomness=dict(seed=None),
    log_level='INFO', resume=False, default_scope='mmdet', visualizer=dict(type='V'),
    custom_imports=dict(imports=['a']), param_scheduler=[dict(type='P')],
    optim_wrapper=dict(type='O'), data_preprocessor=None, runner_type='Runner',
    log_processor=dict(type='L'), auto_scale_lr=dict(enable=False))


def test_usual_settings_pass():
    check_shape(Config(USUAL))
    check_shape(Config(dict(model=dict(type='Toy'))))


@pytest.mark.parametrize('path', sorted(ALLOWED))
@pytest.mark.parametrize('wrong', [3.5, b'bytes', {1, 2}])
def test_every_setting_of_a_wrong_type_is_named(path, wrong):
    cfg = Config(USUAL)
    cfg.merge_from_dict({path: wrong})
    with pytest.raises(ValueError) as error:
        check_shape(cfg)
    said = str(error.value)
    assert said.startswith(f'{path}=') and 'it must be' in said and '\n' not in said


@pytest.mark.parametrize('path, wrong, allowed', [
    ('env_cfg', 3, 'a dict'), ('env_cfg', None, 'a dict'), ('default_hooks', [1], 'a dict'),
    ('default_hooks.timer', 3, 'a dict'), ('custom_hooks', 'H', 'a list'),
    ('test_dataloader', 5, 'a dict'), ('work_dir', 3, 'a word'),
    ('randomness.seed', True, 'an integer'), ('randomness.seed', '1', 'an integer'),
    ('resume', 1, 'True or False'), ('test_dataloader.dataset', None, 'a dict')])
def test_what_is_allowed_is_said(path, wrong, allowed):
    cfg = Config(USUAL)
    cfg.merge_from_dict({path: wrong})
    with pytest.raises(ValueError, match=rf'{path}=.* is not supported; it must be {allowed}'):
        check_shape(cfg)


def test_a_level_that_is_none():
    with pytest.raises(ValueError, match="log_level='loud' is not supported; allowed are DEBUG"):
        check_shape(Config({**USUAL, 'log_level': 'loud'}))


def test_a_step_of_a_pipeline_that_is_none():
    cfg = Config(USUAL)
    cfg.test_dataloader.dataset.pipeline = [dict(type='Load'), 3]
    with pytest.raises(ValueError, match='test_dataloader.dataset.pipeline.1=3 is not supported'):
        check_shape(cfg)


def test_a_hook_that_is_none():
    with pytest.raises(ValueError, match="custom_hooks.1='H' is not supported; it must be a dict"):
        check_shape(Config({**USUAL, 'custom_hooks': [dict(type='H'), 'H']}))


@pytest.mark.parametrize('model, given', [(None, "'model' dict; inherit"), (3, r'\(model=3\)'),
                                          ([], r'\(model=\[\]\)')])
def test_a_model_that_is_none(model, given):
    with pytest.raises(ValueError, match=given):
        check_shape(Config(dict(model=model)))


LAZY = """
from mmengine.dataset import pseudo_collate
from torch.nn import ReLU
model = dict(type=ReLU)
test_dataloader = dict(collate_fn=pseudo_collate, dataset=dict(type='A'))
"""


@pytest.mark.parametrize('more, path', [
    ('def mine(x):\n    return x\n', 'mine'), ('a = [dict(b=lambda x: x)]\n', 'a.0.b'),
    ('import functools\nb = dict(c=functools.partial(print, 1))\n', 'functools'), ('', None)])
def test_functions_that_no_file_can_name(more, path, tmp_path):
    """mmengine ends with a SyntaxError of its formatter there; an imported function is fine."""
    (tmp_path / 'lazy.py').write_text(LAZY + more)
    cfg = Config.fromfile(tmp_path / 'lazy.py')
    if path is None:
        check_shape(cfg)
        assert 'mmengine.dataset.pseudo_collate' in cfg.pretty_text
        return
    with pytest.raises(ValueError, match=f'^{path}=<.* cannot be written down.*my_module'):
        check_shape(cfg)
    with pytest.raises(SyntaxError):
        _ = cfg.pretty_text


@pytest.fixture
def two_bases(tmp_path):
    def write(first: str, second: str, bases: str = "['./first.py', './second.py']"):
        (tmp_path / 'first.py').write_text(first)
        (tmp_path / 'second.py').write_text(second)
        path = tmp_path / 'mine.py'
        path.write_text(f'_base_ = {bases}\n')
        return str(path)
    return write


def explained(path: str) -> str | None:
    with pytest.raises(Exception) as error:
        Config.fromfile(path)
    return explain_duplicates(path, error.value)


def test_a_key_of_two_bases_is_told_with_what_to_do(two_bases):
    said = explained(two_bases('a = 1\ncustom_hooks = []\n', 'custom_hooks = [3]\nb = 2\n'))
    for part in ('mine.py set custom_hooks (./first.py and ./second.py)', 'keep one base',
                 'mmbitsplit quantize CONFIG CHECKPOINT', 'delete both there'):
        assert part in said
    said = explained(two_bases('a = 1\nb = 2\n', 'b = 2\na = 1\n', "['./first.py', './second.py']"))
    assert 'set a and b (' in said
    said = explained(two_bases('a = 1\n', 'a = 2\n', "['./first.py'] + ['./second.py']"))
    assert 'mine.py set a, and' in said


def test_another_error_is_none_of_it(two_bases):
    assert explained(two_bases('a = 1 / 0\n', 'b = 1\n')) is None
    assert explain_duplicates('mine.py', KeyError()) is None
