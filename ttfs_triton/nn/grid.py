"""The grid of a chip, on which a network is trained and runs: time steps, bits of weights and of membranes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from ttfs_triton.nn.clock import Clock, CompareAt
from ttfs_triton.nn.integers import largest_integer

# With more than some hundred steps a network computes as in real numbers.
MOST_STEPS = 1024


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Grid:
    """Time steps and bits of a chip's synapses and neurons; frozen, all JSON values.

    A network on a grid computes what the chip does, and `ttfs_triton.hardware.simulate`: whole time stamps, integer
    weights, registers that saturate.

    Attributes:
        time_steps: T, steps of a window, 1 to 1024.
        weight_bits: 2 to 16, sign included; None leaves weights as fine as float32.
        per_channel: one weight unit per output channel; otherwise one per layer.
        state_bits: 4 to 62, sign included, of the registers of a neuron's slope (in weight units) and potential (in
            weight units · steps), which saturate after each step; fractions of steps are not counted. None: as wide as
            needed.
        compare_at: "middle" or "start" of a step; see `ttfs_triton.nn.clock`.
    Raises:
        ValueError: a value of another type or out of range.
    Example:
        >>> Grid(time_steps=4, weight_bits=4).text()
        '4 time steps a window, 4-bit weights with a unit per channel'
        >>> Grid.from_dict(Grid(8).to_dict()) == Grid(8)
        True
    """

    time_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    weight_bits: Annotated[int, Field(ge=2, le=16)] | None = None
    per_channel: bool = True
    state_bits: Annotated[int, Field(ge=4, le=62)] | None = None
    compare_at: CompareAt = "middle"

    @property
    def clock(self) -> Clock:
        """Its steps and instants."""
        return Clock(self.time_steps, self.compare_at)

    @property
    def limit(self) -> int:
        """Largest integer weight."""
        return largest_integer(self.weight_bits)

    @property
    def register(self) -> int | None:
        """Largest slope and potential."""
        return None if self.state_bits is None else largest_integer(self.state_bits)

    def text(self) -> str:
        """In words, for people."""
        units = "a unit per channel" if self.per_channel else "one unit a layer"
        weights = "unrounded weights" if self.weight_bits is None else f"{self.weight_bits}-bit weights with {units}"
        parts = [f"{self.time_steps} time step{'s' * (self.time_steps > 1)} a window", weights]
        if self.state_bits is not None:
            parts.append(f"{self.state_bits}-bit membranes")
        if self.compare_at != "middle":
            parts.append("compared at the start of each step")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Grid:
        """The grid that `to_dict` gave.

        Raises:
            ValueError: no mapping, unknown keys, or values out of range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"Grid.from_dict: values must be a mapping, with time_steps; got {values!r:.200}.")
        return cls(**values)
