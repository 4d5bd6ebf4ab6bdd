"""Output neurons as hardware runs them: potentials that are read, or the earliest spike on their own ramp."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ttfs_triton.nn.clock import Clock, Ramp
from ttfs_triton.nn.clocked import ClockedLayer, Membrane
from ttfs_triton.nn.integers import QuantisedWeight

if TYPE_CHECKING:
    from ttfs_triton.nn.readout import Readout


class ClockedDecision(NamedTuple):
    """What the earliest output spike says, for N samples.

    Attributes:
        prediction: [N] int64, its class; of several in the same step, the lowest; without any, the class with the
            highest potential at the output window's end.
        step: [N, classes], time stamps from the output window's start, in steps; those of silent neurons lie behind the
            window.
        tie: [N] bool, several neurons fired in the earliest step.
        no_spike: [N] bool.
    """

    prediction: Tensor
    step: Tensor
    tie: Tensor
    no_spike: Tensor


class ClockedReadout(ClockedLayer):
    """Integer weights and potentials of a readout; see `ClockedLayer`.

    Args:
        readout: gives the ramp θ·(1 − s/S), V₀ and σ.
        quantised, clock, register, reach: as of `ClockedLayer`.
    """

    def __init__(
        self,
        readout: Readout,
        quantised: QuantisedWeight,
        clock: Clock,
        *,
        register: int | None = None,
        reach: int | None = None,
    ) -> None:
        super().__init__(
            readout,
            quantised,
            clock,
            psp_persistence=readout.neuron.psp_persistence,
            initial_potential=readout.initial_potential,
            threshold=max(1.0, readout.threshold),
            window=max(1.0, readout.window),
            register=register,
            reach=reach,
        )
        self.readout = readout

    def own_ramp(self) -> Ramp:
        """The ramp on which the earliest spike decides."""
        return self.ramp(self.readout.threshold, self.readout.window)

    def score(self, membrane: Membrane, *, at_end: bool) -> Tensor:
        """Potentials at the output window's start or one window later, without V₀, in threshold heights.

        Each channel has its own unit; float32, as decisions are made from it everywhere.
        """
        potential = self.after(membrane, 2 * self.steps if at_end else 0)
        return (self.height(potential) - self.readout.initial_potential).float()

    def decide(self, membrane: Membrane, instant: Tensor) -> ClockedDecision:
        """Decide by the earliest spike.

        Args:
            membrane: of the output neurons.
            instant: [N, classes] indices of the instants at which they fire on their own ramp.
        """
        step, never = self.clock.step_of(instant), len(self.clock.instants(self.readout.window))
        first, prediction = step.min(1)
        no_spike = instant.amin(1) == never
        tie = ((step == first[:, None]).sum(1) > 1) & ~no_spike
        at_end = self.height(self.after(membrane, round(2 * self.steps * self.readout.window))).argmax(1)
        return ClockedDecision(torch.where(no_spike, at_end, prediction), step, tie, no_spike)

    def on_hidden_ramp(self, membrane: Membrane) -> Tensor:
        """Indices of the instants [N, classes] at which these neurons would fire as hidden ones do, without V₀."""
        return self.ramp().first_instant(*self.without_initial_potential(membrane))
