"""Scenes and crops: the same from a seed, and consistent with their masks."""

import numpy as np
import pytest

from demo.digits import (
    SceneOptions,
    load_samples,
    render_crop,
    render_scene,
    split_samples,
)


@pytest.fixture(scope='module')
def samples():
    return load_samples()


def test_samples_are_the_whole_set_in_unit_range(samples):
    assert len(samples) == 1797
    assert samples.images.shape == (1797, 8, 8)
    assert samples.images.dtype == np.float32
    assert samples.images.min() == 0.0
    np.testing.assert_array_equal(samples.images.max(axis=(1, 2)), 1.0)


@pytest.mark.parametrize('seed', [0, 1])
def test_split_is_disjoint_complete_and_balanced(samples, seed):
    train, val = split_samples(samples, seed)
    assert not set(train.ids) & set(val.ids)
    assert set(train.ids) | set(val.ids) == set(samples.ids)
    share = np.bincount(val.labels, minlength=10) / np.bincount(samples.labels, minlength=10)
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    for part in (train, val):  # a subset keeps picture, label and id together
        np.testing.assert_array_equal(part.images, samples.images[part.ids])
        np.testing.assert_array_equal(part.labels, samples.labels[part.ids])


def test_split_depends_on_the_seed(samples):
    first, second = split_samples(samples, 0)[1], split_samples(samples, 1)[1]
    assert set(first.ids) != set(second.ids)


@pytest.mark.parametrize('fraction', [0.0, 1.0, -0.1, 0.001])
def test_split_refuses_useless_fractions(samples, fraction):
    with pytest.raises(ValueError, match='val_fraction'):
        split_samples(samples, 0, fraction)


@pytest.mark.parametrize('seed', range(25))
def test_scene_is_consistent(samples, seed):
    options = SceneOptions()
    scene = render_scene(np.random.default_rng(seed), samples, options)
    size = options.image_size
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert 1 <= len(scene.instances) <= options.max_digits
    covered = np.zeros((size, size), dtype=int)
    for instance in scene.instances:
        assert instance.mask.shape == (size, size)
        assert instance.mask.dtype == bool
        assert instance.area == instance.mask.sum() >= options.min_area
        assert instance.label == samples.labels[instance.sample_id]
        x, y, width, height = instance.box
        assert 0 <= x < x + width <= size
        assert 0 <= y < y + height <= size
        inside = instance.mask[y : y + height, x : x + width]
        assert inside.sum() == instance.area  # nothing outside the box
        assert inside[0].any() and inside[-1].any()  # and no row or column to spare
        assert inside[:, 0].any() and inside[:, -1].any()
        covered += instance.mask
    assert covered.max() == 1  # visible masks do not overlap


def test_scene_depends_on_the_generator_alone(samples):
    first = render_scene(np.random.default_rng(3), samples)
    again = render_scene(np.random.default_rng(3), samples)
    other = render_scene(np.random.default_rng(4), samples)
    np.testing.assert_array_equal(first.image, again.image)
    assert [item.box for item in first.instances] == [item.box for item in again.instances]
    assert not np.array_equal(first.image, other.image)


def test_scenes_contain_occlusion(samples):
    """Some masks are cut by a later digit: crowding is part of the task."""
    options = SceneOptions(min_digits=8, max_digits=8, min_size=50.0)
    touching = 0
    for seed in range(5):
        instances = render_scene(np.random.default_rng(seed), samples, options).instances
        boxes = [item.box for item in instances]
        touching += sum(
            a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
            for number, a in enumerate(boxes)
            for b in boxes[:number]
        )
    assert touching > 0


def test_scene_stays_legible(samples):
    """A digit differs from what surrounds it."""
    options = SceneOptions(min_digits=1, max_digits=1, max_clutter=0, max_noise=0.0)
    for seed in range(10):
        scene = render_scene(np.random.default_rng(seed), samples, options)
        mask = scene.instances[0].mask
        gap = scene.image[mask].mean(axis=0) - scene.image[~mask].mean(axis=0)
        assert np.abs(gap).max() > 15.0


@pytest.mark.parametrize('label', range(10))
def test_crop_shows_the_asked_class(samples, label):
    crop = render_crop(np.random.default_rng(label), samples, label)
    again = render_crop(np.random.default_rng(label), samples, label)
    assert crop.image.shape == (32, 32, 3)
    assert crop.image.dtype == np.uint8
    assert crop.label == label == samples.labels[crop.sample_id]
    np.testing.assert_array_equal(crop.image, again.image)


def test_crop_refuses_a_class_without_samples(samples):
    zeros = samples.subset(np.flatnonzero(samples.labels == 0))
    with pytest.raises(ValueError, match='label is 7'):
        render_crop(np.random.default_rng(0), zeros, 7)
