"""Points of a sweep: what a network is trained for, as keys of a training run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ttfs_triton.fault_options import FaultOptions

TARGETS = ("target_sparsity", "target_operations", "target_energy")
GRID = ("time_steps", "weight_bits", "state_bits")
FAULTS = tuple(FaultOptions.model_fields)
TRAINING = ("epochs", "lr", "ema_decay", "seed")
KEYS = (*TARGETS, *GRID, *FAULTS, *TRAINING)
"""Keys of a training run that a point may set; those of `TRAINING` say how, and make none alone."""


@dataclass(frozen=True)
class Point:
    """What a network is trained for.

    Attributes:
        keys: pairs of a key of `KEYS` and its value, in the order of `KEYS`.
    Raises:
        ValueError: no keys, one twice, or one that makes no point.
    Example:
        >>> Point.parse("time_steps=8+target_sparsity=0.15").name
        'target_sparsity=0.15+time_steps=8'
    """

    keys: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        names = [key for key, _ in self.keys]
        if unknown := [name for name in names if name not in KEYS]:
            raise ValueError(f"a point may have the keys {', '.join(KEYS)}; got {', '.join(unknown)}")
        if set(names) <= set(TRAINING) or len(set(names)) < len(names):
            raise ValueError(
                f"a point must have a target, grid or faults, and each key once; got {', '.join(names) or 'none'}"
            )
        object.__setattr__(self, "keys", tuple(sorted(self.keys, key=lambda pair: KEYS.index(pair[0]))))

    @classmethod
    def of(cls, **keys: Any) -> Point:
        """A point of these keys; None leaves one out."""
        return cls(tuple((key, value) for key, value in keys.items() if value is not None))

    @classmethod
    def parse(cls, text: str) -> Point:
        """A point from "KEY=VALUE+KEY=VALUE".

        Raises:
            ValueError: anything else.
        """
        pairs = [part.partition("=") for part in text.split("+")]
        if not all(key and value for key, _, value in pairs):
            raise ValueError(f"a point must read KEY=VALUE, or KEY=VALUE+KEY=VALUE; got {text}")
        return cls(tuple((key.strip().replace("-", "_"), as_number(value)) for key, _, value in pairs))

    @property
    def name(self) -> str:
        """As `parse` takes it."""
        return "+".join(f"{key}={value}" for key, value in self.keys)

    @property
    def folder(self) -> str:
        """The name, fit for a folder."""
        return re.sub(r"[^\w.=+,-]", "_", self.name)

    def values(self) -> dict[str, Any]:
        """The keys of a run that the point sets: a target takes the place of any other."""
        given = dict(self.keys)
        cleared = dict.fromkeys(TARGETS) if any(key in given for key in TARGETS) else {}
        return cleared | given


def grids(time_steps: Sequence[int], weight_bits: Sequence[int], state_bits: int | None) -> list[Point]:
    """Every pair of time steps and weight bits, or the steps alone with weights that are not rounded."""
    bits: Iterable[int | None] = weight_bits or (None,)
    return [
        Point.of(time_steps=steps, weight_bits=each, state_bits=state_bits) for each in bits for steps in time_steps
    ]


def as_number(text: str) -> int | float | str:
    """The number that a text is, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()
