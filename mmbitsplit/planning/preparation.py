"""Plans a model from what was watched of it, and prepares it by the plan."""

from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.request_plan import make_plan
from mmbitsplit.structures import QuantSpec


def prepare_as_requested(look: Watching, spec: QuantSpec) -> PreparedModel:
    """Plans and prepares until the prepared model computes what the float model does.

    Raises:
        ValueError: See ``make_plan`` and ``Watching.prepare``.
    """
    while (prepared := look.prepare(make_plan(look.model, look.flow, spec))) is None:
        pass
    return prepared
