"""The card of a work directory, and the upload with a stand-in for the Hub."""

import fnmatch
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mmbitsplit.apis.checkpoint_files import convert_checkpoint
from mmbitsplit.cli import card

PACKED = Path(__file__).parents[1] / 'packed_files/packed_v2.pth'
RESULTS = {
    'config': 'configs/some_name.py', 'method': {'type': 'BitSplit'}, 'weight_bits': 4,
    'activation_bits': 8, 'float': {'coco/bbox_mAP': 0.4}, 'quantized': {'coco/bbox_mAP': 0.39},
    'drop': {'coco/bbox_mAP': 0.01}, 'seconds': {}, 'peak_rss_bytes': 1, 'versions': {'torch': '2'},
    'size_bytes': {'float': 80, 'quantized_checkpoint': 12, 'quantized_payload': 10},
    'calibration': {'image_ids': [1, 2], 'seed': 0}}


@pytest.fixture
def work_dir(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    shutil.copy(PACKED, folder / 'quantized.pth')
    (folder / 'results.json').write_text(json.dumps(RESULTS))
    (folder / 'layers.json').write_text(json.dumps({'layers': [], 'kept_float': []}))
    (folder / 'quantized_config.py').write_text(
        "test_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict("
        "type='CocoDataset')))\n")
    (folder / 'journal').mkdir()
    (folder / 'journal/notes.bin').write_text('')
    return folder


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the package: notes what it is asked for."""
    asked = []

    class HfApi:
        def create_repo(self, repo, **options):
            asked.append(('create', repo, options))

        def upload_folder(self, **options):
            asked.append(('upload', options))
            return f'hub/{options["repo_id"]}'

    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(HfApi=HfApi))
    return asked


def front_matter(path: Path) -> dict:
    return yaml.safe_load(path.read_text().split('---\n')[1])


def test_the_card_names_the_data_set_of_the_config(work_dir, capsys):
    assert card.main([str(work_dir), '--base-model', 'someone/model']) == 0
    assert capsys.readouterr().out.strip() == str(work_dir / 'README.md')
    found = front_matter(work_dir / 'README.md')
    assert found['base_model'] == 'someone/model' and found['base_model_relation'] == 'quantized'
    assert found['model-index'][0]['results'][0]['dataset']['type'] == 'CocoDataset'
    assert "'quantized.pth'" in (work_dir / 'README.md').read_text()
    convert_checkpoint(work_dir / 'quantized.pth')
    assert card.main([str(work_dir)]) == 0
    assert "'quantized.safetensors'" in (work_dir / 'README.md').read_text()
    assert 'base_model' not in front_matter(work_dir / 'README.md')


def test_a_readme_of_somebody_else_stays(work_dir, capsys):
    (work_dir / 'README.md').write_text('# Notes')
    assert card.main([str(work_dir)]) == 2
    assert 'move it away' in capsys.readouterr().err
    assert (work_dir / 'README.md').read_text() == '# Notes'


def test_push_uploads_what_loads_the_model_and_nothing_else(work_dir, hub, capsys):
    assert card.main([str(work_dir), '--push', 'me/mine', '--private']) == 0
    assert capsys.readouterr().out.splitlines()[-1] == 'hub/me/mine'
    (create, repo, options), (_, upload) = hub
    assert (create, repo, options) == ('create', 'me/mine', {'private': True, 'exist_ok': True})
    names = [path.relative_to(work_dir).as_posix() for path in work_dir.rglob('*')
             if path.is_file()]
    assert {name for name in names for pattern in upload['allow_patterns']
            if fnmatch.fnmatch(name, pattern)} == {
        'README.md', 'quantized.pth', 'quantized_config.py', 'results.json', 'layers.json'}
    assert "snapshot_download('me/mine')" in (work_dir / 'README.md').read_text()


def test_push_without_the_package_names_the_extra(work_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert card.main([str(work_dir), '--push', 'me/mine']) == 2
    assert "pip install 'mmbitsplit[hub]'" in capsys.readouterr().err


@pytest.mark.parametrize('arguments, said', [
    (['--push', 'mine'], "repo='mine'"), (['--base-model', 'a/b/c'], "base_model='a/b/c'")])
def test_names_that_the_hub_has_not_are_refused_before_anything_is_written(
        work_dir, hub, arguments, said, capsys):
    assert card.main([str(work_dir), *arguments]) == 2
    assert said in capsys.readouterr().err and not hub
    assert not (work_dir / 'README.md').exists()


def test_an_unfinished_run_has_no_card(work_dir, capsys):
    (work_dir / 'quantized.pth').unlink()
    assert card.main([str(work_dir)]) == 2
    assert 'holds neither quantized.pth nor quantized.safetensors' in capsys.readouterr().err
