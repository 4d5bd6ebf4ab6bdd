"""Terms of an energy estimate: operations and memory accesses of each layer for one sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttfs_triton.energy.chip import load_chip
from ttfs_triton.energy.counts import Counts, LayerActivity, LayerCounts
from ttfs_triton.energy.estimate import Estimate, RunOptions, Term, TermKind
from ttfs_triton.energy.prices import Chip, Price


class Terms:
    """Builder of one estimate: collects its terms, for layers whose counts are averaged over samples.

    Bits of weights and states in memory are those of the options, else the chip, else the network, else 8; without the
    option states have at least 16.
    """

    def __init__(self, counts: Counts, chip: Chip | str | Path, options: RunOptions) -> None:
        self.chip, self.options, self.counts, self.layers = load_chip(chip), options, counts, counts.averages()
        bits = self.chip.bits or counts.weight_bits or 8
        self.weight_bits = options.weight_bits or bits
        self.state_bits = options.state_bits or max(16, bits)
        self.windows = counts.windows or sum(layer.kind == "spiking" for layer in self.layers) + 1
        self._terms: list[Term] = []
        self._largest: dict[str, float] = {}  # bytes of layers' memories beyond the largest price

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
        if self.chip.holds("memory") or count == 0:
            return
        memory, price, size_bytes = self.chip.memory, None, numbers * bits / 8
        if memory is not None:
            price = memory.access(size_bytes, bits)
            if size_bytes > memory.largest_bytes:
                self._largest[layer.name] = max(size_bytes, self._largest.get(layer.name, 0.0))
        note = "" if price else "the chip states no price for memory"
        self._terms.append(Term(layer.name, name, "memory", count, price, "memory", note))

    def _addresses(self, layer: LayerCounts, count: float) -> None:
        """Add the additions that compute addresses, if the chip's memory charges them."""
        if self.chip.memory is not None and self.chip.memory.addressing:
            self.charge(layer.name, "addressing", "memory", count, "accumulate")

    def synaptic_operations(self, layer: LayerCounts, operations: float) -> None:
        """Charge synaptic operations: an input spike adds a weight to the slope of each neuron that it reaches.

        Each reads a weight, and reads and writes a state. Source: Lemaire et al., ICONIP 2022, Eq. 7–15.
        """
        key = "synop_conv" if layer.shared_weights and "synop_conv" in self.chip.prices else "synop"
        self.compute(layer, "synaptic operations", operations, "accumulate" if self.chip.arithmetic else key)
        self.access(layer, "weight reads", operations, layer.weights, self.weight_bits)
        self.access(layer, "state reads", operations, layer.neurons, self.state_bits)
        self.access(layer, "state writes", operations, layer.neurons, self.state_bits)
        self._addresses(layer, operations)

    def preset(self, layer: LayerCounts, words: int) -> None:
        """Charge the reset before a sample, which sets potentials to the biases and slopes to zero."""
        if layer.biases:
            self.access(layer, "weight reads", layer.neurons, layer.biases, self.state_bits)
        self.access(layer, "state writes", layer.neurons * words, layer.neurons * words, self.state_bits)

    def multiplications(self, layer: LayerCounts, macs: float, runs: float = 1) -> None:
        """Charge a layer with real-valued inputs, without reuse: each product reads its weight and its input.

        Sums stay in registers. A fully connected layer reads each input only once. The layer runs `runs` times.

        Source: Lemaire et al., ICONIP 2022, Eq. 3–6, 11–12.
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
        """Charge spikes that leave a layer, for each of the communication prices that the chip has."""
        prices, hops = self.chip.prices, self.options.hops_per_spike
        if "spike_out" in prices:
            self.charge(layer, "spikes out", "communication", spikes, "spike_out")
        if "message" in prices:
            self.charge(layer, "messages", "communication", delivered, "message")
        if "hop" in prices:
            note = "" if hops is not None else "hops depend on the placement of neurons: give hops_per_spike"
            self.charge(layer, "hops", "communication", None if hops is None else delivered * hops, "hop", note)

    def _nominal(self, key: str) -> float | None:
        amount = self.chip.prices[key].amount if key in self.chip.prices else None
        return None if amount is None else amount.nominal

    def _static_power(self, latency_us: float | None, remedy: str) -> None:
        """Add leakage and idle power unless other prices include them; `remedy` is the option that sets the latency."""
        prices, clock_mhz = self.chip.prices, self.options.clock_mhz
        note = "" if latency_us is not None else f"the latency is not known: give {remedy}"
        if "leakage_power" in prices or "idle_power" not in prices:
            self.charge("chip", "leakage", "static", latency_us, "leakage_power", note)
        idle = prices.get("idle_power")
        if idle is None or idle.amount is None or self.chip.holds("idle_power"):
            return
        if clock_mhz is None:
            clock_mhz = self._nominal("clock")
        if clock_mhz is None:
            price, note = None, note or "the clock is not known: give clock_mhz"
        else:
            power, about = idle.amount.scaled(clock_mhz), f"{idle} at {clock_mhz:g} MHz"
            ends = (power.nominal, power.low, power.high)
            price = Price(*ends, unit="µW", status=idle.status, source=idle.source, note=about)
        self._terms.append(Term("chip", "idle power", "static", latency_us, price, "idle_power", note))

    def estimate(
        self, network: str, implementation: str, assumptions: Sequence[str], *, steps: int | None = None
    ) -> Estimate:
        """The estimate: all terms, static power over so many steps, assumptions, and where the network does not fit."""
        latency_us = self.options.latency_us
        if latency_us is None and steps is not None:
            step_us = self._nominal("step_time") if self.options.step_us is None else self.options.step_us
            latency_us = None if step_us is None else step_us * steps
        self._static_power(latency_us, "latency_us" if steps is None else "step_us")
        chip, total = self.chip, self.counts.total()
        lines = [*assumptions, *([] if latency_us is None else [f"latency {latency_us:,.4g} µs"])]
        lines.append(f"{chip.name}: {chip.description}; a synaptic operation is priced as {chip.synop_scope}")
        if chip.holds("memory"):
            lines.append("a synaptic operation's price includes memory traffic: compute alone is unknown")
        elif chip.memory is not None:
            packing = "numbers packed into words" if chip.memory.packed else "one access a number"
            bits = f"{self.weight_bits}-bit weights, {self.state_bits}-bit states"
            lines.append(f"memory of each layer: {bits}, {packing}")
        own = self.counts.weight_bits
        if own not in (None, self.weight_bits):
            lines.append(f"priced as {self.weight_bits}-bit weights, although the network's have {own} bits")
        bits = self.options.weight_bits or own or self.weight_bits
        warnings = chip.exceeded(total["neurons"], total["synapses"], bits)
        for layer, size in self._largest.items():
            assert chip.memory is not None
            largest = f"the largest memory that {chip.name} prices ({chip.memory.largest_bytes / 2**20:g} MB)"
            warnings.append(f"{layer}: {size / 2**20:,.1f} MB exceed {largest}")
        return Estimate(
            network=network,
            implementation=implementation,
            chip=chip,
            samples=self.counts.samples,
            terms=tuple(self._terms),
            assumptions=(*lines, *chip.notes),
            warnings=tuple(warnings),
            latency_us=latency_us,
        )
