"""Reading a config with options: values as written, errors in one line that name the slip."""

import argparse

import pytest

from mmbitsplit.cli.config_arguments import add_config_arguments, read_config

CONFIG = """
model = dict(type='Toy', depths=(1, 2), layers=[dict(width=3), dict(width=4)], neck=None)
quantization = dict(weight=dict(num_bits=4))
test_dataloader = dict(dataset=dict(ann_file='a.json'))
"""


@pytest.fixture
def read(tmp_path):
    path = tmp_path / 'toy config.py'
    path.write_text(CONFIG)

    def call(*options, config=path, more=()):
        parser = argparse.ArgumentParser()
        parser.add_argument('config')
        add_config_arguments(parser)
        words = ['--cfg-options', *options] if options else []
        return read_config(parser.parse_args([str(config), *words, *more]))

    return call


def test_the_work_dir_is_named_after_the_config(read):
    assert read().work_dir == 'work_dirs/toy config' and read().launcher == 'none'
    assert read(more=('--work-dir', 'x y')).work_dir == 'x y'


@pytest.mark.parametrize('option, path, value', [
    ('quantization.weight.num_bits=3', 'quantization.weight.num_bits', 3),
    ('model.type=Other', 'model.type', 'Other'),
    ('test_dataloader.dataset.ann_file=/tmp/my data/ä b.json', 'test_dataloader.dataset.ann_file',
     '/tmp/my data/ä b.json'),
    ('model.type="quoted words"', 'model.type', 'quoted words'),
    ("model.names=['a b', 'c']", 'model.names', ['a b', 'c']),
    ('model.names=[a,b]', 'model.names', ['a', 'b']),
    ('model.sizes=1,2', 'model.sizes', [1, 2]),
    ('model.pairs=[(1,2),(3,4)]', 'model.pairs', [(1, 2), (3, 4)]),
    ('model.depths=(3,4)', 'model.depths', (3, 4)),
    ('model.neck=None', 'model.neck', None), ('model.flag=true', 'model.flag', True),
    ('model.equation=a=b', 'model.equation', 'a=b'),
    ('randomness.seed=5', 'randomness.seed', 5), ('of_my_own.x=1', 'of_my_own.x', 1),
])
def test_values_arrive_as_written(option, path, value, read):
    found = read(option)
    for key in path.split('.'):
        found = found[key]
    assert found == value and type(found) is type(value)


def test_places_of_lists_can_be_set(read):
    assert [layer['width'] for layer in read('model.layers.1.width=9').model.layers] == [3, 9]


@pytest.mark.parametrize('options, message', [
    (['model.type.name=1'], "model.type is 'Toy', which has no part 'name'"),
    (['model.layers.2.width=1'], "model.layers is a list of 2, '2' is not one of its places 0 to"),
    (['model.layers.first=1'], "'first' is not one of its places"),
    (['model.depths.0=1'], 'model.depths is a tuple of 2'),
    (['quantisation.weight.num_bits=3'], "no 'quantisation'; did you mean 'quantization'?"),
    (['model.neck=1', 'model.neck.width=2'], 'sets both model.neck and model.neck.width'),
    (['model.neck.width=2', 'model.neck=1'], 'sets both model.neck and model.neck.width'),
])
def test_a_path_that_does_not_fit_is_said(options, message, read):
    with pytest.raises(ValueError, match='--cfg-options') as error:
        read(*options)
    assert message in str(error.value)


@pytest.mark.parametrize('option, message', [
    ('model.type', "takes key=value, got 'model.type'"), ('=3', "got '=3'"),
    ('model.x=[1,(2]', 'close every bracket')])
def test_what_is_no_option_ends_with_2(option, message, read, capsys):
    with pytest.raises(SystemExit) as end:
        read(option)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('text, message', [
    ('model = dict(', 'cannot be read: SyntaxError'),
    ('model = 1 / 0', 'cannot be read: ZeroDivisionError'),
    ("custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)",
     'imports what is not found .*no_such_module.*PYTHONPATH=[.] for'),
    ("_base_ = './gone.py'", 'builds on a file that is not there'),
])
def test_a_config_that_cannot_be_read(text, message, read, tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(config=path)


def test_a_slip_of_a_scope_is_told_from_a_scope_of_one_s_own(read):
    with pytest.raises(ValueError, match="default_scope='mmpretrian'.*did you mean 'mmpretrain'"):
        read('default_scope=mmpretrian')
    for scope in ('mmdet', 'mmengine', 'None', 'my_models'):
        read(f'default_scope={scope}')


def test_a_misspelled_config_is_answered_with_the_nearest(read, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'toy config.py'"):
        read(config=tmp_path / 'toy_config.py')
    with pytest.raises(ValueError, match='nor does its folder'):
        read(config=tmp_path / 'nowhere/toy.py')
