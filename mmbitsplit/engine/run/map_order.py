"""Whether maps may lie channels last in memory in a model, which is how integers are quickest."""

import sys
from collections.abc import Iterator

from torch import nn

# Whose Python goes by torch's operators, which go by strides.
KNOWN = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmbitsplit')
# Models without steps between maps and heads that others compiled.
KINDS = (('mmpretrain.', 'ImageClassifier'), ('mmdet.', 'SingleStageDetector'))
COMPILED = 'mmcv.ops'  # they read memory as if channels came first
HARMLESS = ('mmcv.ops.nms', 'mmcv.ops.focal_loss')  # of boxes; of training


def may_be_channels_last(model: nn.Module) -> bool:
    """Whether each operator of a model goes by the strides of maps, as far as classes tell.

    Classifiers of mmpretrain and single-stage detectors of mmdet are, where no class of theirs is
    of another package, is a compiled operator of mmcv or stands in a file that imports one.
    """
    if not any(base.__module__.startswith(package) and base.__name__ == name
               for base in type(model).__mro__ for package, name in KINDS):
        return False
    files = {base.__module__ for module in model.modules() for base in type(module).__mro__
             if base not in (object, nn.Module)}
    return all(name.partition('.')[0] in (*KNOWN, 'typing', 'abc', 'collections')
               and not name.startswith(COMPILED) and name in sys.modules
               and not _imports_compiled(name)
               for name in files)


def _imports_compiled(name: str) -> bool:
    return any(file.startswith(COMPILED) and file not in HARMLESS
               for value in vars(sys.modules[name]).values() for file in _files(value))


def _files(value: object) -> Iterator[str]:
    """Where a value of a file may come from: a class, a function, ``Function.apply``, a module."""
    for one in (value, getattr(value, '__self__', None)):
        for file in (getattr(one, '__module__', None), getattr(one, '__name__', None)):
            if isinstance(file, str):
                yield file
