"""Simulator of clock-driven hardware: integer time stamps, integer weights, at most one spike per neuron."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ttfs_triton.chip.simulation import Simulation, SimulationSettings
from ttfs_triton.energy.counter import SynapseCounter, graph_of_batches, images_and_labels, network_counts
from ttfs_triton.energy.counts import LayerActivity, LayerCounts
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder
from ttfs_triton.nn.faults import BrokenNeurons, Faults, disturbed, draw_broken, weight_factors
from ttfs_triton.nn.graph import NetworkGraph, Stage
from ttfs_triton.nn.grid import Clock
from ttfs_triton.nn.integers import QuantisedWeight, exact_products, largest_integer, quantise_weight
from ttfs_triton.nn.on_chip import AnalogLayer, ClockedLayer, earliest_input
from ttfs_triton.nn.prepare import check_register
from ttfs_triton.nn.readout import ClockedOutputs, first_spike_decision

# Samples that run at once on the CPU. Smaller parts stay in the caches: CNN1 in batches of 200 runs 1.7 times as fast.
CPU_SAMPLES = 50

FromGrid = Literal["network"]  # the value of the network's grid


@torch.no_grad()
def simulate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int | FromGrid = "network",
    weight_bits: int | FromGrid | None = "network",
    per_channel: bool | FromGrid = "network",
    state_bits: int | FromGrid | None = "network",
    gating: bool = True,
    keep_spike_times: bool = False,
    faults: Faults = Faults(),
    seed: int = 0,
) -> Simulation:
    """Decisions and counts of a trained network that runs in integers, on a clock of `steps` ticks per window.

    "network" takes a setting from the network's grid, on which the network decides exactly as in evaluation. Without a
    grid it means 64 steps, 8-bit weights with a unit per channel, and wide registers.

    Layer l integrates in window l − 1 and fires in window l; otherwise it sleeps. At a step of the integration window,
    the weights of that step's spikes are added to a neuron's slope, and the slope to its potential. At a step of the
    firing window, σ times the slope is added to the potential, until the potential meets the falling threshold. An
    `AnalogEncoder` or `SignedEncoder` multiplies real numbers by rounded weights; its outputs become time stamps.

    Args:
        model: a network that `network_graph` accepts, on any device and in any mode: dropout is off, and batch norm
            uses its running statistics.
        batches: images [N, ...] in the form that the model takes, or tuples (images, labels) with labels [N] int64.
        steps: time steps of a window, 1 to 4096. For the same inputs and weights, a layer's spike times differ from the
            closed form by at most half a step.
        weight_bits: bits of a weight, 2 to 16, sign included; None leaves weights as fine as float32. The largest
            weight becomes the largest integer; if bits and granularity equal the grid's, the grid's units are used.
        per_channel: one weight unit per output channel; otherwise one per layer.
        state_bits: bits of the registers of slope and potential, see `ttfs_triton.nn.Grid`; None is wide enough.
        gating: neurons rest until their first input spike and after their spike; only `activity` depends on it.
        keep_spike_times: whether the result holds all spike times.
        faults: faults of the chip. Weight noise and broken neurons are the same for all images; jitter and loss of
            spikes are drawn anew for every image. Output neurons never break; their spikes are neither moved nor lost.
        seed: seed of the chip's faults, and of the spikes' faults, which are drawn in the order of the images. Batches
            of another size, and other devices, draw other spike faults.
    Returns:
        Decisions, counts of the spikes that are left after faults, and the work of clock-driven neurons.
    Raises:
        NetworkError: the model is no network of this project's layers.
        ValueError: an argument is out of range, there are no batches, labels are not [N] or only in some batches,
            registers do not hold a threshold, or potentials need more than 62 bits.
    Source: Wei et al., ICCV 2023, Eq. 2-7.
    Example:
        >>> from ttfs_triton.nn import cnn1
        >>> result = simulate(cnn1(), [torch.rand(4, 1, 28, 28)], steps=16, weight_bits=4)
        >>> result.predictions.shape, result.potential_latency_steps
        (torch.Size([4]), 64)
        >>> [layer.name for layer in result.activity]
        ['conv1', 'conv2', 'fc1', 'readout']
    """
    graph, batches = graph_of_batches("simulate", model, batches)
    settings = SimulationSettings.of(
        graph.grid,
        steps=steps,
        weight_bits=weight_bits,
        per_channel=per_channel,
        state_bits=state_bits,
        gating=gating,
        faults=faults,
        seed=seed,
    )
    simulator = Simulator(graph, settings, keep_spike_times)
    for batch in batches:
        simulator.add(*images_and_labels(batch))
    return simulator.result()


def simulate_at(model: nn.Module, batches: Iterable[Any], steps: Iterable[int], **options: Any) -> list[Simulation]:
    """Simulations of a network at several numbers of time steps per window.

    Args:
        model, options: as in `simulate`.
        batches: as in `simulate`, but repeatable: a list or a DataLoader, not a generator.
        steps: numbers of time steps; duplicates are dropped.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        return [
            simulate(model, bar.track(batches, description=f"simulation, {number} steps"), steps=number, **options)
            for number in dict.fromkeys(steps)
        ]


class Simulator:
    """Simulates batches and sums their results; `layers` has layers in integers and their counters, by name."""

    def __init__(self, graph: NetworkGraph, settings: SimulationSettings, keep: bool) -> None:
        self._graph, self._settings, self._keep = graph, settings, keep
        self._clock = Clock(settings.steps)
        self._device = graph.readout.weight.device
        self._samples, self._input = 0, torch.zeros((), dtype=torch.int64, device=self._device)
        self._kept: dict[str, list[Tensor]] = {stage.name: [] for stage in graph.stages}
        self._decisions: list[tuple[Tensor, ...]] = []
        self._labels: list[Tensor] = []
        self._faulty = FaultyChip(settings.faults, self._clock, settings.seed)
        self.layers: dict[str, tuple[ClockedLayer | AnalogLayer, ClockedCounter]] = {}
        for stage in graph.stages:
            if stage.kind != "latency":
                counter = ClockedCounter(stage, self._clock, settings.gating)
                self.layers[stage.name] = self._clocked(stage), counter

    def _clocked(self, stage: Stage) -> ClockedLayer | AnalogLayer:
        """A stage in integers, in the grid's weight units if the simulation has the grid's bits, else in new units."""
        layer, bits, per_channel = stage.layer, self._settings.weight_bits, self._settings.per_channel
        unit, (exact, bias) = stage.weighted.unit_on_grid(bits, per_channel), stage.synapses()
        rounded = quantise_weight(exact, bits, per_channel=per_channel, unit=unit)
        rounded = rounded.with_skip_weights(stage.weighted.skip_weights())
        weight, register = self._faulty.weights(rounded), None
        if isinstance(layer, AnalogEncoder):
            return AnalogLayer(layer, weight, bias, self._clock)
        if (width := self._settings.state_bits) is not None:
            check_register(stage.weighted, rounded.unit, self._clock.steps, width, "simulate", stage.name)
            register = largest_integer(width)
        return ClockedLayer(stage.weighted, weight, self._clock, register=register)

    def add(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Simulate a batch and add its results."""
        if labels is not None:
            if labels.shape != images.shape[:1]:
                raise ValueError(f"simulate: labels must be [{len(images)}], one per image; got {[*labels.shape]}.")
            self._labels.append(labels.to(self._device, non_blocking=True))
        images = images.to(self._device, non_blocking=True)
        with exact_products():
            for part in images.split(CPU_SAMPLES if images.device.type == "cpu" else max(1, len(images))):
                self._graph.run(part, self._emit)
                self._samples += len(part)

    def _emit(self, stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        """Spikes of a stage as numbers of steps that remain in its window; 0 for silent neurons."""
        if stage.name in self.layers:
            instant = self._fire(stage, inputs, skip)
        else:
            assert isinstance(stage.layer, LatencyEncoder)
            instant = self._faulty.spikes(stage, self._clock.encode(stage.layer.unrounded(inputs)))
            self._input += torch.count_nonzero(self._clock.remaining(instant))
        if self._keep:
            self._kept[stage.name].append(self._clock.step_of(instant).to(torch.int32))
        return self._clock.remaining(instant)

    def _fire(self, stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        layer, counter = self.layers[stage.name]
        if isinstance(layer, AnalogLayer):
            assert isinstance(layer.layer, AnalogEncoder)
            inputs = layer.layer.normalise(inputs)
            counter.synapses.add(inputs)
            instant, earliest = layer.instants(inputs), earliest_input(layer.layer, (inputs > 0).to(inputs.dtype))
        else:
            counter.synapses.add(inputs, skip)
            membrane, earliest = layer.integrate(inputs, skip), earliest_input(layer.layer, inputs, skip)
            counter.add_integration(earliest, membrane.potential.shape[1] // earliest.shape[1])
            if stage.kind == "readout":
                return self._read_out(ClockedOutputs(layer, membrane), counter, earliest)
            instant = layer.first_instant(membrane).long()
        instant = self._faulty.spikes(stage, instant)
        counter.add_spikes(instant)
        counter.add_firing(instant, earliest if layer.persistence else None)
        return instant

    def _read_out(self, outputs: ClockedOutputs, counter: ClockedCounter, earliest: Tensor) -> Tensor:
        readout, instant, slopes = self._graph.readout, outputs.instant, outputs.layer.persistence > 0
        at_end = readout.at == "potential_end"
        decision = first_spike_decision(outputs.spike_times(), outputs.potential(at_end=True))
        if readout.at == "first_spike":
            prediction, spikes = self._clock.step_of(instant).argmin(1), instant
            first = instant.amin(1, keepdim=True) if self._settings.gating else instant
            counter.add_firing(first.expand_as(instant), earliest if slopes else None)
        else:
            score = (outputs.potential(at_end=at_end) - readout.initial_potential).float()  # as the network's logits
            # Statistics count these neurons on the hidden layers' ramp, without the common initial potential.
            prediction, spikes = score.argmax(1), outputs.on_hidden_ramp().long()
            if at_end and slopes:
                counter.add_end_of_window(earliest, instant.shape[1])
        counter.add_spikes(spikes)
        latency = self._clock.step_of(instant.amin(1)) + self._graph.windows * self._clock.steps
        self._decisions.append((prediction, decision.prediction, decision.tie, decision.no_spike, latency))
        return instant

    def result(self) -> Simulation:
        """Results over all batches so far."""
        decisions = (torch.cat(parts).cpu() for parts in zip(*self._decisions, strict=True))
        score, first, tie, no_spike, latency = decisions
        shares: list[float | None] = [None] * 2
        if self._labels:
            labels = torch.cat(self._labels).cpu()
            if len(labels) != self._samples:
                raise ValueError("simulate: batches must all have labels, or none; got both. Drop or add labels.")
            shares = [float((classes == labels).double().mean()) for classes in (score, first)]
        windows = self._graph.windows + (self._graph.readout.at == "potential_end")
        counters = [counter for _, counter in self.layers.values()]
        layers, settings = [counter.counts(self._samples) for counter in counters], self._settings
        return Simulation(
            settings=settings,
            samples=self._samples,
            predictions=score,
            first_spike_predictions=first,
            accuracy=shares[0],
            first_spike_accuracy=shares[1],
            ties=int(tie.sum()),
            no_spike=int(no_spike.sum()),
            latency_steps=latency,
            potential_latency_steps=windows * settings.steps,
            counts=network_counts(self._graph, layers, int(self._input), settings.weight_bits, settings.state_bits),
            activity=tuple(LayerActivity(name, *counter.work.tolist()) for name, (_, counter) in self.layers.items()),
            spike_steps={name: torch.cat(parts).cpu() for name, parts in self._kept.items()} if self._keep else None,
        )


class FaultyChip:
    """Faults of one chip: weight noise and broken neurons are drawn once, faults of spikes anew for every image.

    Draws are in the order of layers and images.
    """

    def __init__(self, faults: Faults, clock: Clock, seed: int) -> None:
        self.faults, self.clock = faults, clock
        self._chip, self._spikes = (torch.Generator().manual_seed(seed) for _ in range(2))
        self._broken: dict[str, BrokenNeurons | None] = {}

    def weights(self, quantised: QuantisedWeight) -> QuantisedWeight:
        """Weights with this chip's noise."""
        noise, skip_weight = self.faults.weight_noise, quantised.skip_weight
        if not noise:
            return quantised
        factors = weight_factors(quantised.integers, noise, self._chip)
        skip_factors = None if skip_weight is None else weight_factors(skip_weight, noise, self._chip)
        return quantised.multiplied(factors, skip_factors)

    def spikes(self, stage: Stage, instant: Tensor) -> Tensor:
        """A stage's spikes with faults, as indices [N, ...] of their instants; also for a latency encoder."""
        if not (self.faults.of_spikes or (self.faults.of_neurons and stage.kind != "latency")):
            return instant
        activations = self.clock.remaining(instant) / self.clock.steps
        if stage.name not in self._broken:
            whole = stage.kind == "latency"
            self._broken[stage.name] = None if whole else draw_broken(activations, self.faults, self._chip)
        left = disturbed(activations, self.faults, self._broken[stage.name], self.clock, self._spikes)
        # Undisturbed spikes keep their instants: two instants at the window's start have the same stamp.
        return torch.where(left == activations, instant, self.clock.encode(left))


class ClockedCounter:
    """Sums of a layer's spikes and inputs (`synapses`), and its `work`: updates of both windows, and comparisons."""

    def __init__(self, stage: Stage, clock: Clock, gating: bool) -> None:
        self._clock, self._never, self._gating = clock, clock.never, gating
        device = stage.weighted.weight.device
        self.synapses = SynapseCounter(stage)
        self._histogram = torch.zeros(clock.steps + 1, dtype=torch.int64, device=device)  # silent neurons last
        self.work = torch.zeros(3, dtype=torch.int64, device=device)
        self._integration, self._firing, self._compares = self.work
        self._ever = torch.zeros(math.prod(stage.shape), dtype=torch.bool, device=device)

    def add_integration(self, earliest: Tensor, channels: int) -> None:
        """Add the integration window's updates; `earliest` comes from `earliest_input`, and holds for `channels`."""
        cycles = earliest.sum(dtype=torch.float64).long() if self._gating else earliest.numel() * self._clock.steps
        self._integration += cycles * channels

    def add_spikes(self, instant: Tensor) -> None:
        """Add a batch of spikes, given as indices [N, ...] of their instants."""
        steps = self._clock.step_of(instant).flatten()
        self._histogram.scatter_add_(0, steps, self._histogram.new_ones(1).expand_as(steps))
        self._ever |= (instant < self._never).flatten(1).any(0)

    def add_firing(self, instant: Tensor, slope: Tensor | None) -> None:
        """Add the firing window's compares and updates.

        Args:
            instant: [N, C, ...] indices of the instants at which neurons fire; with gating they rest from then on.
            slope: the result of `earliest_input`, 0 where a neuron has no slope; None if no slope persists (σ = 0).
        """
        compares = (instant + 1).clamp_max_(self._never) if self._gating else torch.full_like(instant, self._never)
        self._compares += compares.sum()
        if slope is not None:
            updates = compares.sub_(1).unflatten(1, (slope.shape[1], -1)).sum(2)
            self._firing += (updates.masked_fill_(slope == 0, 0) if self._gating else updates).sum()

    def add_end_of_window(self, slope: Tensor, channels: int) -> None:
        """Add updates, to the firing window's end, of neurons that never compare; arguments as in the two above."""
        neurons = (slope > 0).sum() if self._gating else slope.numel()
        self._firing += neurons * channels * self._clock.steps

    def counts(self, samples: int) -> tuple[LayerCounts, Sequence[int]]:
        """The result of `SynapseCounter.counts` for this number of samples."""
        histogram = self._histogram[:-1].tolist()
        driven, undriven = self.synapses.times.tolist()
        return self.synapses.counts(
            self.synapses.sums.tolist(),
            (driven / self._clock.steps, undriven),
            samples,
            spikes=sum(histogram),
            saturated=histogram[0],
            never_active=int((~self._ever).sum()),
            summed_spike_time=sum(step * spikes for step, spikes in enumerate(histogram)) / self._clock.steps,
            histogram=tuple(histogram),
        )
