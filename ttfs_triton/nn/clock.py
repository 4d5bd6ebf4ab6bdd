"""The clock: time stamps of spikes, the instants at which neurons compare, and the first instant at which they fire.

A window has T steps. A spike stamped with step k stands for the time k/T from the window's start and is kept as its
remaining steps T − k: T fires at once, 0 is silent. That is the activation in steps, 1 − k/T; pooling is its maximum,
padding its zero. A neuron fires at the first instant at which its potential is at or above the falling threshold:

    "middle"  at the window's start (step 0), then in the middle of each step: time (k + ½)/T, stamp k. Stamps are
              rounded to the nearest step.
    "start"   at the start of each step: time k/T. Stamps are late by up to a step.

Potentials and thresholds are integers, so there is one answer to "at or above". Their unit is that of a weight times a
step, divided by 2^17: half a step, and 16 bits for the slope that persists and for the threshold's decrement.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CompareAt = Literal["middle", "start"]
FRACTION_BITS = 16
POTENTIAL_BITS = FRACTION_BITS + 1


@dataclass(frozen=True)
class Clock:
    """Steps of a window, and where in a step neurons compare.

    Attributes:
        steps: T.
        compare_at: "middle" or "start".
    """

    steps: int
    compare_at: CompareAt = "middle"

    def instants(self, window: float = 1.0) -> list[int]:
        """Instants of comparison in a firing window of length `window`, in half steps from its start."""
        half_steps = 2 * self.steps * window
        end = int(half_steps) + (half_steps > int(half_steps))
        return [0, *range(1, end, 2)] if self.compare_at == "middle" else list(range(0, end, 2))

    def step_of(self, instant: Tensor) -> Tensor:
        """Time stamps of spikes, from the indices of their instants, whole numbers of any type; a tensor like them."""
        return (instant - 1).clamp_min(0) if self.compare_at == "middle" else instant

    def stamped(self, activation: Tensor) -> Tensor:
        """Activations in [0, 1] as their time stamps keep them: multiples of 1/T, float32."""
        return self.remaining(self.encode(activation)) / self.steps

    def encode(self, activation: Tensor) -> Tensor:
        """Indices of the instants at which a ramp from 1 to 0 falls to the activations in [0, 1]; int64."""
        never = len(self.instants())
        late = self.steps * (1 - activation.double())
        instant = (late + 0.5 if self.compare_at == "middle" else late).ceil().long().clamp_(0, never)
        return instant.masked_fill_(activation >= 1, 0).masked_fill_(activation <= 0, never)

    def remaining(self, instant: Tensor) -> Tensor:
        """T − k of spikes from the indices of their instants, 0 for silent neurons; float32 whole numbers."""
        return (self.steps - self.step_of(instant)).float()


class Ramp:
    """A threshold that falls to zero, per channel, and the instants at which it is compared with.

    Attributes:
        height: [C, ...] whole numbers, at the window's start.
        decrement: [C, ...] whole numbers, in half a step.
        instants: in half steps from the window's start.
    """

    def __init__(
        self,
        clock: Clock,
        unit: Tensor,
        threshold: float = 1.0,
        window: float = 1.0,
        dtype: torch.dtype = torch.int64,
    ) -> None:
        """Quantise the ramp threshold·(1 − s/window), for neurons whose weights have these units [C, ...].

        Args:
            dtype: of the potentials that it is compared with: int64, or float64 for those below 2^53, whose division
                is vectorised on a CPU. Both give the same instants.
        """
        decrement = (2.0**FRACTION_BITS * threshold / (unit * window)).round()
        self.decrement = decrement.to(dtype)
        self.height = (decrement * (2 * clock.steps * window)).round().to(dtype)
        self.instants, self._clock = clock.instants(window), clock

    @property
    def never(self) -> int:
        """Index that stands for no spike."""
        return len(self.instants)

    def first_instant(self, potential: Tensor, drift: Tensor) -> Tensor:
        """Index of the first instant with potential + drift · half steps at or above the ramp, by division.

        Args:
            potential: [N, C, ...] whole numbers of the ramp's dtype, at the window's start.
            drift: of `potential`, in half a step; same shape.
        Returns:
            [N, C, ...] of the same dtype, `never` for neurons that do not fire.
        """
        missing, closing = self.height - potential, self.decrement + drift
        fires_at_once, diverges = missing <= 0, closing <= 0
        # Both lines are straight, so what is true once stays true: the first whole number of half steps, rounded up.
        # A quotient of whole numbers below 2^53 is never rounded up to the next one.
        index = _floor_divide_(missing.sub_(1), closing.clamp_min_(1)).add_(1)
        if self._clock.compare_at == "middle":
            index = _floor_divide_(index, 2).add_(1)
        else:
            index = _floor_divide_(index.add_(1), 2)
        return index.masked_fill_(diverges, self.never).masked_fill_(fires_at_once, 0).clamp_max_(self.never)


def _floor_divide_(numbers: Tensor, by: Tensor | int) -> Tensor:
    """Whole numbers divided in place, rounded down."""
    if numbers.is_floating_point():
        return numbers.div_(by).floor_()
    return numbers.div_(by, rounding_mode="floor")
