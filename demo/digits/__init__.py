"""The embedded demo data: handwritten digits in cluttered scenes, as COCO and as class folders."""

from demo.digits.files import DigitsOptions, DigitsReport, write_digits
from demo.digits.samples import (
    CLASS_NAMES,
    DigitSamples,
    load_samples,
    split_samples,
)
from demo.digits.scenes import (
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
