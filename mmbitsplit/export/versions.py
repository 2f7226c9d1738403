"""Versions of everything that can change a result."""

import importlib.metadata
import platform

from mmbitsplit.version import __version__

PACKAGES = {'torch': ('torch',), 'mmengine': ('mmengine', 'onedl-mmengine'),
            'mmcv': ('mmcv', 'onedl-mmcv'), 'mmdet': ('mmdet', 'onedl-mmdetection'),
            'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'), 'numba': ('numba',)}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that are installed, by name."""
    found = {'mmbitsplit': __version__, 'python': platform.python_version()}
    for name, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return found
