"""A chip's grid, on which a network is trained and runs: time steps, thresholds on its clock, bits of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ttfs_triton.nn.integers import largest_integer

FRACTION_BITS = 16  # binary places of σ
POTENTIAL_BITS = FRACTION_BITS + 1  # binary places of potentials, in weight units · steps; half steps add one


@dataclasses.dataclass(frozen=True)
class Clock:
    """Time steps of a window. Neurons compare potential and threshold at its start and in the middle of every step.

    This rounds spike times to the nearest step. With comparisons only at the starts of steps, spikes came up to a step
    late: CNN1 decided 86.3 instead of 88.4 % of the bundled images correctly, with 8 bits at 8 steps.

    Attributes:
        steps: T, number of steps in a window.
    """

    steps: int

    @property
    def never(self) -> int:
        """Index of the instant that means "no spike": T + 1."""
        return self.steps + 1

    def step_of(self, instant: Tensor) -> Tensor:
        """Time stamps k of spikes from the indices of their instants (whole numbers); same shape and dtype."""
        return (instant - 1).clamp_min(0)

    def stamped(self, activation: Tensor) -> Tensor:
        """Activations in [0, 1] rounded to time stamps: multiples of 1/T, float32."""
        return self.remaining(self.encode(activation)) / self.steps

    def encode(self, activation: Tensor) -> Tensor:
        """Indices of the instants at which a ramp from 1 to 0 falls to the activations in [0, 1]; int64."""
        instant = (self.steps * (1 - activation.double()) + 0.5).ceil().long().clamp_(0, self.never)
        return instant.masked_fill_(activation >= 1, 0).masked_fill_(activation <= 0, self.never)

    def remaining(self, instant: Tensor) -> Tensor:
        """Steps T − k that remain at a spike, from the index of its instant; 0 for silent neurons; float32."""
        return (self.steps - self.step_of(instant)).float()


def first_instant(potential: Tensor, drift: Tensor, fall: Tensor, clock: Clock) -> Tensor:
    """Indices of the instants at which potentials reach a threshold that falls to zero in a window, by division.

    Tensors hold whole numbers: int64, or float64 for potentials below 2^53, since a CPU divides float64 in vectors.
    Both give the same instants.

    Args:
        potential: [N, C, ...], at the window's start.
        drift: change of `potential` in half a step; same shape.
        fall: decrease of the threshold in half a step, [C, ...].
    Returns:
        [N, C, ...], `clock.never` for neurons that do not fire.
    """
    missing, closing = 2 * clock.steps * fall - potential, fall + drift
    fires_at_once, diverges = missing <= 0, closing <= 0
    # Potential and threshold are straight lines, so a reached threshold stays reached: round up to whole half steps.
    # A quotient of whole numbers below 2^53 is never rounded up to the next one.
    index = _floor_divide_(missing.sub_(1), closing.clamp_min_(1)).add_(1)
    index = _floor_divide_(index, 2).add_(1)
    return index.masked_fill_(diverges, clock.never).masked_fill_(fires_at_once, 0).clamp_max_(clock.never)


def _floor_divide_(numbers: Tensor, by: Tensor | int) -> Tensor:
    """Whole numbers divided in place, rounded down."""
    if numbers.is_floating_point():
        return numbers.div_(by).floor_()
    return numbers.div_(by, rounding_mode="floor")


# With more than some hundred steps, a network computes as in real numbers.
MOST_STEPS = 1024
WeightBits = Annotated[int, Field(ge=2, le=16)]
StateBits = Annotated[int, Field(ge=4, le=62)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Grid:
    """Time steps of a chip, and bits of its synapses and neurons; frozen, with JSON values as fields.

    A network on a grid computes exactly as the chip and `ttfs_triton.chip.simulate` do: whole time stamps, integer
    weights, registers that saturate.

    Attributes:
        time_steps: T, steps of a window, 1 to 1024.
        weight_bits: bits of a weight, 2 to 16, sign included; None leaves weights as fine as float32.
        per_channel: one weight unit (scale) per output channel; otherwise one per layer.
        state_bits: bits, 4 to 62, sign included, of the registers that hold a neuron's slope (in weight units) and
            potential (in weight units · steps). They saturate after every step. Bits for fractions of steps are not
            counted. None: as wide as needed.
    Raises:
        ValueError: a value of another type or out of range.
    Example:
        >>> Grid(time_steps=4, weight_bits=4).text()
        '4 time steps a window, 4-bit weights with a unit per channel'
        >>> Grid.from_dict(Grid(8).to_dict()) == Grid(8)
        True
    """

    time_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    weight_bits: WeightBits | None = None
    per_channel: bool = True
    state_bits: StateBits | None = None

    @property
    def clock(self) -> Clock:
        """The grid's clock."""
        return Clock(self.time_steps)

    @property
    def register(self) -> int | None:
        """Largest integer that a register holds; None if registers are as wide as needed."""
        return None if self.state_bits is None else largest_integer(self.state_bits)

    def text(self) -> str:
        """The grid in words, for people."""
        units = "a unit per channel" if self.per_channel else "one unit a layer"
        weights = "unrounded weights" if self.weight_bits is None else f"{self.weight_bits}-bit weights with {units}"
        parts = [f"{self.time_steps} time step{'s' * (self.time_steps > 1)} a window", weights]
        if self.state_bits is not None:
            parts.append(f"{self.state_bits}-bit membranes")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The grid as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Grid:
        """The grid for values from `to_dict`; ValueError for no mapping, other keys, or values out of range."""
        if not isinstance(values, Mapping):
            raise ValueError(f"Grid.from_dict: values must be a mapping, with time_steps; got {values!r:.200}.")
        return cls(**values)
