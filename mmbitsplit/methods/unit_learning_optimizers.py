"""What is learned of a unit, and by which optimiser."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmbitsplit.functional.solvers.learned_rounding import Schedule, rate_factor

Optimizer = Literal['adam', 'sign_sgd']
AFTERWARDS = 0.1  # of its rate keeps a group in steps after its schedule, or what that ends with


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Tensors that are learned alike.

    Args:
        parameters: Leaves that require gradients, by a name of their own in the unit.
        learning_rate: At the first step.
        optimizer: ``'adam'`` as torch has it, or ``'sign_sgd'``: each moves by the learning rate
            against the sign of its gradient.
        schedule: Of the learning rate.
        low: Least value that a step may leave, such as of a scale; ``None`` for any.
    """

    parameters: Mapping[str, Tensor]
    learning_rate: float
    optimizer: Optimizer = 'adam'
    schedule: Schedule = 'constant'
    low: float | None = None


class SignSGD(torch.optim.Optimizer):
    """Moves each parameter by the learning rate against the sign of its gradient.

    Source: Cheng et al., Optimize Weight Rounding via Signed Gradient Descent, 2023.
    """

    def __init__(self, parameters: list[Tensor], lr: float):
        super().__init__(parameters, {'lr': lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step of all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group['lr'])


class GroupOptimizer:
    """Learns one group.

    Args:
        group: Of at least one parameter.
    """

    def __init__(self, group: ParameterGroup):
        self.group, parameters = group, list(group.parameters.values())
        kind = torch.optim.Adam if group.optimizer == 'adam' else SignSGD
        self.optimizer = kind(parameters, lr=group.learning_rate)

    def zero_grad(self) -> None:
        """Forgets gradients."""
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self, step: int, steps: int) -> None:
        """Moves the parameters.

        Args:
            step: From 0; beyond ``steps`` a group keeps a tenth of its rate, or what its schedule
                ends with where that is more.
            steps: Of the schedule.
        """
        group, factor = self.group, rate_factor(self.group.schedule, step, steps)
        if step >= steps:
            factor = max(factor, AFTERWARDS)
        self.optimizer.param_groups[0]['lr'] = group.learning_rate * factor
        self.optimizer.step()
        if group.low is not None:
            for parameter in group.parameters.values():
                parameter.clamp_(min=group.low)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Copies of what the optimiser knows of each parameter, by name."""
        return {name: {key: value.clone() for key, value in self.optimizer.state[one].items()}
                for name, one in self.group.parameters.items()}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Goes on from a ``state``."""
        for name, one in self.group.parameters.items():
            self.optimizer.state[one] = {  # counts are scalars, which Adam keeps on the CPU
                key: value.clone() if value.dim() == 0 else value.to(one.device, copy=True)
                for key, value in state[name].items()}
