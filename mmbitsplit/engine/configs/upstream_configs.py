"""Configs of installed packages by name, ``mmdet::yolox/yolox_s_8xb8-300e_coco.py``, and the
weights that the package's own metafiles name for them."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import yaml

from mmbitsplit.spelling import close_names

MARK = '::'
EXAMPLE = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
SHOWN = 3  # names that a message offers


@dataclass(frozen=True)
class PublishedWeights:
    """Weights of a config as a metafile names them.

    Args:
        name: What the metafile calls the model.
        address: Where the checkpoint lies.
        others: Addresses of further weights for the same config, trained otherwise.
    """

    name: str
    address: str
    others: tuple[str, ...] = ()


def is_upstream_name(config: str) -> bool:
    """Whether a config is meant by package and name rather than as a file."""
    return MARK in config and not Path(config).exists()


def find_upstream(config: str) -> Path:
    """Returns the file of a config of an installed package.

    Args:
        config: ``package::path below the package's configs``.

    Raises:
        ValueError: The package is not installed or brings no configs, or has none of this name.
    """
    package, path = config.split(MARK, 1)
    configs = _room(package, config) / 'configs'
    file = configs / path
    if file.is_file() and path.endswith('.py'):
        return file
    raise ValueError(f'{package} has no config {path or "without a name"}; '
                     f'{_nearest(path, configs, package)}')


def published_weights(config: str) -> PublishedWeights:
    """Looks up the weights that a package publishes for a config of its own.

    Args:
        config: ``package::path below the package's configs``.

    Raises:
        ValueError: Its metafiles name none.
    """
    package, path = config.split(MARK, 1)
    configs = _room(package, config) / 'configs'
    found = []
    for metafile in sorted(configs.rglob('metafile.yml')):
        text = metafile.read_text(encoding='utf-8')
        if Path(path).name in text:  # reading YAML of all of them takes seconds
            found += [(str(model.get('Name')), model['Weights'])
                      for model in (yaml.safe_load(text) or {}).get('Models') or ()
                      if isinstance(model.get('Weights'), str)
                      # From the package's folder, or as a file beside the metafile.
                      and configs / path in (configs.parent / unquote(str(model.get('Config'))),
                                             metafile.parent / str(model.get('Config')))]
    if not found:
        raise ValueError(f'{package} publishes no weights for {path}: pass the file or address of '
                         'a CHECKPOINT after the config (--untrained quantizes random weights, '
                         'for measuring speed and memory).')
    (name, address), *others = found
    return PublishedWeights(name, address, tuple(other for _, other in others))


def _room(package: str, config: str) -> Path:
    """The folder where an installed package keeps its configs and metafiles."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # an empty name, or dots
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(f"{config}: the package '{package}' is not installed; a config by name "
                         f'looks like {EXAMPLE}.')
    folder = Path(spec.origin).parent
    for room in (folder / '.mim', folder.parent):  # installed; or a checkout, installed to edit
        if (room / 'configs').is_dir():
            return room
    raise ValueError(f'{config}: this installation of {package} comes without its configs '
                     f'({folder / ".mim" / "configs"} is missing); install it from a wheel, or '
                     'pass the config as a file.')


def _nearest(path: str, configs: Path, package: str) -> str:
    """Says what a name that does not exist may have meant."""
    names = [file.relative_to(configs).as_posix() for file in configs.rglob('*.py')
             if '_base_' not in file.parts]
    stem = Path(path).name.removesuffix('.py')
    near = ([name for name in names if stem and Path(name).stem == stem]
            or sorted(name for name in names if name.startswith(path.removesuffix('.py')) and path)
            or close_names(path, names, most=SHOWN)
            or sorted(name for name in names if name.startswith(path.split('/')[0] + '/')))
    if not near:
        return f'its configs are in {configs}.'
    return 'did you mean ' + ' or '.join(f"'{package}{MARK}{name}'" for name in near[:SHOWN]) + '?'
