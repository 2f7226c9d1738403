"""A forward of each batch through the float model, to see the tensors that streams are to round."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.functional import ActivationSamples
from mmbitsplit.passes.capture import CallCapture, merge_samples
from mmbitsplit.passes.float_pass import check_finite
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import Tape
from mmbitsplit.passes.sampling import draw_with_repeats, rows_per_call

SAMPLES_PER_STREAM = 1 << 18  # elements that the search for a scale looks at, of all batches
_NOTHING = torch.empty(0)


def sample_streams(names: Sequence[str], forwards: Forwards, seed: int,
                   ) -> dict[str, ActivationSamples]:
    """Samples what modules give in the float model, all channels as one.

    Args:
        names: Of the modules.
        forwards: Of the model, its layers still in float.
        seed: Of the calibration.

    Raises:
        ValueError: A module is reached by no batch, or gives what is not finite.
    """
    seen: dict[str, list[CallCapture]] = {name: [] for name in names}
    wanted = rows_per_call(SAMPLES_PER_STREAM, forwards.total, 1)

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            batch = forwards.state.current_batch()
            with forwards.state.ours.apart():
                check_finite(name, output, forwards.labels[batch], 'float')
                flat = output.detach().to(torch.float32).reshape(1, -1)
                if not flat.numel():
                    return
                chosen = draw_with_repeats(flat.shape[1], wanted, (seed, name, batch, 'stream'))
                low, high = flat.aminmax(dim=1)
                seen[name].append(CallCapture(
                    patches=_NOTHING, samples=flat.index_select(1, chosen.to(flat.device)),
                    low=low, high=high, held_out=_NOTHING, shape=tuple(output.shape),
                    batch=batch))
        return hook

    with ExitStack() as stack:
        for name in names:
            handle = forwards.model.get_submodule(name).register_forward_hook(hook_for(name))
            stack.callback(handle.remove)
        tape = Tape()
        with forwards.recording(tape):
            for batch in forwards.batches:
                forwards.alone(batch)
    for name, captures in seen.items():
        if not forwards.team.total(len(captures)):
            raise ValueError(f"No calibration image reaches '{name}', whose output is to be "
                             'rounded; use other images.')
    return {name: merge_samples(captures, forwards.team) for name, captures in seen.items()}
