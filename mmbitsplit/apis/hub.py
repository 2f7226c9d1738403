"""A finished run on the Hugging Face Hub: its model card, and the upload."""

import importlib
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmbitsplit.engine.results.artifacts import CHECKPOINT, CONFIG, CONVERTED, LAYERS, RESULTS
from mmbitsplit.engine.results.report_files import read_file
from mmbitsplit.export import read_checkpoint
from mmbitsplit.export.writing import write_text
from mmbitsplit.report.model_card import CARD_BEGINS, model_card

CARD, SAFETENSORS = 'README.md', CONVERTED[0]
# What is uploaded; the journal, logs and the page of the run stay here.
PUSHED = (CARD, CHECKPOINT, *CONVERTED, CONFIG, RESULTS, LAYERS, 'plan.json')
_REPO = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', re.ASCII)


def write_card(work_dir: str | Path, *, base_model: str | None = None, license: str | None = None,
               repo: str | None = None) -> Path:
    """Writes ``README.md`` with the front matter that the Hub reads, and tables of the run.

    Args:
        work_dir: Of a finished run.
        base_model: The float model on the Hub, ``OWNER/NAME``.
        license: Of the model, by the Hub's name for it.
        repo: Where the run will be, ``OWNER/NAME``, for the lines that load it.

    Raises:
        ValueError: No finished run is there, or a ``README.md`` that is no card; or a name is not
            ``OWNER/NAME``.
    """
    work_dir = Path(work_dir)
    for what, name in (('base_model', base_model), ('repo', repo)):
        if name is not None:
            _check_repo(what, name)
    results, layers = (read_file(work_dir, name) for name in (RESULTS, LAYERS))
    checkpoint = next((name for name in (SAFETENSORS, CHECKPOINT) if (work_dir / name).is_file()),
                      None)
    if checkpoint is None:
        raise ValueError(f'{work_dir} holds neither {CHECKPOINT} nor {SAFETENSORS}; pass the work '
                         'directory of a finished run.')
    if (work_dir / CARD).is_file() and not (work_dir / CARD).read_text(
            encoding='utf-8', errors='replace').startswith(CARD_BEGINS):
        raise ValueError(f'{work_dir / CARD} is not a card that mmbitsplit wrote; move it away.')
    write_text(work_dir / CARD, model_card(
        results, layers, meta=read_checkpoint(work_dir / checkpoint).meta, checkpoint=checkpoint,
        dataset=_dataset(work_dir / CONFIG), base_model=base_model, license=license, repo=repo))
    return work_dir / CARD


def push_run(work_dir: str | Path, repo: str, *, private: bool = False) -> str:
    """Uploads a run with its card to the Hub, as whoever is logged in there.

    Args:
        work_dir: Of a finished run, with its card.
        repo: ``OWNER/NAME``; made if there is none.
        private: Whether only its owner may read it, where it is made.

    Returns:
        What the Hub says of the upload: an address.

    Raises:
        ValueError: ``repo`` is not ``OWNER/NAME``, or there is no card.
        ImportError: huggingface_hub is not installed.
    """
    _check_repo('repo', repo)
    work_dir = Path(work_dir)
    if not (work_dir / CARD).is_file():
        raise ValueError(f'{work_dir} holds no {CARD}; write it with `mmbitsplit card` first.')
    hub: Any = importlib.import_module('huggingface_hub')
    api = hub.HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    return str(api.upload_folder(folder_path=str(work_dir), repo_id=repo,
                                 allow_patterns=list(PUSHED),
                                 commit_message='Model quantized by mmbitsplit'))


def _check_repo(what: str, name: str) -> None:
    if not _REPO.fullmatch(name):
        raise ValueError(f"{what}='{name}' is not supported; allowed are names of the Hub, "
                         'OWNER/NAME.')


def _dataset(config: Path) -> str | None:
    """Returns the type of data set that the run was evaluated on."""
    if not config.is_file():
        return None
    dataset = (Config.fromfile(config).get('test_dataloader') or {}).get('dataset') or {}
    while dataset.get('dataset'):  # a wrapper, such as RepeatDataset
        dataset = dataset['dataset']
    found = dataset.get('type')
    return found if found is None or isinstance(found, str) else found.__name__
