"""Registries of this package, children of mmengine's: ``type='mmbitsplit.QuantizedModel'``."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmbitsplit',
                  locations=['mmbitsplit.engine'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmbitsplit',
                 locations=['mmbitsplit.engine'])
RUNNERS = Registry('runner', parent=MMENGINE_RUNNERS, scope='mmbitsplit',
                   locations=['mmbitsplit.engine'])
