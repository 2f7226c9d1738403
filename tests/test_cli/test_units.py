"""The command that prints the units of a config's model; needs the demo's data."""

import json
import re

import pytest

from mmbitsplit.cli.main import main

CLASSIFIER = 'configs/demo/classifier_digits_w4a8.py'


@pytest.fixture
def units(capsys, monkeypatch, request, tmp_path):
    """Runs the command on the demo classifier; returns its status and what it printed."""
    monkeypatch.chdir(request.config.rootpath)

    def run(*options):
        status = main(['units', CLASSIFIER, '--work-dir', str(tmp_path), '--images', '2', *options])
        out, err = capsys.readouterr()
        return status, out, err
    return run


def test_the_table_has_a_row_a_unit(units):
    status, out, _ = units('--untrained')
    lines = out.splitlines()
    assert status == 0 and lines[0].startswith('| unit ')
    assert re.fullmatch(r'\| backbone.layer2.0 +\| BasicBlock +\| +3 \| +14336 \| +\|', lines[5])
    assert re.match(r"\| backbone.conv1 +\| Conv2d .*'backbone' gives its tensor in a container",
                    lines[2])
    assert lines[-1] == '21 layers in 10 units, 2 of one layer'


def test_overrides_make_and_divide_units(units):
    overrides = ("quantization.overrides=[{'match': 'backbone.layer4', 'unit': 'module'}, "
                 "{'match': 'backbone.layer1.*', 'unit': 'layer'}]")
    status, out, _ = units('--json', '--untrained', '--cfg-options', overrides)
    found = {unit['name']: unit for unit in json.loads(out)}
    assert status == 0 and found['backbone.layer4']['layers'] == [
        'backbone.layer4.0.conv1', 'backbone.layer4.0.conv2', 'backbone.layer4.0.downsample.0',
        'backbone.layer4.1.conv1', 'backbone.layer4.1.conv2']
    assert found['backbone.layer1.1.conv2']['reason'] == 'set apart by overrides[1]'
    status, _, err = units('--untrained', '--cfg-options', overrides.replace('layer4', 'laier4'))
    assert status == 2 and "match='backbone.laier4' matches no module" in err.splitlines()[-1]


@pytest.mark.parametrize(('name', 'ends'), [
    ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', '83 layers in 46 units, 27 of one layer'),
    ('mmpretrain::lenet/lenet5_mnist.py', None)])
def test_without_the_data_set_a_made_up_image_shows_the_units(name, ends, capsys, monkeypatch,
                                                              tmp_path):
    pytest.importorskip(name.partition('::')[0])
    monkeypatch.chdir(tmp_path)
    status = main(['units', name, '--untrained'])
    out, err = capsys.readouterr()
    notes = [line for line in err.splitlines() if 'made-up image' in line]
    assert status == 0, err
    assert len(notes) == 1 and notes[0].startswith('note: data/') and 'does not exist' in notes[0]
    assert re.search(r'\n\d+ layers in \d+ units', out) and (ends is None or ends in out)


def test_a_data_root_that_is_missing_is_an_error(capsys, monkeypatch, tmp_path):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    assert main(['units', 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', '--untrained',
                 '--data-root', 'data/elsewhere']) == 2
    assert 'elsewhere does not exist' in capsys.readouterr().err.replace('/ does', ' does')


def test_asked_for_a_made_up_image_is_taken_though_there_are_others(units):
    status, out, err = units('--untrained', '--synthetic')
    assert status == 0 and out.splitlines()[-1] == '21 layers in 10 units, 2 of one layer'
    assert 'made-up' not in err
