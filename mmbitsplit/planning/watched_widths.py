"""A model as it is watched for a budget: which widths its layers may have, and what these cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmbitsplit.models import PreparedModel
from mmbitsplit.passes.forwards import Forwards
from mmbitsplit.passes.watching import Watching
from mmbitsplit.planning.costs import cost_tables
from mmbitsplit.planning.latency_table import LatencyTable
from mmbitsplit.planning.preparation import open_as_requested, prepare_as_requested
from mmbitsplit.planning.request_plan import layers_to_find, make_plan
from mmbitsplit.planning.shared_inputs import shared_inputs
from mmbitsplit.planning.width_choices import width_choices, with_widths
from mmbitsplit.structures import BitPlan, QuantSpec, Widths, WidthTable


@dataclass(frozen=True)
class WatchedWidths:
    """Made by ``WatchedWidths.of``.

    Args:
        spec: The request, with a budget.
        look: What is known of the model.
        choices: Widths that each planned layer may have.
        base: The widest of them.
    """

    spec: QuantSpec
    look: Watching
    choices: Mapping[str, tuple[Widths, ...]]
    base: Mapping[str, Widths]

    @classmethod
    def of(cls, forwards: Forwards, spec: QuantSpec, count: bool = False) -> 'WatchedWidths':
        """Opens a float model and watches it.

        Args:
            forwards: Of it.
            spec: The request, with a budget.
            count: See ``Watching``.

        Raises:
            ValueError: See ``make_plan`` and ``width_choices``.
        """
        forwards = open_as_requested(forwards, spec)
        look = Watching(forwards, layers_to_find(forwards.model, spec), count=count)
        choices = width_choices(lambda asked: make_plan(forwards.model, look.flow, asked), spec)
        base = {name: max(row, key=lambda one: (one.weight, one.activation or 0))
                for name, row in choices.items()}
        return cls(spec, look, choices, base)

    def plan(self) -> BitPlan:
        """All layers at their widest."""
        return make_plan(self.look.forwards.model, self.look.flow,
                         with_widths(self.spec, self.base))

    def prepare(self) -> PreparedModel:
        """Prepares the model for that plan; see ``prepare_as_requested``."""
        return prepare_as_requested(self.look, with_widths(self.spec, self.base))

    def costs(self, prepared: PreparedModel, latencies: LatencyTable | None,
              ) -> dict[str, WidthTable]:
        """See ``cost_tables``: bytes are estimated where no codes are installed."""
        return cost_tables(prepared, self.look.flow, self.choices, latencies)

    def together(self, prepared: PreparedModel) -> list[frozenset[str]]:
        """Sets of layers whose inputs are to have one width."""
        budget = self.spec.budget
        return shared_inputs(prepared.plan, self.look.flow,
                             every=budget is not None and budget.shared_inputs)
