"""Steps that a layer's class takes before or after its product, kept as they were seen.

A class may normalize its input, or have its activation inside. Such steps are operations that know
nothing of sizes, so that what was seen on one input holds on every other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmbitsplit.models.layers.in_place_base import InPlaceModule

# Operations that treat positions or whole dimensions alike, whatever the size of the input.
REPEATABLE = frozenset((
    'abs add amax amin clamp clamp_max clamp_min div elu erf exp gelu hardsigmoid hardswish '
    'hardtanh leaky_relu linalg_vector_norm log log1p maximum mean minimum mish '
    'mul neg pow prelu reciprocal relu relu6 rsqrt rsub sigmoid silu softplus sqrt std sub sum '
    'tanh threshold var _prelu_kernel').split())
_VALUE, _CONSTANT = 'value', 'constant'


@dataclass(frozen=True)
class Step:
    """One operation.

    Args:
        operation: Name and overload in ``torch.ops.aten``, such as ``'mul.Tensor'``.
        args: Plain values; ``{'value': 0}`` is the input of all steps, ``{'value': n}`` the result
            of the nth, ``{'constant': n}`` a tensor beside them.
        kwargs: The same, by name.
    """

    operation: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class StepList:
    """Steps in order; the last one's result is the result.

    Args:
        steps: The steps.
        constants: Tensors that they use: parameters, or made of parameters.
    """

    steps: tuple[Step, ...] = ()
    constants: tuple[Tensor, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def same_as(self, other: 'StepList') -> bool:
        """Whether both do the same, constants included."""
        return self.steps == other.steps and len(self.constants) == len(other.constants) and all(
            torch.equal(*pair) for pair in zip(self.constants, other.constants))

    @property
    def rectifies(self) -> bool:
        """Whether they are a ReLU and nothing else."""
        return [step.operation for step in self.steps] == ['relu.default']


NO_STEPS = StepList()


def value(index: int) -> dict[str, int]:
    """How arguments name a value."""
    return {_VALUE: index}


def constant(index: int) -> dict[str, int]:
    """How arguments name a constant."""
    return {_CONSTANT: index}


class Steps(InPlaceModule):
    """Runs a list of steps on a tensor.

    Args:
        steps: The steps; an operation that is not repeatable is refused, for a file may name any.
        constants: Tensors that they use; state of this module.

    Raises:
        ValueError: An operation is not known.
    """

    steps: tuple[Step, ...]

    def __init__(self, steps: Sequence[Step], constants: Sequence[Tensor] = ()):
        super().__init__()
        self.begin(steps, constants)

    def begin(self, steps: Sequence[Step], constants: Sequence[Tensor] = ()) -> None:
        """Gives a module without buffers these steps; see above."""
        self.steps = tuple(steps)
        for step in steps:
            _operation(step.operation)
        for index, tensor in enumerate(constants):
            self.register_buffer(f'constant{index}', tensor.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        values = [input]
        for step in self.steps:
            values.append(_operation(step.operation)(
                *(self._resolve(item, values) for item in step.args),
                **{name: self._resolve(item, values) for name, item in step.kwargs.items()}))
        return values[-1]

    def describe(self) -> dict[str, Any]:
        """What ``from_description`` needs, in plain values."""
        return {'steps': [[step.operation, list(step.args), step.kwargs] for step in self.steps],
                'constants': [list(tensor.shape) for tensor in self.constants()]}

    def constants(self) -> list[Tensor]:
        """The tensors that steps use, in order."""
        return [tensor for name, tensor in self._buffers.items() if name.startswith('constant')]

    @classmethod
    def of(cls, found: StepList) -> 'Steps':
        """Builds the module of steps that were seen."""
        return cls(found.steps, found.constants)

    @classmethod
    def from_description(cls, description: dict[str, Any], like: Tensor) -> 'Steps':
        """Builds the module, its constants to be loaded; they are made ``like`` a tensor."""
        return cls([Step(operation, tuple(args), kwargs)
                    for operation, args, kwargs in description['steps']],
                   [like.new_zeros(shape) for shape in description['constants']])

    def _resolve(self, item: Any, values: list[Tensor]) -> Any:
        if isinstance(item, dict):
            return values[item[_VALUE]] if _VALUE in item \
                else getattr(self, f'constant{item[_CONSTANT]}')
        return item

    def extra_repr(self) -> str:
        return ', '.join(step.operation for step in self.steps)


class IdentityNorm(Steps, nn.Identity):
    """A batch norm that the layer before it has taken in: it leaves what it gets as it is.

    A batch norm of a model takes this class in place (``surgery/turned.py``). Where its own class
    goes on after normalizing, these steps are left.
    """

    in_place_name = 'Folded'


def _operation(name: str) -> Any:
    base, _, overload = name.partition('.')
    if base not in REPEATABLE:
        raise ValueError(f"The step '{name}' is not known to this version of mmbitsplit; install "
                         'a newer one, or quantize again.')
    return getattr(getattr(torch.ops.aten, base), overload)
