"""Whether a quantized model's layers give with integers what they give when those are simulated.

Layer by layer on equal inputs, where any difference above rounding of float32 is a fault; and the
layers that give the model's outputs in a whole run, where rounded inputs that lie on a border fall
to either side and random layers pass that on, but a map that someone reads in a wrong order shows.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models import to_integer
from mmbitsplit.models.surgery.install import quantized_layers
from mmbitsplit.models.surgery.integers import integer_layers

Call = tuple[tuple[Any, ...], dict[str, Any], Any]  # arguments, keywords, output


@torch.no_grad()
def compare_integers(model: nn.Module, run: Callable[[nn.Module], Any], last: Collection[str],
                     ) -> dict[str, Any]:
    """Runs a quantized model simulated and with integers, and takes the integers back.

    Args:
        model: Quantized, in eval mode.
        run: Runs it on one batch, the same every time.
        last: Names of the layers that give its outputs.

    Returns:
        ``layers``: how many multiply integers; ``left``: how often each reason why not;
        ``equal_inputs``: largest relative difference of a layer's output, and ``worst`` its
        name; ``outputs``: relative difference of all outputs of the last layers in a whole run,
        ``None`` where other calls were made, or of other sizes.
    """
    names = [name for name, layer in quantized_layers(model) if layer.quantized]
    last = [name for name in names if name in last]
    with recorded(model, names) as simulated:
        run(model)
    to_integer(model, 'auto')
    try:
        with recorded(model, last) as whole:
            run(model)
        found = integer_layers(model)
        apart = {name: max(map(relative_difference, [
            model.get_submodule(name)(*args, **kwargs) for args, kwargs, _ in calls],
            [output for *_, output in calls])) for name, calls in simulated.items() if calls}
    finally:
        to_integer(model, False)
    worst = max(apart, key=apart.__getitem__, default=None)
    reasons: dict[str, int] = {}
    for reason in found.left.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return {'layers': len(found.integer), 'left': reasons, 'worst': worst,
            'equal_inputs': apart.get(worst), 'outputs': _outputs(whole, simulated, last)}


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Call]]]:
    """Keeps what some layers get and give in a ``with`` block."""
    calls: dict[str, list[Call]] = {name: [] for name in names}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name].append((_copy(args), _copy(kwargs), _copy(output)))
        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True)
             for name in names]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def relative_difference(a: Any, b: Any) -> float:
    """Largest difference of two tensors, relative to the largest value of the second."""
    if not isinstance(a, Tensor) or not a.numel():
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


def _outputs(whole: Mapping[str, list[Call]], simulated: Mapping[str, list[Call]],
             last: Sequence[str]) -> float | None:
    pairs = []
    for name in last:
        if len(whole[name]) != len(simulated[name]):
            return None
        pairs += [(a, b) for (*_, a), (*_, b) in zip(whole[name], simulated[name])
                  if isinstance(a, Tensor)]
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        return None
    error = sum(float((a - b).double().square().sum()) for a, b in pairs)
    size = sum(float((b - b.mean()).double().square().sum()) for _, b in pairs)
    return error / max(size, 1e-30)


def _copy(value: Any) -> Any:
    """A copy that later changes in place do not reach, with the order of the map in memory."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (tuple, list)):
        return type(value)(map(_copy, value))
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value
