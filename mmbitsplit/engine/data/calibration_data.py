"""Calibration images from a config: the training set through the test pipeline."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import SequentialSampler, Subset

from mmbitsplit.calibration import Team
from mmbitsplit.engine.data.calibration_images import own_share, read_images, reading_data_set
from mmbitsplit.structures import CalibrationSpec

NUM_EXAMPLES = 8  # some layers are reached by some images only


@dataclass(frozen=True)
class CalibrationData:
    """Batches ready for the model, and where they come from.

    Args:
        batches: As the dataloader collates them; of several processes, this one's share.
        labels: The image file(s) of each of those batches.
        image_ids: Of every image, in order: the data set's own, or the file's name.
        paths: File of every image.
        unreadable: Files that were chosen and left out, and why they cannot be read.
    """

    batches: list[Any]
    labels: list[str]
    image_ids: list[Any]
    paths: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)


def calibration_dataset_config(cfg: Config, spec: CalibrationSpec) -> dict[str, Any]:
    """Returns the data set config that calibration images come from.

    The config's own ``quantization.calibration.dataloader`` where there is one, else the
    training set, wrappers that only repeat it taken off, with the test pipeline and without
    loading annotations.

    Raises:
        ValueError: The config has neither.
    """
    if spec.dataloader is not None:
        if 'dataset' not in spec.dataloader:
            raise ValueError("quantization.calibration.dataloader lacks its 'dataset'.")
        return copy.deepcopy(dict(spec.dataloader['dataset']))
    if cfg.get('train_dataloader') is None or cfg.get('test_dataloader') is None:
        raise ValueError('The config has no train_dataloader and test_dataloader to take '
                         'calibration images and their pipeline from; set '
                         'quantization.calibration.dataloader.')
    dataset = copy.deepcopy(innermost(cfg.train_dataloader.dataset))
    pipeline = find_pipeline(cfg.test_dataloader.dataset)
    if pipeline is None:
        raise ValueError('test_dataloader.dataset has no pipeline to prepare calibration images '
                         'with; set quantization.calibration.dataloader.')
    pipeline = [step for step in copy.deepcopy(pipeline)
                if not str(step['type']).rsplit('.', 1)[-1].startswith('LoadAnnotations')]
    for part in dataset.get('datasets', [dataset]):
        part['pipeline'] = pipeline
    return dataset


def innermost(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Takes wrappers that repeat or balance a data set off its config."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def find_pipeline(dataset: Mapping[str, Any]) -> list | None:
    """Returns the pipeline of a data set config, also of one inside of wrappers."""
    while 'pipeline' not in dataset:
        if 'dataset' in dataset:
            dataset = dataset['dataset']
        elif dataset.get('datasets'):
            dataset = dataset['datasets'][0]
        else:
            return None
    return dataset['pipeline']


def load_calibration_data(cfg: Config, spec: CalibrationSpec, evaluated: Sequence[str],
                          team: Team | None = None) -> CalibrationData:
    """Chooses the calibration images and loads this process's share of them.

    Args:
        cfg: The whole config.
        spec: How many, which seed, how many a batch.
        evaluated: Files that the model is evaluated on.
        team: The processes that share the batches; this one alone when not given.

    Raises:
        ValueError: Fewer images than asked for, images that are also evaluated on, that take
            too much memory, or too many that cannot be read.
    """
    if not spec.num_images:
        return _examples(cfg, team or Team())
    config = calibration_dataset_config(cfg, spec)
    with reading_data_set('calibration set', config):
        dataset = DATASETS.build(config)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    if len(dataset) < spec.num_images:
        what = 'is empty' if not len(dataset) else f'has {len(dataset)} images'
        raise ValueError(f'The calibration set {what}, num_images={spec.num_images} are asked '
                         'for; lower quantization.calibration.num_images or name another '
                         'quantization.calibration.dataloader.')
    generator = torch.Generator().manual_seed(spec.seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:spec.num_images].sort().values
    infos = {index: dataset.get_data_info(index) for index in chosen.tolist()}
    files = {index: str(info.get('img_path', info.get('img_id', index)))
             for index, info in infos.items()}
    check_disjoint(list(files.values()), evaluated)
    team = team or Team()
    samples, unreadable = read_images(dataset, files, spec, team)
    infos = {index: info for index, info in infos.items() if index not in unreadable}
    paths = [files[index] for index in infos]
    shares = own_share(paths, spec.batch_size, team)
    own = list(samples.values())
    # A sequential sampler: mmengine's default one would share the images out once more.
    loader = Runner.build_dataloader(dict(
        dataset=own, batch_size=spec.batch_size, num_workers=0, drop_last=False,
        sampler=SequentialSampler(own), collate_fn=_collate(cfg, spec)))
    ids = [info.get('img_id', os.path.basename(files[index])) for index, info in infos.items()]
    return CalibrationData(list(loader), [', '.join(paths[share]) for share in shares], ids,
                           paths, {files[index]: why for index, why in unreadable.items()})


def _examples(cfg: Config, team: Team) -> CalibrationData:
    """Evaluation images to see how values flow, where nothing is calibrated on images.

    Codes come from the weights alone then, so that no figure is flattered.
    """
    if cfg.get('test_dataloader') is None:
        raise ValueError('quantization.calibration.num_images=0: the config has no '
                         'test_dataloader to take an example from that shows how values flow '
                         'through the model.')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    numbers = team.batches(min(len(dataset), NUM_EXAMPLES))
    own = Subset(dataset, list(numbers))
    loader = Runner.build_dataloader(dict(
        dataset=own, batch_size=1, num_workers=0, drop_last=False,
        sampler=SequentialSampler(own),
        collate_fn=cfg.test_dataloader.get('collate_fn') or dict(type='pseudo_collate')))
    return CalibrationData(list(loader), [f'example {number}' for number in numbers], [], [])


def _collate(cfg: Config, spec: CalibrationSpec) -> Mapping[str, Any]:
    """The collate function of the dataloader that the pipeline is taken from."""
    source = spec.dataloader if spec.dataloader is not None else cfg.test_dataloader
    return source.get('collate_fn') or dict(type='pseudo_collate')


def evaluated_files(dataset: Any) -> list[str]:
    """Lists the image files of an evaluation data set that can tell them."""
    if not hasattr(dataset, 'get_data_info'):
        return []
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return [str(info['img_path']) for info in infos if 'img_path' in info]


def check_disjoint(calibrated: Sequence[str], evaluated: Sequence[str]) -> None:
    """Raises ``ValueError`` when an image is both calibrated and evaluated on."""
    known = {os.path.realpath(path) for path in evaluated}
    common = [path for path in calibrated if os.path.realpath(path) in known]
    if common:
        raise ValueError(
            f'{len(common)} of {len(calibrated)} calibration images are also evaluated on, such '
            f'as {common[0]}: the figures would flatter. Take calibration images from the '
            'training split (quantization.calibration.dataloader).')
