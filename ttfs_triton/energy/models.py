"""Energy of one sample of a network, with time-to-first-spike neurons or as an ANN: operations times prices.

Earliest-spike pooling is not charged: it compares spike times that are available anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ttfs_triton.energy.chip import Chip, load_chip
from ttfs_triton.energy.counts import Counts, LayerActivity, LayerCounts
from ttfs_triton.energy.estimate import Estimate, RunOptions, Term, TermKind


def estimate(
    counts: Counts,
    chip: Chip | str | Path,
    options: RunOptions | None = None,
    *,
    network: str = "network",
    **changes: Any,
) -> Estimate:
    """Energy of one sample, in pJ, by layer and term. The counts say which neurons and readout the network has.

    Neurons are driven by a clock, as on event chips: a synaptic operation adds a weight to a slope. An awake neuron
    adds its slope to its potential in every step of its two windows, and in the second compares the potential with the
    threshold. The readout integrates for one window.

    An analog first layer does multiply-accumulates. Memory traffic is charged, without reuse, if the chip has prices of
    memory besides those of synaptic operations. Static power is charged for all windows; parallel branches share them.

    Args:
        counts: counts of a spiking network.
        chip: a `Chip`, or a name or path for `load_chip`.
        options: how the network runs on the chip.
        network: name of the network in tables.
        changes: attributes of `RunOptions` that override `options`: estimate(counts, "loihi", steps=32).
    Raises:
        ValueError: there are no samples, the chip is unknown, an option does not exist or is out of range, or `changes`
            contradicts a simulation's `activity`.
    Source: neuron, Wei et al., ICCV 2023, Eq. 5–7; memory traffic, Lemaire et al., ICONIP 2022.
    Example:
        >>> from ttfs_triton.energy import count
        >>> from ttfs_triton.nn import cnn1
        >>> counts = count(cnn1(), [torch.rand(4, 1, 28, 28)])
        >>> energy = estimate(counts, "lemaire45:int8", steps=32)
        >>> 0 < energy.compute_only.nominal < energy.total.nominal
        True
        >>> sorted({term.kind for term in energy.terms}), energy.status
        (['compute', 'memory', 'static'], 'assumed')
    """
    if options is not None and options.activity and "activity" not in changes and {"steps", "gating"} & changes.keys():
        wrong = f"estimate: steps and gating must be those of the simulation that made the activity; got {changes}"
        raise ValueError(f"{wrong}. Simulate with them, or give activity=None, which computes the work from counts.")
    options = RunOptions(**changes) if options is None else replace(options, **changes)
    terms = Terms(counts, chip, options)
    windows = terms.windows + (counts.readout not in (None, "potential_start"))  # read after the integration window
    terms.spikes_out("input", 0.0, counts.input.spikes / counts.samples)
    for layer in terms.layers:
        _clock_driven(terms, layer, windows)
        if layer.kind != "readout":
            terms.spikes_out(layer.name, layer.spikes, layer.spikes_delivered)
    asleep = "neurons stay awake in both of their windows"
    if options.gating:
        bound = "" if options.activity is not None else "; their work is computed from counts: an upper bound"
        asleep = f"neurons sleep before their first input spike and after their own{bound}"
    said = f"clock-driven, {options.steps} steps a window, {windows} windows; {asleep}"
    return terms.estimate(network, "clock-driven", [said], steps=options.steps * windows)


def _clock_driven(terms: Terms, layer: LayerCounts, windows: int) -> None:
    """Charge the work of a layer's synapses and neurons."""
    work, real = _neuron_work(layer, terms), layer.kind == "analog"
    has_slope = not real or layer.psp_persistence > 0  # a signed encoder's bright pixels add to a slope
    if real:  # products and biases make a potential, which waits for the threshold
        terms.multiplications(layer, layer.dense_macs)
    if has_slope:
        terms.synaptic_operations(layer, layer.synaptic_operations)
        terms.preset(layer, words=1 if real else 2, biases=not real)
    terms.neuron_updates(layer, work, words=2 if has_slope else 1)
    if terms.chip.arithmetic and layer.kind == "spiking" and 0 < layer.psp_persistence < 1:
        terms.compute(layer, "slope persistence", layer.neurons, "multiply_accumulate")
    if "neuron_idle" in terms.chip.prices:
        idle = max(0.0, terms.options.steps * windows * layer.neurons - work.awake_steps(layer.neurons))
        terms.compute(layer, "idle neurons", idle, "neuron_idle")


def _neuron_work(layer: LayerCounts, terms: Terms) -> LayerActivity:
    """Work of a layer's neurons in their two windows: `options.activity`, or from counts, averaged over samples.

    A neuron compares at its window's start and once a step, and adds the slope in between. With gating, it sleeps from
    one step after its spike time on average: half a step for rounding, half until the comparison in mid-step.
    """
    options, at = terms.options, terms.counts.readout
    for work in options.activity or ():
        if work.name == layer.name:
            done = (work.integration_updates, work.firing_updates, work.compares)
            return LayerActivity(layer.name, *(number * (1 / terms.counts.samples) for number in done))
    whole = float(options.steps * layer.neurons)
    integration, waiting, undriven = 0.0 if layer.kind == "analog" else whole, whole, 0.0
    if options.gating:
        silent = layer.neurons - layer.spikes
        waiting = options.steps * (silent + layer.summed_spike_time) + layer.spikes
        if layer.driven_time is not None and layer.undriven_time is not None:
            integration, undriven = options.steps * layer.driven_time, options.steps * layer.undriven_time
    persists = layer.psp_persistence > 0
    if layer.kind == "readout" and at != "first_spike":
        firing = whole - undriven if at == "potential_end" and persists else 0.0
        return LayerActivity(layer.name, integration, firing, 0.0)
    return LayerActivity(layer.name, integration, waiting - undriven if persists else 0.0, waiting + layer.neurons)


def dense_ann(
    counts: Counts, chip: Chip | str | Path, *, options: RunOptions | None = None, network: str = "network"
) -> Estimate:
    """Energy of the same network as a dense ANN, which computes every product.

    A synapse costs a multiply-accumulate, a hidden neuron a comparison (ReLU). Memory traffic is charged as in an
    analog first layer. Where synapses average spikes, the ANN pools first, which costs an addition per input.

    Args:
        counts: counts of the network, spiking or not; only its shape is used.
        chip, network: as in `estimate`.
        options: only `state_bits` has an effect.
    """
    return _ann(Terms(counts, chip, options or RunOptions(steps=1)), network, "dense ANN", skip_zeros=False)


def zero_skipping_ann(
    counts: Counts, chip: Chip | str | Path, *, options: RunOptions | None = None, network: str = "network"
) -> Estimate:
    """Energy of the same network as an ANN that multiplies only non-zero inputs.

    Every input is still read and tested for zero (a comparison), by a convolution once for every product, as without
    reuse it is read; weights are read only for products that are computed.

    Args:
        counts: counts of the ANN whose zeros are skipped, or of the spiking network if the ANN is equally sparse.
        chip, options, network: as in `dense_ann`.
    """
    return _ann(Terms(counts, chip, options or RunOptions(steps=1)), network, "zero-skipping ANN", skip_zeros=True)


def _ann(terms: Terms, network: str, name: str, *, skip_zeros: bool) -> Estimate:
    for layer in terms.layers:
        if layer.average > 1:
            terms.compute(layer, "average pools", layer.inputs, "accumulate")
            pooled = {key: getattr(layer, key) / layer.average for key in ("dense_macs", "inputs")}
            layer = replace(layer, **pooled)
        if skip_zeros:
            tests = layer.dense_macs if layer.shared_weights else layer.inputs
            terms.compute(layer, "tests for zero", tests, "compare")
        terms.multiplications(layer, min(layer.nonzero_macs, layer.dense_macs) if skip_zeros else layer.dense_macs)
        if layer.kind != "readout":
            terms.compute(layer, "activation functions", layer.neurons, "compare")
    return terms.estimate(network, name, [f"{name}; no reuse of numbers read"])


class Terms:
    """Builder of one estimate: collects its terms, for layers whose counts are averaged over samples.

    Weights in memory have the chip's bits, else the network's, else 8. States have the options' bits, else
    the network's, else at least 16.
    """

    def __init__(self, counts: Counts, chip: Chip | str | Path, options: RunOptions) -> None:
        self.chip, self.options, self.counts, self.layers = load_chip(chip), options, counts, counts.averages()
        self.weight_bits = self.chip.bits or counts.weight_bits or 8
        self.state_bits = options.state_bits or counts.state_bits or max(16, self.weight_bits)
        self.windows = counts.windows or sum(layer.kind == "spiking" for layer in self.layers) + 1
        self._terms: list[Term] = []
        self._largest: dict[str, float] = {}  # bytes of memories larger than any with a price, by layer

    def charge(self, layer: str, name: str, kind: TermKind, count: float | None, key: str, note: str = "") -> None:
        """Add a term, unless its count is 0 or another price includes it."""
        if count != 0 and not self.chip.holds(key):
            price = self.chip.prices.get(key)
            if price is None or price.value is None:
                note = f"the chip states no price for {key}"
            self._terms.append(Term(layer, name, kind, count, price, key, note))

    def compute(self, layer: LayerCounts, name: str, count: float, key: str) -> None:
        """Add a term of arithmetic."""
        self.charge(layer.name, name, "compute", count, key)

    def access(self, layer: LayerCounts, name: str, count: float, numbers: float, bits: int) -> None:
        """Add `count` reads or writes of a memory that holds `numbers` numbers of `bits` bits."""
        memory, size_bytes = self.chip.memory, numbers * bits / 8
        if memory is None:
            self.charge(layer.name, name, "memory", count, "memory")  # without a price
        elif count != 0:
            if size_bytes > memory.largest_bytes:
                self._largest[layer.name] = max(size_bytes, self._largest.get(layer.name, 0.0))
            self._terms.append(Term(layer.name, name, "memory", count, memory.access(size_bytes, bits), "memory"))

    def _addresses(self, layer: LayerCounts, count: float) -> None:
        """Add the additions that compute addresses, if the chip's memory charges them."""
        if self.chip.memory is not None and self.chip.memory.addressing:
            self.charge(layer.name, "addressing", "memory", count, "accumulate")

    def synaptic_operations(self, layer: LayerCounts, operations: float) -> None:
        """Charge synaptic operations: an input spike adds a weight to the slope of every neuron that it reaches.

        An operation reads a weight, and reads and writes a state. Source: Lemaire et al., ICONIP 2022, Eq. 7–15.
        """
        key = "synop_conv" if layer.shared_weights and "synop_conv" in self.chip.prices else "synop"
        self.compute(layer, "synaptic operations", operations, "accumulate" if self.chip.arithmetic else key)
        self.access(layer, "weight reads", operations, layer.weights, self.weight_bits)
        for name in ("state reads", "state writes"):
            self.access(layer, name, operations, layer.neurons, self.state_bits)
        self._addresses(layer, operations)

    def preset(self, layer: LayerCounts, words: int, *, biases: bool = True) -> None:
        """Charge the reset before a sample, which sets potentials to the biases and slopes to zero."""
        if layer.biases and biases:
            self.access(layer, "weight reads", layer.neurons, layer.biases, self.state_bits)
        self.access(layer, "state writes", layer.neurons * words, layer.neurons * words, self.state_bits)

    def multiplications(self, layer: LayerCounts, macs: float, runs: float = 1) -> None:
        """Charge `runs` of a layer with real-valued inputs: a product reads its weight and its input.

        A fully connected layer reads an input only once. Source: Lemaire et al., ICONIP 2022, Eq. 3–6, 11–12.
        """
        self.compute(layer, "multiply-accumulates", macs, "multiply_accumulate")
        biases = runs * layer.neurons if layer.biases else 0
        inputs = layer.dense_macs if layer.shared_weights else runs * layer.inputs
        self.access(layer, "weight reads", macs + biases, layer.weights, self.weight_bits)
        self.access(layer, "input reads", inputs, layer.inputs, self.state_bits)
        self.access(layer, "output writes", runs * layer.neurons, layer.neurons, self.state_bits)
        self._addresses(layer, runs * (layer.inputs + layer.neurons + layer.weights))

    def neuron_updates(self, layer: LayerCounts, work: LayerActivity, words: int) -> None:
        """Charge updates of neurons; `words` is 2 for slope and potential, 1 for a potential alone."""
        additions = work.integration_updates + work.firing_updates
        if self.chip.arithmetic:
            self.compute(layer, "neuron additions", additions, "accumulate")
            self.compute(layer, "threshold comparisons", work.compares, "compare")
        else:
            self.compute(layer, "neuron updates", work.awake_steps(layer.neurons), "neuron_update")
        # An addition reads all words; in the firing window it shares its read of the potential with the comparison.
        reads = (words - 1) * additions + work.integration_updates + max(work.firing_updates, work.compares)
        self.access(layer, "state reads", reads, words * layer.neurons, self.state_bits)
        self.access(layer, "state writes", additions, words * layer.neurons, self.state_bits)

    def spikes_out(self, layer: str, spikes: float, delivered: float) -> None:
        """Charge spikes that leave a layer, by the communication prices that the chip has."""
        for name, key, number, note in (
            ("spikes out", "spike_out", spikes, ""),
            ("messages", "message", delivered, ""),
            ("hops", "hop", None, "their number depends on the placement of neurons"),
        ):
            if key in self.chip.prices:
                self.charge(layer, name, "communication", number, key, note)

    def _nominal(self, key: str) -> float | None:
        amount = self.chip.prices[key].amount if key in self.chip.prices else None
        return None if amount is None else amount.nominal

    def _static_power(self, latency_us: float | None, note: str) -> None:
        """Add leakage and idle power unless other prices include them; `note` says why the latency is unknown."""
        prices, clock_mhz = self.chip.prices, self._nominal("clock")
        if "leakage_power" in prices or "idle_power" not in prices:
            self.charge("chip", "leakage", "static", latency_us, "leakage_power", note)
        if "idle_power" in prices:
            cycles = None if latency_us is None or clock_mhz is None else latency_us * clock_mhz
            note = note or ("the chip states no clock" if clock_mhz is None else "")
            self.charge("chip", "idle power", "static", cycles, "idle_power", note)

    def estimate(
        self, network: str, implementation: str, assumptions: Sequence[str], *, steps: int | None = None
    ) -> Estimate:
        """The estimate: all terms, static power over `steps` time steps, assumptions, warnings."""
        chip, total, network_bits = self.chip, self.counts.total(), self.counts.weight_bits
        step_us = self._nominal("step_time") if self.options.step_us is None else self.options.step_us
        latency_us = None if step_us is None or steps is None else step_us * steps
        why = "an ANN has no steps" if steps is None else "give --step-us, or the chip's file a step_time"
        self._static_power(latency_us, f"the latency is not known: {why}" if latency_us is None else "")
        lines = [*assumptions, *([] if latency_us is None else [f"latency {latency_us:,.4g} µs"])]
        lines.append(f"{chip.name}: {chip.description}; a synaptic operation is priced as {chip.synop_scope}")
        if chip.holds("memory"):
            lines.append("a synaptic operation's price includes memory traffic: compute alone is unknown")
        elif chip.memory is not None:
            packing = "numbers packed into words" if chip.memory.packed else "one access a number"
            bits = f"{self.weight_bits}-bit weights, {self.state_bits}-bit states"
            lines.append(f"memory of a layer: {bits}, {packing}")
        if network_bits not in (None, self.weight_bits):
            lines.append(f"priced as {self.weight_bits}-bit weights, although the network's have {network_bits} bits")
        warnings = chip.exceeded(total["neurons"], total["synapses"], network_bits or self.weight_bits)
        for layer, size in self._largest.items():
            assert chip.memory is not None
            largest = f"the largest memory that {chip.name} prices ({chip.memory.largest_bytes / 2**20:g} MB)"
            warnings.append(f"{layer}: {size / 2**20:,.1f} MB exceed {largest}")
        told = {"assumptions": (*lines, *chip.notes), "warnings": tuple(warnings), "latency_us": latency_us}
        return Estimate(network, implementation, chip, self.counts.samples, tuple(self._terms), **told)
