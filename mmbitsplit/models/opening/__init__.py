"""Opens the calls that multiply inside a module's own forward: they become modules in it.

``open_calls(model, run) -> Opened`` finds them in one run and gives each module that makes such
calls children: a ``Product`` for each product of activations (``product_qk`` and ``product_av`` of
attention, else ``product_0``, ...), an ``nn.Linear`` or ``nn.Conv2d`` for each weight that a
function is called with (``in_proj`` or ``q_proj``, ``k_proj``, ``v_proj`` of
``nn.MultiheadAttention``). ``Opened.close()`` takes them back, ``describe_opened(model)`` says in
plain values what ``reopen(model, description)`` repeats on a fresh model.
"""

from mmbitsplit.models.opening.decide import may_be_opened
from mmbitsplit.models.opening.find_calls import find_calls
from mmbitsplit.models.opening.opened_module import OpenedCallError, OpenedCalls
from mmbitsplit.models.opening.opening import (
    Opened,
    describe_opened,
    open_calls,
    opened_modules,
    release_originals,
    reopen,
)
from mmbitsplit.models.watch.closed_call import ClosedCall

__all__ = ['ClosedCall', 'Opened', 'OpenedCallError', 'OpenedCalls', 'describe_opened',
           'find_calls', 'may_be_opened', 'open_calls', 'opened_modules', 'release_originals',
           'reopen']
