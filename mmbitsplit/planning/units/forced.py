"""What overrides say of units: modules that are to be one, layers that are to stand alone."""

from collections.abc import Callable, Mapping, Sequence

from mmbitsplit.planning.request_plan import matches
from mmbitsplit.planning.units.call_tree import CallTree
from mmbitsplit.spelling import nearest
from mmbitsplit.structures import OverrideSpec


class ForcedUnits:
    """Reads ``quantization.overrides``.

    Args:
        tree: The calls.
        overrides: All of them.
        apart: More layers that are to stand alone, with the reason.
        why_not: Why a module cannot be a unit however small, or nothing.

    Attributes:
        modules: Those that are to be units, with the number of the override.
        single: Layers that are to stand alone, and who says so.

    Raises:
        ValueError: A unit that is asked for cannot be one.
    """

    def __init__(self, tree: CallTree, overrides: Sequence[OverrideSpec],
                 why_not: Callable[[str], str], apart: Mapping[str, str]):
        self._tree = tree
        self.modules: dict[str, int] = {}
        self.single: dict[str, str] = dict(apart)
        for index, override in enumerate(overrides):
            if override.unit == 'layer':
                self.single.update({name: f'overrides[{index}]' for name in tree.planned
                                    if matches(name, override.match)})
        for index, override in enumerate(overrides):
            if override.unit == 'module':
                for name in self._outermost(override.match, index):
                    self._check(name, index, why_not(name))
                    self.modules[name] = index

    def why_not(self, module: str) -> str:
        """Why overrides do not let a module be a unit, in words that follow its name."""
        single = next((name for name in self._tree.layers(module) if name in self.single), None)
        if single is not None:
            return f"holds '{single}', which {self.single[single]} sets apart"
        inner = next((name for name in self.modules if name != module
                      and self._around(module, name)), None)
        return '' if inner is None else \
            f"holds '{inner}', which overrides[{self.modules[inner]}] makes a unit"

    def _outermost(self, pattern: str, index: int) -> list[str]:
        """Modules that match and are in no other one that does."""
        where = f"quantization.overrides[{index}].match='{pattern}'"
        called = [name for name in self._tree.modules() if name]
        found = [name for name in called if matches(name, pattern)]
        if not found:
            raise ValueError(f'{where} (unit=\'module\') matches no module that calls quantized '
                             f'layers; {nearest(pattern, called[:12])}, ...')
        return [name for name in found if not any(
            other != name and self._around(other, name) for other in found)]

    def _around(self, outer: str, inner: str) -> bool:
        """Whether a call of a module lies in a call of another."""
        return any(self._tree.holds(one, other) for one in self._tree.places(outer)
                   for other in self._tree.places(inner))

    def _check(self, name: str, index: int, problem: str) -> None:
        where, layers = f'quantization.overrides[{index}]', self._tree.layers(name)
        apart = next((layer for layer in layers if layer in self.single), None)
        if apart is not None and layers != (name,):
            raise ValueError(f"{where} makes a unit of '{name}', which holds '{apart}', set apart "
                             f'by {self.single[apart]}; take one of the two out.')
        if problem and len(layers) > 1:
            raise ValueError(f"{where}: '{name}' cannot be a unit: it {problem}. A unit is called "
                             "with one floating tensor and gives one, and nothing else passes "
                             "between it and the rest; match a module inside it, or take the "
                             "override out ('mmbitsplit units' shows what is possible).")
