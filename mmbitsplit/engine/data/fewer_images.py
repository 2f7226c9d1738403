"""Evaluates on a part of the evaluation set, with figures that count only that part."""

from collections.abc import Sequence

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner


def choose_images(cfg: Config, count: int) -> None:
    """Makes the test dataloader yield ``count`` images, at even steps through the data set.

    Args:
        cfg: Changed in place.
        count: Images, at least 1; all of a smaller data set.

    Raises:
        ValueError: The data set is a wrapper, which takes no indices.
    """
    dataset = cfg.test_dataloader.dataset
    if 'dataset' in dataset or 'datasets' in dataset:
        raise ValueError(f'--metric-images={count}: the evaluation set is a {dataset.type}, of '
                         'which no part can be taken; leave the option out, or name a plain data '
                         'set in test_dataloader.')
    total = len(DATASETS.build(dataset))
    dataset.indices = _even_steps(total, count)
    cfg.test_dataloader.drop_last = False


def count_only_evaluated(runner: Runner) -> None:
    """Tells COCO metrics, which else take every annotated image for one that was looked at."""
    dataset = runner.test_loop.dataloader.dataset
    for metric in runner.test_loop.evaluator.metrics:
        if hasattr(metric, 'img_ids') and hasattr(metric, 'cat_ids'):
            metric.img_ids = [dataset.get_data_info(index)['img_id']
                              for index in range(len(dataset))]


def _even_steps(total: int, count: int) -> Sequence[int]:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
