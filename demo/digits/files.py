"""The demo data set on disk, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from demo.digits.coco_format import coco_annotations, coco_dictionary
from demo.digits.samples import (
    CLASS_NAMES,
    DigitSamples,
    load_samples,
    split_samples,
)
from demo.digits.scenes import render_crop, render_scene

VERSION = 1  # raise it whenever the same options would give other pictures
META_NAME = 'meta.json'
_JPEG_QUALITY = 95
_SCENES, _CROPS = 1, 2  # first words of the random streams, beside the 0 of split_samples


@dataclass(frozen=True)
class DigitsOptions:
    """What a demo data set is made from.

    Args:
        seed: Which data set.
        num_train: Training scenes.
        num_val: Validation scenes.
        num_cls_train: Training crops, the classes in turn.
        num_cls_val: Validation crops, the classes in turn.
    """

    seed: int = 0
    num_train: int = 6000
    num_val: int = 400
    num_cls_train: int = 6000
    num_cls_val: int = 1000

    def __post_init__(self) -> None:
        """Refuses counts that make no data set.

        Raises:
            ValueError: If a value is too small.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == 'seed' else 1
            if value < least:
                raise ValueError(f'{field.name} is {value}, but must be at least {least}')


@dataclass(frozen=True)
class DigitsReport:
    """What ``write_digits`` found or made.

    Args:
        root: Where the data set lies.
        created: False where an existing set was kept.
        counts: Files and annotated instances a part.
    """

    root: Path
    created: bool
    counts: dict[str, int]


def write_digits(
    root: str | os.PathLike[str],
    options: DigitsOptions | None = None,
    *,
    force: bool = False,
    workers: int = 1,
) -> DigitsReport:
    """Writes the demo data set, or keeps an existing one that was made from the same options.

    Everything goes to a temporary directory beside ``root`` that is renamed at the end, so ``root``
    either holds a complete set or is left as it was.

    Args:
        root: Directory to make.
        options: What to make, the defaults where None.
        force: Replace an existing data set.
        workers: Processes that render; the files do not depend on it.

    Returns:
        Where it lies, whether it is new, and what it holds.

    Raises:
        ValueError: If ``root`` holds a set made from other options and ``force`` is not given, or
            ``workers`` is not positive.
        FileExistsError: If ``root`` holds something that is no demo data set.
    """
    if workers < 1:
        raise ValueError(f'workers is {workers}, but must be at least 1')
    options = options or DigitsOptions()
    root = Path(root)
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        meta = _read_meta(root)
        if not force:
            counts = _check_same(root, meta, options)
            return DigitsReport(root, False, counts)
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        scratch.chmod(0o755)  # mkdtemp makes it private
        new = scratch / 'new'
        new.mkdir()
        counts = _write_all(new, options, workers)
        _put_in_place(new, root, scratch / 'old')
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return DigitsReport(root, True, counts)


def _put_in_place(new: Path, root: Path, old: Path) -> None:
    had_one = root.exists()
    if had_one:
        os.replace(root, old)
    try:
        os.replace(new, root)
    except OSError:
        if had_one:
            os.replace(old, root)
        raise


def _read_meta(root: Path) -> dict[str, Any]:
    try:
        return json.loads((root / META_NAME).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise FileExistsError(
            f'{root} exists and holds no readable {META_NAME}, so it is no demo data set; '
            'name another directory, or remove this one yourself'
        ) from error


def _check_same(root: Path, meta: dict[str, Any], options: DigitsOptions) -> dict[str, int]:
    wanted = {'version': VERSION, **asdict(options)}
    found = {'version': meta.get('version'), **meta.get('options', {})}
    differing = [
        f'{name} is {found.get(name)}, wanted {value}'
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    counts = _count_files(root)
    differing += [
        f'{name} holds {counts.get(name)} files, wanted {value}'
        for name, value in meta.get('counts', {}).items()
        if name in counts and counts[name] != value
    ]
    if differing:
        raise ValueError(
            f'{root} holds another demo data set ({"; ".join(differing)}); ask for the same one, '
            'name another directory, or replace it with force'
        )
    return dict(meta['counts'])


def _count_files(root: Path) -> dict[str, int]:
    counts = {part: sum(1 for _ in (root / part).glob('*.jpg')) for part in ('train', 'val')}
    for part in ('cls_train', 'cls_val'):
        counts[part] = sum(1 for _ in (root / part).glob('*/*.png'))
    return counts


def _write_all(root: Path, options: DigitsOptions, workers: int) -> dict[str, int]:
    train, val = split_samples(load_samples(), options.seed)
    counts: dict[str, int] = {}
    (root / 'annotations').mkdir()
    with _mapper(workers) as run:
        for stream, (part, samples, number) in enumerate(
            [('train', train, options.num_train), ('val', val, options.num_val)]
        ):
            (root / part).mkdir()
            job = partial(_write_scene, root / part, samples, (options.seed, _SCENES, stream))
            counts[part] = number
            counts[f'{part}_instances'] = _write_annotations(root, part, run(job, number))
        for stream, (part, samples, number) in enumerate(
            [('cls_train', train, options.num_cls_train), ('cls_val', val, options.num_cls_val)]
        ):
            for name in CLASS_NAMES:
                (root / part / name).mkdir(parents=True)
            job = partial(_write_crop, root / part, samples, (options.seed, _CROPS, stream))
            counts[part] = len(list(run(job, number)))
    meta = {'version': VERSION, 'options': asdict(options), 'counts': counts}
    (root / META_NAME).write_text(json.dumps(meta, indent=2) + '\n', encoding='utf-8')
    return counts


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[[Callable[[int], Any], int], Iterable[Any]]]:
    """Yields ``run(job, number)``: the results of ``job(0)`` to ``job(number - 1)``, in order."""
    if workers == 1:
        yield lambda job, number: map(job, range(number))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield lambda job, number: pool.map(job, range(number), chunksize=64)


def _write_image(path: Path, image: np.ndarray, parameters: list[int]) -> None:
    if not cv2.imwrite(str(path), image[:, :, ::-1], parameters):  # OpenCV writes BGR
        raise OSError(f'OpenCV could not write {path}')


def _write_scene(
    folder: Path, samples: DigitSamples, stream: tuple[int, ...], index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    scene = render_scene(np.random.default_rng([*stream, index]), samples)
    name = f'{index:06d}.jpg'
    _write_image(folder / name, scene.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    height, width = scene.image.shape[:2]
    image = {'id': index + 1, 'file_name': name, 'height': height, 'width': width}
    return image, coco_annotations(scene.instances, index + 1)


def _write_annotations(
    root: Path, part: str, scenes: Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]
) -> int:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, found in scenes:
        images.append(image)
        annotations += found
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number
    ground_truth = coco_dictionary(images, annotations, f'mmbitsplit demo digits, {part}')
    path = root / 'annotations' / f'instances_{part}.json'
    path.write_text(json.dumps(ground_truth), encoding='utf-8')
    return len(annotations)


def _write_crop(folder: Path, samples: DigitSamples, stream: tuple[int, ...], index: int) -> None:
    label = index % len(CLASS_NAMES)
    crop = render_crop(np.random.default_rng([*stream, index]), samples, label)
    _write_image(folder / CLASS_NAMES[label] / f'{index:06d}.png', crop.image, [])
