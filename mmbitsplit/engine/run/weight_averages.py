"""Keeps averages of weights, which training configs ask for, away from what is quantized.

mmengine's ``EMAHook`` swaps its average with the model's weights around every test. A checkpoint
of such a training holds the average as the model's weights already.
"""

from typing import Any

from mmengine.hooks import EMAHook
from mmengine.runner import Runner


def leave_out_averages(runner: Runner) -> None:
    """Takes every ``EMAHook`` off a Runner that tests."""
    # Another list: the Runner may be going through the present one.
    runner._hooks = [hook for hook in runner._hooks if not isinstance(hook, EMAHook)]


def is_average(hook: Any) -> bool:
    """Whether the config of a hook names an ``EMAHook``."""
    kind = hook.get('type') if isinstance(hook, dict) else hook
    if isinstance(kind, str):
        return kind.rsplit('.', 1)[-1] == EMAHook.__name__
    return issubclass(kind, EMAHook) if isinstance(kind, type) else isinstance(kind, EMAHook)
