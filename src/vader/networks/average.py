"""The average of an adapter over its optimiser steps, which is evaluated and exported in the adapter's place.

An exponential moving average of the weights is smoother than where the last step happened to lead
(Polyak averaging; FlowBP, arXiv 2606.11075, has 0.995). Adapters are small, so that a second copy costs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vader.errors import UserError


class Average:
    """`decay * average + (1 - decay) * weights` after every step; at first the weights themselves.

    Args:
        decay: in [0, 1): it looks back over about `1 / (1 - decay)` steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.restart()

    def restart(self) -> None:
        """Begins anew from the weights as they are."""
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present weights into account."""
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parameters have the average's values; no optimiser may step there."""
        weights = [parameter.data for parameter in self.parameters]
        try:
            for parameter, value in zip(self.parameters, self.values, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.data = weight

    def state(self) -> list[Tensor]:
        """Its values, in the order of the parameters."""
        return self.values

    def load_state(self, state: Sequence[Tensor]) -> None:
        """Takes up what `state` gave. Raises `UserError` if it is of another adapter."""
        if [value.shape for value in state] != [value.shape for value in self.values]:
            raise UserError("its average is of another adapter")
        self.values = [value.to(own) for value, own in zip(state, self.values, strict=True)]
