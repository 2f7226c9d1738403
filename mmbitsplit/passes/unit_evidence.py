"""Float input, quantized input and float output of a unit's calls, as far as memory allows.

With several processes each has the calls of its batches; they are brought together by
``unit_exchange``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmbitsplit.methods.unit_problem import UnitCall
from mmbitsplit.passes.crops import Crops, find_crops
from mmbitsplit.passes.sampling import generator_of, is_held_out
from mmbitsplit.passes.unit_module import NoUnit, UnitModule, same_outputs
from mmbitsplit.structures import LayerGeometry

NO_MAPS = torch.empty(0)
UNIT_BYTES = 1 << 30  # of a unit's inputs and outputs, of all batches, where nothing else is said


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What is to be collected, for all units.

    Args:
        batches: Number of batches of the calibration, of all processes.
        sizes: Of each, of all processes, in units of one of them.
        budget: Bytes of a unit.
        seed: Of the draws.
        holdout: Part of the images that nothing is fitted to.
        inputs: Maps that are kept of a call's input: float and quantized ones, of each width.
    """

    batches: int
    sizes: Mapping[int, float]
    budget: int = UNIT_BYTES
    seed: int = 0
    holdout: float = 0.0
    inputs: int = 2


@dataclass(frozen=True)
class _Kept:
    """What is kept of a call in the float model.

    Args:
        shape: Of its input.
        images: Which images are kept; of crops, which each is of.
        places: Of the crops, ``None`` for whole maps.
        x, y: What is kept of input and output.
    """

    shape: tuple[int, ...]
    images: Tensor
    places: Tensor | None
    x: Tensor
    y: Tensor


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How the calls of a unit are kept.

    Args:
        crops: How crops are taken, ``None`` for whole maps.
        share: Part of the images whose whole maps are kept.
        problems: Why there is no evidence, by the batch that shows it.
    """

    crops: Crops | None = None
    share: float = 1.0
    problems: Mapping[int, str] = field(default_factory=dict)


@dataclass
class UnitEvidence:
    """Inputs and outputs of one unit, collected in both branches.

    How they are kept is decided on one call before, so that it follows from the request, the model
    and the images alone: whole maps where those of all batches fit into the budget; else crops,
    where trying shows that the unit makes the same of a crop as of the whole; else the whole maps
    of some images.

    Args:
        function: The unit as a function.
        geometries: Of its layers.
        counts: Calls by batch, of all processes.
        what: Budget and draws.

    Attributes:
        kept_as: How they are kept.
        problems: Why there are none, by the batch that shows it.
        floats: By batch, what is kept of each call in the float model.
    """

    function: UnitModule
    geometries: Mapping[str, LayerGeometry]
    counts: Mapping[int, int]
    what: Collection
    kept_as: Decision = field(default_factory=Decision)
    problems: dict[int, str] = field(default_factory=dict)
    floats: dict[int, list[_Kept]] = field(default_factory=dict)

    @property
    def crops(self) -> Crops | None:
        """How crops are taken, ``None`` for whole maps."""
        return self.kept_as.crops

    @property
    def problem(self) -> str:
        """Why there is none, empty where there is: what the first batch shows."""
        return self.problems[min(self.problems)] if self.problems else ''

    def refuse(self, batch: int, why: str) -> None:
        """Notes what a batch shows to be a problem."""
        self.problems.setdefault(batch, why)

    def adopt(self, decision: Decision) -> None:
        """Keeps calls as was decided, here or in another process."""
        self.kept_as = decision
        self.problems.update(decision.problems)

    def complete(self, batch: int) -> bool:
        """Whether the float branch of a batch has been through all its calls."""
        return len(self.floats.get(batch, ())) == self.counts[batch]

    def decide(self, batch: int, x: Tensor | None, y: Any, compute: Callable[[Tensor], Tensor],
               ) -> Decision:
        """Says how calls are kept.

        Args:
            batch: The batch of a call.
            x, y: Its input and output in the float model.
            compute: The float unit, for trying.
        """
        self._look(batch, x, y)
        if self.problem:
            return Decision(problems=dict(self.problems))
        return self._decide(batch, x, y, compute)

    def _look(self, batch: int, x: Tensor | None, y: Any) -> None:
        if x is None or not isinstance(y, Tensor) or not y.is_floating_point() \
                or not x.dim() or not y.dim() or x.shape[0] != y.shape[0]:
            self.refuse(batch, 'is no function of one tensor, image by image')

    def take_float(self, batch: int, x: Tensor | None, y: Any) -> None:
        """Keeps what a call in the float model was given and gave.

        Args:
            batch: The batch.
            x, y: Input and output; what is no unit's is kept as a problem.
        """
        self._look(batch, x, y)
        calls = self.floats.setdefault(batch, [])
        if self.problem:
            calls.append(_Kept((), torch.arange(0), None, NO_MAPS, NO_MAPS))
            return
        images, places = self._choose(batch, len(calls), x)
        calls.append(_Kept(tuple(x.shape), images, places, self._part(x, images, places),
                           self._part(y, images, places, output=True)))

    def part(self, batch: int, number: int, x: Tensor) -> Tensor:
        """What is kept of another input of a call: the same images and places.

        Raises:
            RuntimeError: It is of another shape than in the float model.
        """
        kept = self.floats[batch][number]
        if tuple(x.shape) != kept.shape:
            raise RuntimeError(
                f"Unit '{self.function.unit.name}': the two passes see inputs of different sizes. "
                'A step whose result depends on the data comes before; name it as a replay '
                'point.')
        return self._part(x, kept.images, kept.places)

    def calls(self, inputs: Mapping[int, list[Tensor]],
              narrower: Sequence[Mapping[int, list[Tensor]]] = ()) -> tuple[UnitCall, ...]:
        """Joins what both branches had, in this process.

        Args:
            inputs: By batch, the whole input of each call in the quantized model.
            narrower: The same at each of the other widths, what is kept of it (``part``).

        Raises:
            RuntimeError: They are of other shapes than in the float model.
        """
        found: list[UnitCall] = []
        for batch in sorted(inputs) if not self.problem else ():
            pairs = zip(self.floats[batch], inputs[batch], strict=True)
            for number, (kept, x) in enumerate(pairs):
                found += self._split(batch, number, kept, self.part(batch, number, x),
                                     [one[batch][number] for one in narrower])
        return tuple(found)

    def float_calls(self) -> tuple[UnitCall, ...]:
        """Calls of this process with the float input in the place of the quantized one."""
        return () if self.problem else tuple(
            call for batch in sorted(self.floats) for number, kept in enumerate(self.floats[batch])
            for call in self._split(batch, number, kept, kept.x))

    def run(self, x: Tensor) -> Tensor:
        """The unit as it stands in the model: of crops, what counts of the output."""
        y = self.function(x)
        return self.crops.inside(y) if self._are_crops(x) else y

    def _are_crops(self, x: Tensor) -> bool:
        return self.crops is not None and tuple(x.shape[-2:]) == (self.crops.size,) * 2

    def _decide(self, batch: int, x: Tensor, y: Tensor,
                compute: Callable[[Tensor], Tensor]) -> Decision:
        what = self.what
        per_call = 4 * (what.inputs * x.numel() + y.numel()) / what.sizes[batch]
        needed = per_call * sum(what.sizes[one] * count for one, count in self.counts.items())
        modules = [inner for module in self.function.modules for inner in module.modules()]
        crops = None if needed <= what.budget else find_crops(
            self.geometries.values(), modules, x, y)
        if crops is not None and crops.fit(x) and self._tried(batch, crops, x, y, compute):
            one = 4 * (what.inputs * x.shape[1] * crops.size ** 2
                       + y.shape[1] * crops.inner ** 2)
            calls = sum(self.counts.values())
            return Decision(crops=replace(crops, count=max(1, int(what.budget / (one * calls)))))
        problem = self._try(lambda: compute(x), y)
        return Decision(share=min(1.0, what.budget / max(1.0, needed)),
                        problems={batch: problem} if problem else {})

    def _tried(self, batch: int, crops: Crops, x: Tensor, y: Tensor,
               compute: Callable[[Tensor], Tensor]) -> bool:
        """Whether the unit makes the same of crops as of the whole."""
        places = crops.draw(x, self._key(batch, 0))
        return not self._try(lambda: crops.inside(compute(crops.inputs(x, places))),
                             crops.outputs(y, places))

    def _try(self, compute: Callable[[], Tensor], wanted: Tensor) -> str:
        try:
            return '' if same_outputs(compute(), wanted) else \
                'gives another output when it is called again on the same input'
        except NoUnit as error:
            return str(error)

    def _choose(self, batch: int, call: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images whose maps are kept, or crops with the images they are of."""
        key = self._key(batch, call)
        if self.crops is not None and self.crops.fit(x):
            places = self.crops.draw(x, key)
            return places[:, 0], places
        images, share = x.shape[0], self.kept_as.share
        if share == 1.0:
            return torch.arange(images), None
        before, after = (int(number * images * share) for number in (batch, batch + 1))
        order = torch.randperm(images, generator=generator_of(key))
        return order[:after - before].sort().values, None

    def _part(self, maps: Tensor, images: Tensor, places: Tensor | None, output: bool = False,
              ) -> Tensor:
        maps = maps.detach().to(torch.promote_types(maps.dtype, torch.float32))
        if places is None:
            return maps.index_select(0, images.to(maps.device))
        return self.crops.outputs(maps, places) if output else self.crops.inputs(maps, places)

    def _split(self, batch: int, number: int, kept: _Kept, x: Tensor,
               narrower: Sequence[Tensor] = ()) -> list[UnitCall]:
        """Calls to fit to and to judge on, of what was kept of a call."""
        held_out = is_held_out(batch, self.what.batches, kept.shape[0], self.what.holdout)
        held_out = held_out[kept.images]
        calls = []
        for apart, chosen in ((False, ~held_out), (True, held_out)):
            if not bool(chosen.any()):
                continue
            widest = x[chosen]
            calls.append(UnitCall(
                batch=batch, float_input=kept.x[chosen], quantized_input=widest,
                float_output=kept.y[chosen], held_out=apart, number=number,
                width_inputs=(*(one[chosen] for one in narrower), widest) if narrower else ()))
        return calls

    def _key(self, batch: int, call: int) -> tuple:
        return (self.what.seed, 'unit', self.function.unit.name, batch, call)
