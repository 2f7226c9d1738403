"""Reads calibration images: what cannot be read is left out and counted, within limits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch.utils._pytree import tree_leaves

from mmbitsplit.calibration import Team
from mmbitsplit.engine.configs.config_errors import ConfigError, naming_config_errors
from mmbitsplit.passes.free_memory import memory_budget
from mmbitsplit.structures import CalibrationSpec

MOST_UNREADABLE = 0.05  # part of the images; more is a fault of the data set, not of a few files
FEW = 8  # images after which the size of all is known well enough
SHOWN = 3  # images that a message names


def own_share(images: Sequence[int], batch_size: int, team: Team) -> list[slice]:
    """Returns this process's batches as slices of the images."""
    starts = range(0, len(images), batch_size)
    return [slice(starts[number], starts[number] + batch_size)
            for number in team.batches(len(starts))]


def read_images(dataset: Any, chosen: Mapping[int, str], spec: CalibrationSpec, team: Team,
                ) -> tuple[dict[int, Any], dict[int, str]]:
    """Reads this process's share of the images, leaving out what cannot be read.

    Args:
        dataset: Gives a sample by number, or raises.
        chosen: Images by number in the data set, and their files.
        spec: How many a batch, how much memory.
        team: The processes that share the images.

    Returns:
        Samples of this process by number, and of all processes the images that cannot be read,
        with the reasons.

    Raises:
        ValueError: More than 5 % cannot be read, or all together do not fit into memory.
    """
    samples: dict[int, Any] = {}
    failed: dict[int, str] = {}
    own = _own(list(chosen), spec, team)
    room = memory_budget(spec.memory_budget, torch.device('cpu'))
    held = 0
    for number in own:
        try:
            samples[number] = dataset[number]
        except MemoryError:
            raise
        except Exception as error:  # whatever the decoders of a pipeline raise
            failed[number] = f'{type(error).__name__}: {" ".join(str(error).split())}'
            continue
        held += _bytes(samples[number])
        expected = held * len(own) / len(samples) if len(samples) >= FEW else held
        if expected > room:
            _refuse(len(own), expected, room)
    failed = {number: reason for part in team.gather(failed) for number, reason in part.items()}
    _tell(failed, chosen)
    if failed:  # the others move up, in every process
        own = _own([number for number in chosen if number not in failed], spec, team)
        samples = {number: samples[number] if number in samples else dataset[number]
                   for number in own}
    return samples, failed


def _own(images: list[int], spec: CalibrationSpec, team: Team) -> list[int]:
    return [number for share in own_share(images, spec.batch_size, team)
            for number in images[share]]


def _tell(failed: Mapping[int, str], chosen: Mapping[int, str]) -> None:
    """Logs what was left out; raises ``ValueError`` for too much of it."""
    if not failed:
        return
    shown = '; '.join(f'{chosen[number]} ({failed[number]})' for number in sorted(failed)[:SHOWN])
    more = f' and {len(failed) - SHOWN} more' if len(failed) > SHOWN else ''
    what = f'{len(failed)} of {len(chosen)} calibration images cannot be read: {shown}{more}'
    if len(failed) > MOST_UNREADABLE * len(chosen):
        raise ValueError(f'{what}. Up to {100 * MOST_UNREADABLE:.0f} % are left out; mend the '
                         'files, or name another quantization.calibration.dataloader.')
    print_log(f'mmbitsplit: {what}; calibrating without them', logger='current', level=30)


def _refuse(count: int, expected: float, room: float) -> None:
    fit = int(count * room / expected)
    raise ValueError(
        f'{count} calibration images would take about {expected / 1e9:.1f} GB of memory, all are '
        f'kept there; the budget is {room / 1e9:.1f} GB. About {fit} would fit, fewer with what '
        'calibration itself takes: lower quantization.calibration.num_images, share the images '
        'between several processes, or raise quantization.calibration.memory_budget (GB).')


def _bytes(sample: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(sample)
               if isinstance(leaf, torch.Tensor))


@contextmanager
def reading_data_set(what: str, dataset: Mapping[str, Any]) -> Iterator[None]:
    """Says which data set and annotation file an error belongs to that arises inside.

    Args:
        what: ``'calibration set'`` or ``'evaluation set'``.
        dataset: Its config.

    Raises:
        ValueError: Anything was raised inside.
    """
    try:
        with naming_config_errors():
            yield
    except ConfigError:
        raise
    except Exception as error:  # whatever readers of annotations raise, such as JSONDecodeError
        files = ', '.join(_annotation_files(dataset))
        advice = f'Its annotations: {files}; look whether the file is whole and of the format ' \
            f'that {dataset.get("type")} reads.' if files else \
            'Look at its dataloader and evaluator in the config.'
        raise ValueError(f'The {what} cannot be read: {type(error).__name__}: '
                         f'{" ".join(str(error).split())}. {advice}') from error


def _annotation_files(dataset: Mapping[str, Any]) -> Iterator[str]:
    for part in (dataset.get('dataset'), *dataset.get('datasets', ())):
        if part is not None:
            yield from _annotation_files(part)
    if dataset.get('ann_file'):
        yield str(dataset['ann_file'])
