"""How a network runs on a chip: what its counts alone do not say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ttfs_triton.hardware.counts.counts import LayerActivity
from ttfs_triton.hardware.energy.prices import refuse

Implementation = Literal["clock_driven", "closed_form"]


@dataclass(frozen=True)
class RunOptions:
    """Options of `estimate` and of what it is compared with. The neuron and the readout are those that were counted.

    Attributes:
        steps: time steps in a window; clock-driven only.
        implementation: "clock_driven" or "closed_form", see `estimate`.
        gating: a neuron that has fired sleeps; clock-driven only.
        activity: what a simulation of the same counts found the neurons to do, in place of the formula.
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

    steps: int | None = None
    implementation: Implementation = "clock_driven"
    gating: bool = False
    activity: Sequence[LayerActivity] | None = None
    weight_bits: int | None = None
    state_bits: int | None = None
    memory: bool = True
    idle: bool = True
    messages_per_spike: float = 1.0
    hops_per_spike: float | None = None
    step_us: float | None = None
    latency_us: float | None = None
    clock_mhz: float | None = None

    def __post_init__(self) -> None:
        choices = get_args(Implementation)
        if self.implementation not in choices:
            refuse("RunOptions", "implementation", f"be one of {', '.join(choices)}", self.implementation)
        if self.implementation == "clock_driven" and self.steps is None:
            refuse(
                "RunOptions",
                "steps",
                'be given for implementation="clock_driven"',
                None,
                "It counts time steps in a window.",
            )
        for name in ("steps", "weight_bits", "state_bits"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                refuse("RunOptions", name, "be a whole number, at least 1", value)
        for name in ("messages_per_spike", "hops_per_spike", "step_us", "latency_us", "clock_mhz"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                refuse("RunOptions", name, "be finite and at least 0", value)
