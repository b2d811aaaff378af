"""Gradient descent on offset fields in the preconditioned variable."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from expportrait_cli.fit.patch import Preconditioner, Surface

Term = Callable[[Surface], Float[Tensor, " T"]]
"""A loss of every frame by itself."""
DECAYS = (0.9, 0.999)


class UniformAdam:
    """Adam with one step length for a whole field: the largest second moment divides all (Nicolet et al. 2021).

    Divided one by one, the many vertices that hardly matter would move as far as those that do. Frames (the first
    axis) are apart, so that a frame's result does not depend on its company.
    """

    def __init__(self, variable: Float[Tensor, "T P C"], rate: float):
        self.variable, self._rate, self._count = variable, rate, 0
        self._first = torch.zeros_like(variable)
        self._second = torch.zeros_like(variable)

    def step(self, gradient: Float[Tensor, "T P C"], share: float = 1.0) -> None:
        """Move the variable, in place, by a share of the step length."""
        self._count += 1
        fast, slow = DECAYS
        self._first.mul_(fast).add_(gradient, alpha=1 - fast)
        self._second.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        mean = self._first / (1 - fast**self._count)
        largest = (self._second / (1 - slow**self._count)).amax((1, 2), keepdim=True).sqrt()
        self.variable.data.sub_(share * self._rate * mean / (largest + 1e-12))


def descend(
    start: Float[Tensor, "T P C"],
    surface: Callable[[Float[Tensor, "T P C"]], Surface],
    terms: Sequence[Term],
    preconditioner: Preconditioner,
    *,
    iterations: int,
    rate: float,
) -> tuple[Float[Tensor, "T P C"], Float[Tensor, " T"]]:
    """Lower the sum of the terms; each frame keeps the field of its least loss, and that loss.

    `surface` poses a field; one field may serve many frames, and is then judged by their mean. The start counts as a
    candidate, so that the result is never worse than it.
    """
    variable = preconditioner.variable(start).requires_grad_()
    optimiser = UniformAdam(variable, rate)
    best, least = start.clone(), start.new_full((len(start),), torch.inf)
    for iteration in range(iterations + 1):
        field = preconditioner.field(variable)
        shown = surface(field)
        loss = torch.stack([term(shown) for term in terms]).sum(0)
        if len(loss) != len(start):
            loss = loss.mean(0, keepdim=True)
        better = loss.detach() < least
        best[better], least[better] = field.detach()[better], loss.detach()[better]
        if iteration < iterations:
            (gradient,) = torch.autograd.grad(loss.sum(), variable)
            # At full length to the end, the last steps swing by more than shallow folds are high.
            optimiser.step(gradient, min(1.0, 2 * (1 - iteration / iterations)))
    return best, least
