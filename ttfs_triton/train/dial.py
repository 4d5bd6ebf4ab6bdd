"""The dial: training under a multiplier that brings what a network costs to a goal.

The loss becomes L + λ·c/s, with a cost c and its setpoint s. The multiplier λ, of either sign, follows by dual ascent:
it grows while the cost is above its setpoint. A part in proportion to the error damps that, as an augmented Lagrangian
does. All of it lives on the device and is the same on all processes, so that no step is read by the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from ttfs_triton.scoring import sum_over_processes

# These together bring networks to their goals whether they answer fast or slowly; see the tests of this file.
ASCENT = 20.0  # growth of λ over a whole run at twice the setpoint
DAMPING = 2.0  # what that error adds to λ at once
MOST_EAGER = 10.0  # factor on both, by which a learning rate below its peak is made up for, behind the approach
SMOOTHING = 0.8  # decay of the average of costs that they look at
# A relative error counts for this much at most, so that no λ is wound up by a network that cannot follow.
MOST_ERROR = 0.5
# Share of the steps in which the setpoint goes from what the network costs at the start to the goal, and after which it
# is steady enough to be compared with validation.
APPROACH = 0.3
SETTLED = 0.35
# Decay, at least, of the average of costs that is compared; and how far that may move the goal.
LONG_SMOOTHING = 0.97
MOST_CORRECTION = 2.0


class Dial:
    """The multipliers of a run, one for each cost. What no training changes of a cost is left out of all ratios.

    Args:
        goals, floors: of each cost: what it is to become, and the least that it could be.
        accelerator: device and processes.
        steps: optimiser steps of the run.
        ema_decay: of the weights that will be scored.
    Attributes:
        approach: steps until the setpoint has come to the goal. A moving average that starts anew then keeps nothing of
            a network that costs more.
        pressure: [costs], float64, what the gradient of each relative cost is multiplied with in the next step.
    """

    def __init__(
        self, goals: Sequence[float], floors: Sequence[float], accelerator: Accelerator, steps: int, ema_decay: float
    ) -> None:
        self.accelerator = accelerator
        self.approach, self._settled = math.ceil(APPROACH * steps), math.ceil(SETTLED * steps)
        self._ascent, self._decay = ASCENT / steps, max(LONG_SMOOTHING, ema_decay)
        self._floors = torch.tensor(floors, dtype=torch.float64, device=accelerator.device)
        self._wanted = torch.tensor(goals, dtype=torch.float64, device=accelerator.device) - self._floors
        # One tensor in checkpoints: a row for each of these.
        self._state = torch.zeros(8, len(goals), dtype=torch.float64, device=accelerator.device)
        self.pressure, self._multiplier, self._cost, self._scored, self._start, *others = self._state.unbind()
        self._goal, self._setpoint, self._step = others
        self._goal.copy_(self._wanted)
        self._setpoint.copy_(self._wanted)
        self._observed = torch.zeros_like(self._goal)
        self._eager = torch.ones_like(self._goal)

    def prepare(self, step: int, rate: float) -> bool:
        """What the host tells before each step; returns whether the moving average of weights starts anew with it.

        Args:
            step: optimiser steps done.
            rate: learning rate over the peak rate: a network that learns slowly answers slowly.
        """
        self._eager.fill_(1.0 if step < self.approach else 1 / max(rate, 1 / MOST_EAGER))
        return step == self.approach

    def penalty(self, costs: Tensor, micro_batches: int) -> Tensor:
        """What a micro-batch, one of so many, adds to its loss; its costs [costs] are remembered."""
        self._observed.add_(costs.detach(), alpha=1 / micro_batches)
        return (self.pressure / self._setpoint).to(costs.dtype) @ costs

    def update(self) -> None:
        """Follow the costs of a step; behind its micro-batches."""
        observed = self._observed
        if self.accelerator.num_processes > 1:
            observed = sum_over_processes(self.accelerator, observed) / self.accelerator.num_processes
        cost = torch.maximum(observed - self._floors, self._wanted / 100)
        first = self._step == 0
        torch.where(first, cost, self._start, out=self._start)
        torch.where(first, cost, self._cost.lerp(cost, 1 - SMOOTHING), out=self._cost)
        fresh = first | (self._step == self.approach)
        torch.where(fresh, cost, self._scored.lerp(cost, 1 - self._decay), out=self._scored)
        progress = (self._step / self.approach).clamp_(max=1)
        torch.mul(self._start ** (1 - progress), self._goal**progress, out=self._setpoint)
        error = (self._cost / self._setpoint - 1).clamp_(-MOST_ERROR, MOST_ERROR)
        error.mul_(self._eager)
        self._multiplier.add_(error, alpha=self._ascent)
        torch.add(self._multiplier, error, alpha=DAMPING, out=self.pressure)
        self._step.add_(1)
        self._observed.zero_()

    def correct(self, measured: Sequence[float]) -> None:
        """Aim at what is scored, not at what is trained: it may be an average of weights, and images are not augmented.

        Args:
            measured: costs of the scored network by its exact counts, in the order of the goals.
        """
        scored = torch.tensor(measured, dtype=torch.float64, device=self._state.device) - self._floors
        ratio = self._scored / torch.maximum(scored, self._wanted / 100)
        corrected = self._wanted * ratio.clamp(1 / MOST_CORRECTION, MOST_CORRECTION)
        self._goal.copy_(torch.where(self._step >= self._settled, corrected, self._goal))

    def multipliers(self) -> list[float]:
        """λ of each cost; the host waits for the device."""
        return self._multiplier.tolist()

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, [quantities, costs]."""
        return {"state": self._state}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        self._state.copy_(state["state"])
