"""Sweeps of trained networks: accuracy against spikes, energy, time steps, weight bits, faults and decision time.

This file has the points of a sweep and the options of `ttfs sweep`, without PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

import tyro
from pydantic import Field, model_validator

from ttfs_triton.command_line import run_command
from ttfs_triton.commands import MeasuringOptions, Steps
from ttfs_triton.option_rules import Needs
from ttfs_triton.shared_options import FaultOptions

__all__ = ["FrontierOptions", "read_point"]

GRID = ("time_steps", "weight_bits", "state_bits")
FAULTS = tuple(FaultOptions.model_fields)
TARGETS = ("target_sparsity", "target_operations", "target_energy")
TRAINING = ("epochs", "lr", "ema_decay", "seed", "target_steps")
KEYS = (*TARGETS, *GRID, *FAULTS, *TRAINING)
"""Keys of a training run that a point may set. A point needs at least one key outside `TRAINING`."""


def read_point(text: str) -> dict[str, str]:
    """Keys of one training with their values, in the order of `KEYS`, from a text "KEY=VALUE+KEY=VALUE".

    Raises:
        ValueError: the text has another form, a key is not among `KEYS` or given twice, or none is outside `TRAINING`.
    Example:
        >>> read_point("time-steps=8+target_sparsity=0.15")
        {'target_sparsity': '0.15', 'time_steps': '8'}
    """
    pairs = [part.partition("=") for part in text.split("+")]
    if not all(key and value for key, _, value in pairs):
        raise ValueError(f"a point must read KEY=VALUE, or KEY=VALUE+KEY=VALUE; got {text}")
    keys = {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}
    if keys.keys() - {*KEYS} or keys.keys() <= {*TRAINING} or len(keys) < len(pairs):
        rule = f"set keys among {', '.join(KEYS)}, no key twice, and one that comes before {TRAINING[0]}"
        raise ValueError(f"a point must {rule}; got {text}")
    return {key: keys[key] for key in KEYS if key in keys}


def point_name(keys: Mapping[str, Any]) -> str:
    """The text of a point, as `read_point` reads it."""
    return "+".join(f"{key}={value}" for key, value in keys.items())


def folder_name(text: str) -> str:
    """The text, with a "_" for every character that folder names should not have."""
    return re.sub(r"[^\w.=+,-]", "_", text)


CLOCKED = Needs("time_steps", why="chips run on a clock; 64 steps lose nothing")
Share = Annotated[float, Field(gt=0, le=1)]


class FrontierOptions(MeasuringOptions):
    """Options of a sweep: networks, points, grids, faults and measurements. Positional: the runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(min_length=1)
    """Trained networks to start from: folders of runs, folders with config.json and model.safetensors,
    owner/name[@revision] on the Hub, or bundled:NAME. Several networks are drawn into the same curves."""
    output_dir: Path
    """Folder of the sweep, for frontier.csv, frontier.html, the rows' evaluation.json files, and the run folders of
    trained points. The same command resumes the sweep in this folder."""

    # ---- trained points: every value starts a training run from the network's weights
    target_sparsity: tuple[str, ...] = ()
    """Hidden spikes over hidden neurons to train for, such as 0.3 0.15 0.05."""
    target_operations: tuple[str, ...] = ()
    """Synaptic operations to train for, as a share of the dense ANN's products."""
    target_energy: tuple[str, ...] = ()
    """Energies per image to train for, as CHIP:MICROJOULES."""
    points: tuple[str, ...] = ()
    """Combinations to train for, such as target_sparsity=0.15+time_steps=8+weight_bits=4 or spike_jitter=0.1. A point
    may also set epochs, lr, ema_decay and seed of its training. If it sets a fault, the trained network is simulated
    with all faults of that kind."""

    # ---- grids and faults, without training
    time_steps: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = ()
    """Time steps per window of the grids; the network is calibrated for every pair of time steps and weight bits."""
    weight_bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], CLOCKED] = ()
    """Bits of a weight on the grids. Default: weights are not rounded."""
    state_bits: Annotated[int | None, CLOCKED] = Field(default=None, ge=4, le=62)
    """Bits of the registers of slope and potential on the grids. Default: as many as are needed."""
    spike_jitter: tuple[Share, ...] = ()
    """Standard deviations of spike times, in windows; the network is simulated with every one."""
    weight_noise: tuple[Share, ...] = ()
    """Standard deviations of weights, as shares of the weights' magnitudes."""
    dead_neurons: tuple[Share, ...] = ()
    """Shares of the hidden neurons that never fire."""
    stuck_neurons: tuple[Share, ...] = ()
    """Shares of the hidden neurons that always fire at their window's start."""
    lost_spikes: tuple[Share, ...] = ()
    """Shares of the spikes that reach no synapse."""

    # ---- training of a point: as the network was trained before, except for these
    epochs: int = Field(default=4, ge=1, lt=2**31)
    """Passes over the training images, per point."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate. Default: half the run's."""
    config: Path | None = None
    """YAML file of keys, like a training recipe; these keys override the run's."""
    max_train_samples: int | None = Field(default=None, ge=1, lt=2**31)
    """Use only this many training images, for a quick look."""

    # ---- measuring
    chip: tuple[str, ...] = Field(default=("lemaire45:int8", "anp_i"), min_length=1)
    """Chips whose prices turn counts into energies: names of presets, or TOML files of yours. Curves show the first
    one that prices the dense ANN, or else lemaire45:int8."""
    steps: Steps = 32
    """Time steps per window with which networks without a grid are simulated and priced."""

    @model_validator(mode="after")
    def _points(self) -> Self:
        self.trained()  # raises if a point cannot be read
        return self

    def grids(self) -> list[dict[str, Any]]:
        """Keys of the grids for which the network is calibrated: all pairs of time steps and weight bits."""
        pairs = product(self.weight_bits or (None,), self.time_steps)
        grids = [dict(zip(GRID, (steps, bits, self.state_bits), strict=True)) for bits, steps in pairs]
        return [{key: value for key, value in grid.items() if value is not None} for grid in grids]

    def trained(self) -> dict[str, dict[str, str]]:
        """Keys of the points to train, by the points' names."""
        targets = [f"{key}={value}" for key in TARGETS for value in getattr(self, key)]
        return {point_name(keys): keys for keys in map(read_point, (*targets, *self.points))}


main = partial(run_command, FrontierOptions, "ttfs_triton.sweep.command")
