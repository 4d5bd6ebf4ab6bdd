"""Options of a sweep, and its points: a point is a set of keys of a training run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

import tyro
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ttfs_triton.nn import Grid
from ttfs_triton.nn.faults import Faults
from ttfs_triton.shared_options import FaultOptions

TARGETS = ("target_sparsity", "target_operations", "target_energy")
GRID = ("time_steps", "weight_bits", "state_bits")
FAULTS = tuple(FaultOptions.model_fields)
TRAINING = ("epochs", "lr", "ema_decay", "seed")
KEYS = (*TARGETS, *GRID, *FAULTS, *TRAINING)
"""Keys of a training run that a point may set; those of `TRAINING` say how, and make none alone."""


@dataclass(frozen=True)
class Point:
    """One training of a network: for a target, a grid, faults, or several of them.

    Attributes:
        keys: pairs of a key of `KEYS` and its value, in that order; each once, and not of `TRAINING` alone.
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
        """A point from "KEY=VALUE+KEY=VALUE"; anything else is a ValueError."""
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


def as_number(text: str) -> int | float | str:
    """The text as a number if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


Share = Annotated[float, Field(gt=0, le=1)]


class FrontierOptions(BaseModel):
    """Which networks, along which axes. Positional: the runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(min_length=1)
    """Trained networks to start from: folders of runs, or others with config.json and model.safetensors,
    owner/name[@revision] on the Hub, or bundled:NAME. Several are drawn into the same curves."""
    output_dir: Path
    """Folder of the sweep: a run's folder for each point that is trained, frontier.csv, frontier.json, frontier.html.
    The same command goes on with what is there."""

    # ---- trained: each value is a run of its own, from the network's weights
    target_sparsity: tuple[str, ...] = ()
    """Hidden spikes over hidden neurons to train for, such as 0.3 0.15 0.05; or of layers, conv1=0.3,fc1=0.1."""
    target_operations: tuple[str, ...] = ()
    """Synaptic operations over the products of the dense ANN to train for."""
    target_energy: tuple[str, ...] = ()
    """Energies of an image to train for, CHIP:MICROJOULES."""
    points: tuple[str, ...] = ()
    """Any combination, such as target_sparsity=0.15+time_steps=8+weight_bits=4; epochs, lr, ema_decay and seed in it
    say how it is trained."""

    # ---- grids and faults: without training, and with it if asked for
    time_steps: tuple[int, ...] = ()
    """Time steps a window: the network is calibrated for each, with each of weight_bits."""
    weight_bits: tuple[int, ...] = ()
    """Bits of a weight on these grids. Default: weights are not rounded."""
    state_bits: int | None = None
    """Bits of the registers on these grids. Default: as wide as it takes."""
    train_grids: bool = False
    """Also train the network on each of these grids."""
    spike_jitter: tuple[Share, ...] = ()
    """Standard deviations of spike times, in windows: the network is simulated with each."""
    weight_noise: tuple[Share, ...] = ()
    """Standard deviations of weights, as shares of their magnitudes."""
    dead_neurons: tuple[Share, ...] = ()
    """Shares of the hidden neurons that never fire."""
    stuck_neurons: tuple[Share, ...] = ()
    """Shares of the hidden neurons that always fire at their window's start."""
    lost_spikes: tuple[Share, ...] = ()
    """Shares of the spikes that reach no synapse."""
    train_faults: bool = False
    """Also train the network with each of these faults, and simulate that with all faults of the same kind."""
    fault_seed: int = Field(0, ge=0)
    """Seed of the chip whose faults the simulation has."""
    deadlines: bool = False
    """Find accuracy against decision time, of the network and of each point that is trained."""

    # ---- training of a point: as its run was trained, with its weights to begin with, but for these
    epochs: int = Field(4, ge=1)
    """Passes over the training images."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate. Default: half the run's. Milestones give way to one cycle, of a shorter run."""
    config: Path | None = None
    """YAML file of more keys, as training recipes have them, which win over the run's."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if code of yours does."""

    # ---- data
    dataset: str | None = None
    """Hub data set, or "sample". Default: as the run was trained."""
    data_dir: Path | None = None
    """Local folder with parquet files or class folders of images; no network is used."""
    max_train_samples: int | None = Field(None, ge=1)
    """Use only this many training images: a quick look."""
    max_test_samples: int | None = Field(None, ge=1)
    """Use only this many test images."""
    batch_size: int = Field(250, ge=1)
    """Images a batch, where networks are measured."""

    # ---- measuring
    chip: tuple[str, ...] = ("lemaire45:int8", "anp_i")
    """Chips to price on: names of presets or TOML files of yours. Curves are drawn for the first that prices memory."""
    steps: int = Field(32, ge=1)
    """Time steps a window of networks without a grid, where they are priced or simulated."""
    cpu: bool = False
    """Use the CPU even where there is a GPU."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        for name in ("weight_bits", "state_bits", "train_grids"):
            if getattr(self, name) and not self.time_steps:
                raise ValueError(f"{name} needs time_steps: a grid has a clock; 64 steps lose nothing")
        if self.train_faults and not any(getattr(self, name) for name in FAULTS):
            raise ValueError(f"train_faults needs faults to train with: {', '.join(FAULTS)}")
        self.grids()
        self.trained()
        return self

    def grids(self) -> dict[Point, Grid]:
        """Grids that the network is calibrated for, by point: all pairs of time steps and weight bits."""
        pairs = product(self.weight_bits or (None,), self.time_steps)
        points = [Point.of(time_steps=steps, weight_bits=bits, state_bits=self.state_bits) for bits, steps in pairs]
        return {point: Grid(**dict(point.keys)) for point in points}

    def faults(self, kind: str | None = None) -> list[Faults]:
        """Faults that are simulated, of one kind or of all."""
        kinds = FAULTS if kind is None else (kind,)
        return [Faults(**{name: value}) for name in kinds for value in getattr(self, name)]

    def trained(self) -> list[Point]:
        """Points that are trained, each once."""
        found = [Point.of(**{key: as_number(value)}) for key in TARGETS for value in getattr(self, key)]
        if self.train_grids:
            found += self.grids()
        faults = FAULTS if self.train_faults else ()
        found += [Point.of(**{name: value}) for name in faults for value in getattr(self, name)]
        return list(dict.fromkeys([*found, *map(Point.parse, self.points)]))
