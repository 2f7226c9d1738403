"""The embedded demo data: handwritten digits in cluttered scenes, as COCO and as class folders."""

from mmbitsplit.datasets.digit_files import DigitsOptions, DigitsReport, write_digits
from mmbitsplit.datasets.digit_samples import (
    CLASS_NAMES,
    DigitSamples,
    load_samples,
    split_samples,
)
from mmbitsplit.datasets.digit_scenes import (
    Crop,
    DigitInstance,
    Scene,
    SceneOptions,
    render_crop,
    render_scene,
)

__all__ = [
    'CLASS_NAMES',
    'Crop',
    'DigitInstance',
    'DigitSamples',
    'DigitsOptions',
    'DigitsReport',
    'Scene',
    'SceneOptions',
    'load_samples',
    'render_crop',
    'render_scene',
    'split_samples',
    'write_digits',
]
