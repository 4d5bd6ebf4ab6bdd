"""Settings and results of a simulation, and its counts and options for an energy estimate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pydantic
from torch import Tensor

from ttfs_triton.energy.counts import Counts, LayerActivity
from ttfs_triton.energy.estimate import Run, RunOptions
from ttfs_triton.nn.faults import Faults
from ttfs_triton.nn.grid import Grid, StateBits, WeightBits

# Most time steps in a window: no hardware has a finer clock, and float32 closed forms are no more exact.
MOST_STEPS = 4096


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))
class SimulationSettings:
    """How a network is simulated: arguments of `simulate`. Raises ValueError if one is out of range."""

    steps: Annotated[int, pydantic.Field(ge=1, le=MOST_STEPS)] = 64
    weight_bits: WeightBits | None = 8
    per_channel: bool = True
    gating: bool = True
    state_bits: StateBits | None = None
    faults: Faults = Faults()
    seed: int = 0

    @classmethod
    def of(cls, grid: Grid | None, **chosen: Any) -> SimulationSettings:
        """Settings; where a chosen value is "network", it is the grid's value, or without a grid the default."""
        usual: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        if grid is not None:
            usual |= {"steps": grid.time_steps, **grid.to_dict()}
        return cls(**{name: usual[name] if value == "network" else value for name, value in chosen.items()})


@dataclass(frozen=True)
class Simulation:
    """Decisions, counts and spike times of a simulated network.

    Attributes:
        settings: the settings of the simulation.
        samples: number of simulated samples.
        predictions: [samples] int64, class of the highest logit: by the readout's membrane potentials at its
            window's start or end, or by its spike times.
        first_spike_predictions: [samples] int64, class of the earliest output spike. If several are in the same step,
            the lowest class; without an output spike, the class with the highest potential at the output window's end.
        accuracy: share of samples that `predictions` classify correctly; None without labels.
        first_spike_accuracy: the same of `first_spike_predictions`.
        ties: number of samples in which several output neurons fire in the earliest step.
        no_spike: number of samples without an output spike.
        latency_steps: [samples] int64, steps from the image's start to the first output spike's time stamp, or to the
            output window's end if there is no output spike.
        potential_latency_steps: steps from the image's start until the potentials of `predictions` can be read.
        counts: counts of the simulated spikes in the form of `count`. Time stamp k counts as time k/steps, histograms
            have one bin per step, and spikes in step 0 are "saturated". The spikes of a readout of potentials are
            counted on the hidden layers' ramp, as in the network's statistics.
        activity: updates and comparisons of the layers in `counts`. A readout works until the decision that it was
            trained for: by potential until the start or end of its window, without comparisons; by first spike until
            that spike (with gating), with comparisons.
        spike_steps: time steps of the spikes by stage name, before pooling: [samples, ...] int32 in [0, steps), on the
            CPU; `steps` for silent neurons. A readout's spikes are on the ramp on which the first spike decides. None
            unless asked for.
    """

    settings: SimulationSettings
    samples: int
    predictions: Tensor
    first_spike_predictions: Tensor
    accuracy: float | None
    first_spike_accuracy: float | None
    ties: int
    no_spike: int
    latency_steps: Tensor
    potential_latency_steps: int
    counts: Counts
    activity: tuple[LayerActivity, ...]
    spike_steps: dict[str, Tensor] | None = None

    @property
    def mean_latency_steps(self) -> float:
        """Mean of `latency_steps`."""
        return float(self.latency_steps.double().mean())

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values, except the predictions and spike times of single samples."""
        names = "samples accuracy first_spike_accuracy ties no_spike mean_latency_steps"
        return {
            **dataclasses.asdict(self.settings),
            **{name: getattr(self, name) for name in (*names.split(), "potential_latency_steps")},
            "counts": self.counts.to_dict(),
            "activity": [dataclasses.asdict(layer) for layer in self.activity],
        }


def simulated_run(simulation: Simulation, options: RunOptions | None = None) -> Run:
    """Counts and options of a simulation, for an energy estimate: estimate(run.counts, chip, run.options).

    `options` say how the network runs on the chip; the simulation sets steps, gating and activity.
    """
    set_by, options = simulation.settings, options or RunOptions(steps=simulation.settings.steps)
    same = {"steps": set_by.steps, "gating": set_by.gating, "activity": simulation.activity}
    return Run(simulation.counts, replace(options, **same))
