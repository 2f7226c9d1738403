"""The Runner of a quantization config: upstream's tools quantize before they test.

``runner_type`` says so in ``configs/_base_/quantization.py``. No config of mmdet has that key and
few of mmpretrain, where ``custom_hooks`` and ``custom_imports`` are in many: mmengine wants a key
in one base only.
"""

from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.runner import Runner

from mmbitsplit.engine.configs.config_errors import naming_config_errors
from mmbitsplit.engine.hooks import QuantizationHook
from mmbitsplit.registry import RUNNERS


@RUNNERS.register_module()
class QuantizationRunner(Runner):
    """mmengine's Runner with a ``QuantizationHook``, whatever ``custom_hooks`` the config has."""

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        super().register_hooks(*args, **kwargs)
        if not any(isinstance(hook, QuantizationHook) for hook in self._hooks):
            self.register_hook(QuantizationHook())


def runner_of(cfg: Config) -> Runner:
    """Builds the Runner that a config names, as upstream's tools do.

    Raises:
        ConfigError: A ``type`` is not known, or takes no such argument, or lacks one.
    """
    with naming_config_errors():
        return MMENGINE_RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
