"""Options of an estimate: how a network runs on a chip."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from ttfs_triton.hardware.counts.counts import Counts, LayerActivity
from ttfs_triton.hardware.energy.prices import STRICT, Number

Implementation = Literal["clock_driven", "closed_form"]
Whole = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class RunOptions:
    """Options of `estimate` and its alternatives. Neuron and readout are those of the counts.

    Attributes:
        steps: time steps in a window; clock-driven only.
        implementation: "clock_driven" or "closed_form", see `estimate`.
        gating: a neuron sleeps before its first input spike and once it has fired; clock-driven only. Counts that lack
            the first (`LayerCounts.driven_time`) give an upper bound.
        activity: work of the neurons as a simulation of the same counts found it, in place of a formula.
        weight_bits: of weights in memory. Default: the chip's, else the network's own, or 8.
        state_bits: of slopes and potentials in memory. Default: the chip's, at least 16.
        memory: charge memory traffic.
        idle: charge neurons outside their windows, on chips that price that.
        messages_per_spike: cores a delivered spike goes to.
        hops_per_spike: tiles a delivered spike crosses, all its messages together; None leaves hops unpriced.
        step_us: duration of a step, microseconds. Default: the chip's, if it fixes one.
        latency_us: of a sample, microseconds, in place of windows times steps; a closed form has no steps.
        clock_mhz: for idle power. Default: the chip's.
    Raises:
        ValueError: no steps for clock-driven neurons, or a value out of range.
    """

    steps: Whole | None = None
    implementation: Implementation = "clock_driven"
    gating: bool = False
    activity: tuple[LayerActivity, ...] | None = None
    weight_bits: Whole | None = None
    state_bits: Whole | None = None
    memory: bool = True
    idle: bool = True
    messages_per_spike: Number = 1.0
    hops_per_spike: Number | None = None
    step_us: Number | None = None
    latency_us: Number | None = None
    clock_mhz: Number | None = None

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        if self.implementation == "clock_driven" and self.steps is None:
            raise ValueError('steps, of a window, must be given for implementation="clock_driven"; got None')
        return self


class Run(NamedTuple):
    """Counts of a network, and how it is priced.

    Attributes:
        counts: what it did.
        options: how, with the `activity` that a simulation found.
    """

    counts: Counts
    options: RunOptions
