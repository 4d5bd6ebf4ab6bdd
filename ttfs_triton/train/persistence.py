"""σ as a schedule: a training begins with σ = 0, as an ANN with clamped ReLU, and ends at its goal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ttfs_kernels import Neuron

LEVELS = 64
"""Values that σ takes on its way up. A step that was captured in a CUDA graph is captured anew at each of them."""


class PersistenceSchedule:
    """σ of a network's layers, by optimiser step: a function of the step alone, so that a resumed run has the same.

    Args:
        networks: whose neurons it sets: the trained one, and its average if there is one. The present σ of each layer
            is its goal.
        rise: start and end of the rise from 0, as shares of the training; None: σ stays at its goal.
        order: "together", or "layers": one layer after the other, from the input on.
        steps: optimiser steps of the training.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        rise: tuple[float, float] | None,
        order: Literal["together", "layers"],
        steps: int,
    ) -> None:
        self._layers: list[list[Any]] = [
            [module for module in network.modules() if isinstance(getattr(module, "neuron", None), Neuron)]
            for network in networks
        ]
        self._goals = [layer.neuron for layer in self._layers[0]]
        self.rise, self.order, self.steps = rise, order, steps
        self._shares: list[float] | None = None

    def set(self, step: int) -> bool:
        """Set σ before a step; returns whether it changed."""
        shares = [self._share(step, place) for place in range(len(self._goals))]
        if self.rise is None or shares == self._shares:
            return False
        self._shares = shares
        self._apply(shares)
        return True

    @property
    def missing(self) -> float:
        """How far σ is from its goal now, over all layers: 0 there, 1 where the rise has not begun."""
        return 0.0 if not self._shares else 1 - sum(self._shares) / len(self._shares)

    @contextmanager
    def at_goal(self) -> Iterator[None]:
        """Within the block, layers have the σ that the training ends with: what files say of a network."""
        shares = self._shares
        if shares is None:
            yield
            return
        self._apply([1.0] * len(shares))
        try:
            yield
        finally:
            self._apply(shares)

    def _apply(self, shares: Sequence[float]) -> None:
        for layers in self._layers:
            for layer, goal, share in zip(layers, self._goals, shares, strict=True):
                layer.neuron = replace(goal, psp_persistence=goal.psp_persistence * share)

    def _share(self, step: int, place: int) -> float:
        if self.rise is None:
            return 1.0
        start, end = (share * self.steps for share in self.rise)
        if self.order == "layers":
            length = (end - start) / len(self._goals)
            start, end = start + place * length, start + (place + 1) * length
        if step + 1 >= end:  # the last step of a training is one at the goal
            return 1.0
        return int(max(0.0, step + 1 - start) / (end - start) * LEVELS) / LEVELS
