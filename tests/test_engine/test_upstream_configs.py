"""Configs of installed packages by name, and the weights that their metafiles name."""

from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from mmbitsplit.engine.configs import upstream_configs
from mmbitsplit.engine.configs.upstream_configs import (
    find_upstream,
    is_upstream_name,
    published_weights,
)

YOLOX = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
METAFILE = """
Models:
- Name: plain
  Config: configs/gn%2Bws/net_a.py
  Weights: https://example.org/plain.pth
- Name: better
  Config: configs/gn%2Bws/net_a.py
  Weights: https://example.org/better.pth
- Name: longer-name
  Config: configs/gn%2Bws/net_a.py.py
  Weights: https://example.org/other.pth
- Name: beside
  Config: net_c.py
  Weights: https://example.org/beside.pth
- Name: without
  Config: configs/gn%2Bws/net_b.py
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of two configs, one with weights."""
    folder = tmp_path / 'mmtoy' / '.mim' / 'configs' / 'gn+ws'
    folder.mkdir(parents=True)
    (tmp_path / 'mmtoy' / '__init__.py').write_text('')
    for name in ('net_a', 'net_b', 'net_c'):
        (folder / f'{name}.py').write_text("model = dict(type='Toy')\n")
    (folder / 'metafile.yml').write_text(METAFILE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / 'mmtoy'


def test_what_is_a_name_and_what_a_file(tmp_path, monkeypatch):
    assert is_upstream_name(YOLOX) and not is_upstream_name('configs/a.py')
    monkeypatch.chdir(tmp_path)
    Path('odd::name.py').write_text('')
    assert not is_upstream_name('odd::name.py')


def test_the_file_of_a_name():
    pytest.importorskip('mmdet')
    file = find_upstream(YOLOX)
    assert file.is_file() and file.as_posix().endswith('configs/yolox/yolox_tiny_8xb8-300e_coco.py')


@pytest.mark.parametrize('name, message', [
    ('mmtoy::gn+ws/net_d.py', "has no config gn\\+ws/net_d.py; did you mean 'mmtoy::gn\\+ws/net_"),
    ('mmtoy::net_a.py', "did you mean 'mmtoy::gn\\+ws/net_a.py'"),
    ('mmtoy::gn+ws/net_a', "did you mean 'mmtoy::gn\\+ws/net_a.py'"),
    ('mmtoy::gn+ws', "did you mean 'mmtoy::gn\\+ws/net_a.py' or"),
    ('mmtoy::', 'without a name; its configs are in '),
    ('mmtoyy::gn+ws/net_a.py', "package 'mmtoyy' is not installed.*mmdet::yolox"),
    ('::net_a.py', "package '' is not installed"), ('a.b::net.py', "'a.b' is not installed"),
    ('torch::net.py', 'installation of torch comes without its configs')])
def test_a_name_that_leads_nowhere(name, message, package):
    with pytest.raises(ValueError, match=message):
        find_upstream(name)


def test_weights_of_a_config_with_several(package):
    found = published_weights('mmtoy::gn+ws/net_a.py')
    assert found.name == 'plain' and found.address == 'https://example.org/plain.pth'
    assert found.others == ('https://example.org/better.pth',)


def test_weights_of_a_config_beside_the_metafile(package):
    assert published_weights('mmtoy::gn+ws/net_c.py').name == 'beside'


@pytest.mark.parametrize('name', ['net_b', 'net_d'])
def test_weights_that_nobody_publishes(name, package):
    with pytest.raises(ValueError, match=f'no weights for gn.ws/{name}.py: pass.*CHECKPOINT'):
        published_weights(f'mmtoy::gn+ws/{name}.py')


def test_a_checkout_that_is_installed_to_edit(package):
    (package / '.mim' / 'configs').rename(package.parent / 'configs')
    assert find_upstream('mmtoy::gn+ws/net_a.py').parent.parent == package.parent / 'configs'


@pytest.mark.parametrize('package', ['mmdet', 'mmpretrain'])
def test_addresses_are_those_that_mmengine_reads(package):
    pytest.importorskip(package)
    utils = pytest.importorskip('mmengine.config.utils')
    room = upstream_configs._room(package, package)
    index = yaml.safe_load((room / 'model-index.yml').read_text(encoding='utf-8'))
    for metafile in index['Import'][::15]:
        models = yaml.safe_load((room / metafile).read_text(encoding='utf-8'))['Models']
        config = models[-1]['Config']
        if not config.startswith('configs/') or not isinstance(models[-1].get('Weights'), str):
            continue
        config = config.removeprefix('configs/')
        theirs = utils._get_cfg_metainfo(str(room.parent), config)
        assert published_weights(f'{package}::{unquote(config)}').address == theirs['Weights']
