"""The data set on disk: reproducible, valid COCO, whole or absent."""

import contextlib
import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from demo.digits import (
    CLASS_NAMES,
    DigitsOptions,
    files,
    load_samples,
    split_samples,
    write_digits,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = DigitsOptions(num_train=2, num_val=2, num_cls_train=10, num_cls_val=10)
OPTIONS = DigitsOptions(seed=5, num_train=24, num_val=12, num_cls_train=30, num_cls_val=20)


def digest(root):
    """Hash of every file by its relative path."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def load_coco(root, part):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(root / 'annotations' / f'instances_{part}.json'))


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'digits'
    report = write_digits(root, OPTIONS)
    assert report.created
    return root


def test_same_options_give_the_same_bytes(digits, tmp_path):
    write_digits(tmp_path / 'again', OPTIONS)
    assert digest(tmp_path / 'again') == digest(digits)


def test_number_of_processes_changes_nothing(digits, tmp_path):
    write_digits(tmp_path / 'parallel', OPTIONS, workers=2)
    assert digest(tmp_path / 'parallel') == digest(digits)


def test_no_processes_are_refused(tmp_path):
    with pytest.raises(ValueError, match='workers is 0'):
        write_digits(tmp_path / 'digits', SMALL, workers=0)


def test_a_larger_set_extends_a_smaller_one(digits, tmp_path):
    write_digits(tmp_path / 'larger', replace(OPTIONS, num_train=26, num_cls_train=31))
    before, after = digest(digits), digest(tmp_path / 'larger')
    pictures = [name for name in before if name.endswith(('.jpg', '.png'))]
    assert len(pictures) == 24 + 12 + 30 + 20
    assert all(before[name] == after[name] for name in pictures)


def test_another_seed_gives_other_pictures(digits, tmp_path):
    other = DigitsOptions(seed=6, num_train=1, num_val=1, num_cls_train=10, num_cls_val=10)
    write_digits(tmp_path / 'other', other)
    before, after = digest(digits), digest(tmp_path / 'other')
    assert before['train/000000.jpg'] != after['train/000000.jpg']


@pytest.mark.parametrize('part', ['train', 'val'])
def test_coco_annotations_agree_with_masks_and_files(digits, part):
    coco = load_coco(digits, part)
    assert len(coco.imgs) == getattr(OPTIONS, f'num_{part}')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)
    assert coco.getCatIds() == list(range(1, 11))
    for image in coco.imgs.values():
        picture = cv2.imread(str(digits / part / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y = int(columns.min()), int(rows.min())
        tight = [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]
        image = coco.imgs[annotation['image_id']]
        assert annotation['bbox'] == tight
        assert mask.shape == (image['height'], image['width'])
        assert annotation['area'] == mask.sum() > 0
        assert annotation['iscrowd'] == 0


def test_every_class_and_image_has_instances(digits):
    coco = load_coco(digits, 'train')
    assert {annotation['category_id'] for annotation in coco.anns.values()} == set(range(1, 11))
    assert {annotation['image_id'] for annotation in coco.anns.values()} == set(coco.imgs)


def test_parts_share_no_handwriting(digits):
    train, val = split_samples(load_samples(), OPTIONS.seed)
    used = {
        part: {annotation['sample_id'] for annotation in load_coco(digits, part).anns.values()}
        for part in ('train', 'val')
    }
    assert used['train'] <= set(train.ids.tolist())
    assert used['val'] <= set(val.ids.tolist())
    assert not used['train'] & used['val']


def test_class_folders(digits):
    for part, number in (('cls_train', 30), ('cls_val', 20)):
        paths = list((digits / part).glob('*/*.png'))
        per_class = Counter(path.parent.name for path in paths)
        assert per_class == dict.fromkeys(CLASS_NAMES, number // 10)
        assert cv2.imread(str(paths[0])).shape == (32, 32, 3)


def test_meta_states_what_was_made(digits):
    meta = json.loads((digits / 'meta.json').read_text())
    assert meta['version'] == files.VERSION
    assert meta['options']['seed'] == OPTIONS.seed
    assert meta['counts']['train'] == OPTIONS.num_train


def test_existing_set_is_kept(digits, monkeypatch):
    before = digest(digits)
    monkeypatch.setattr(files, '_write_all', None)  # must not be called
    report = write_digits(digits, OPTIONS)
    assert not report.created
    assert report.counts['val'] == OPTIONS.num_val
    assert digest(digits) == before


def test_other_options_are_refused(digits):
    before = digest(digits)
    with pytest.raises(ValueError, match='num_val is 12, wanted 13.*force'):
        write_digits(digits, replace(OPTIONS, num_val=13))
    assert digest(digits) == before


def test_missing_files_are_noticed_and_force_repairs(tmp_path):
    root = tmp_path / 'digits'
    write_digits(root, SMALL)
    whole = digest(root)
    (root / 'train' / '000001.jpg').unlink()
    with pytest.raises(ValueError, match='train holds 1 files, wanted 2'):
        write_digits(root, SMALL)
    assert write_digits(root, SMALL, force=True).created
    assert digest(root) == whole
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_foreign_directory_is_never_touched(tmp_path):
    root = tmp_path / 'precious'
    root.mkdir()
    (root / 'thesis.txt').write_text('keep')
    for force in (False, True):
        with pytest.raises(FileExistsError, match='no demo data set'):
            write_digits(root, SMALL, force=force)
    assert (root / 'thesis.txt').read_text() == 'keep'


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fail_late(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError('disk full')

    monkeypatch.setattr(files, '_write_image', fail_late)
    with pytest.raises(OSError, match='disk full'):
        write_digits(tmp_path / 'digits', SMALL)
    assert list(tmp_path.iterdir()) == []


def test_failed_replacement_keeps_the_old_set(tmp_path, monkeypatch):
    root = tmp_path / 'digits'
    write_digits(root, SMALL)
    before = digest(root)

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(files, '_write_image', fail)
    with pytest.raises(OSError, match='disk full'):
        write_digits(root, SMALL, force=True)
    assert digest(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


@pytest.mark.parametrize('name', ['num_train', 'num_val', 'num_cls_train', 'num_cls_val'])
def test_empty_parts_are_refused(name):
    with pytest.raises(ValueError, match=f'{name} is 0'):
        DigitsOptions(**{name: 0})


def test_import_needs_no_openmmlab_package():
    code = (
        'import sys, demo.digits; '
        'heavy = {"mmengine", "mmcv", "mmdet", "mmpretrain", "torch"} & set(sys.modules); '
        'assert not heavy, heavy'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60, cwd=ROOT)
