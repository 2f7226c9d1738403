"""What is reconstructed at once: a part of the model with one tensor in and one out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A reconstruction unit: a module, or modules that are called one after another.

    Args:
        name: Dotted name of the module; of a chain, of its first module.
        modules: Names of the modules that are called, in the order of their calls. One for a
            single module or layer.
        layers: Names of the planned layers inside, in execution order.
        reason: Why the largest candidate around it was not taken. Empty where there was none.
    """

    name: str
    modules: tuple[str, ...]
    layers: tuple[str, ...]
    reason: str = ''
