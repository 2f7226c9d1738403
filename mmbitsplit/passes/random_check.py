"""Says where a forward is random: dropout left on, noise, a random permutation.

Both passes of a batch are given the same random numbers, so that layers are fitted to outputs of
the same draw. But what they are fitted to is one draw of many, which the user should know.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models.watch.carried import tensors_in
from mmbitsplit.models.watch.storages import odd_layout
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.replay import Tape
from mmbitsplit.passes.thread_state import seed_generators

ELEMENTS = 256  # of a tensor that are compared, evenly spread
TOLERANCE = 1e-5  # relative; some kernels of GPUs add up in any order
Event = tuple[str, list[Tensor]]


def randomness(forwards: Forwards, batch: int) -> str | None:
    """Runs a batch twice with other random numbers; says what differs first.

    What is random inside of replay points is replayed in both passes.

    Args:
        forwards: Of the model; it is left as it was.
        batch: The batch's number.

    Returns:
        A sentence that names the module; ``None`` where nothing differs.
    """
    tape, seen = Tape(), []
    for again, context in enumerate((forwards.recording, forwards.replaying)):
        with forwards.whole(batch), context(tape), _events(forwards.model) as events:
            seed_generators(forwards.state.seed, 'random check', again)
            forwards.run(batch)
        seen.append(events)
    place = _first_difference(*seen)
    return None if place is None else (
        f'The forward is random: run twice on the same batch, {place} differs. Layers are fitted '
        'to one draw. Is dropout on (F.dropout without training=self.training), or is noise added?')


@contextmanager
def _events(model: nn.Module) -> Iterator[list[Event]]:
    """What every module of the model gets and gives, in order."""
    events: list[Event] = []

    def note(words: str) -> Callable[[Any], None]:
        return lambda value: events.append((words, [
            tensor.detach().reshape(-1)[::tensor.numel() // ELEMENTS + 1].clone()
            for tensor in tensors_in(value) if odd_layout(tensor) is None]))

    handles = []
    for name, module in model.named_modules():
        shown = f"'{name}'" if name else 'the model'
        gets, gives = note(f'what {shown} gets'), note(f'what {shown} gives')
        handles += [module.register_forward_pre_hook(
            lambda module, args, kwargs, gets=gets: gets((args, kwargs)), with_kwargs=True),
            module.register_forward_hook(lambda module, args, output, gives=gives: gives(output))]
    try:
        yield events
    finally:
        for handle in handles:
            handle.remove()


def _first_difference(events: list[Event], others: list[Event]) -> str | None:
    for (words, tensors), (other_words, other_tensors) in zip(events, others):
        if words != other_words or len(tensors) != len(other_tensors) \
                or not all(map(_alike, tensors, other_tensors)):
            return words
    longer = max(events, others, key=len)
    return longer[min(len(events), len(others))][0] if len(events) != len(others) else None


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    size = float(a.abs().nan_to_num().max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * size, equal_nan=True)
