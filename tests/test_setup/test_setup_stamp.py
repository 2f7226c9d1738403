"""What is remembered, and what makes a step stale."""

import pytest
from setup_stamp import SetupState, chain_keys, file_key, installed_version, site_packages

STEPS = [('venv', ['a']), ('torch', ['2.13.0']), ('mmcv', ['2.3.6']), ('project', [])]


def changed(name, inputs):
    return chain_keys([(step, inputs if step == name else old) for step, old in STEPS])


def test_the_same_inputs_give_the_same_keys():
    assert chain_keys(STEPS) == chain_keys(STEPS)
    assert list(chain_keys(STEPS)) == ['venv', 'torch', 'mmcv', 'project']


@pytest.mark.parametrize('position, name', list(enumerate(name for name, _ in STEPS)))
def test_a_changed_input_makes_that_step_and_all_after_it_stale(position, name):
    before, after = chain_keys(STEPS), changed(name, ['something else'])
    stale = [step for step in before if before[step] != after[step]]
    assert stale == list(before)[position:]


def test_what_is_done_is_remembered_in_the_environment(tmp_path):
    state = SetupState(tmp_path / 'venv')
    state.mark_done('torch', 'key')
    assert state.torch == ''
    state.torch = '2.13.0+cpu'
    again = SetupState(tmp_path / 'venv')
    assert again.is_done('torch', 'key')
    assert not again.is_done('torch', 'other key')
    assert not again.is_done('mmcv', 'key')
    assert again.torch == '2.13.0+cpu'


@pytest.mark.parametrize('content', ['', '{"steps": ', '[]', '{"steps": {}}', 'null'])
def test_a_broken_record_counts_as_none(tmp_path, content):
    (tmp_path / 'mmbitsplit-setup.json').write_text(content)
    state = SetupState(tmp_path)
    assert not state.is_done('torch', 'key')
    state.mark_done('torch', 'key')
    assert SetupState(tmp_path).is_done('torch', 'key')


def test_file_key_follows_the_content(tmp_path):
    path = tmp_path / 'setup.py'
    path.write_text('one')
    first = file_key(path)
    assert file_key(path) == first
    path.write_text('two')
    assert file_key(path) != first


def test_versions_are_read_from_folder_names(tmp_path):
    site = tmp_path / 'lib' / 'python3.11' / 'site-packages'
    for name in ('torch-2.13.0+cpu.dist-info', 'torchvision-0.28.0.dist-info', 'torch',
                 'onedl_mmcv-2.3.6.dist-info'):
        (site / name).mkdir(parents=True)
    assert site_packages(tmp_path) == [site]
    assert installed_version(tmp_path, 'torch') == '2.13.0+cpu'
    assert installed_version(tmp_path, 'onedl-mmcv') == '2.3.6'
    assert installed_version(tmp_path, 'numpy') == ''
    assert installed_version(tmp_path / 'nothing', 'torch') == ''
