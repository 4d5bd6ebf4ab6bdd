"""The energy model of Lemaire et al., written down again: what it counts, and what ours counts otherwise.

Lemaire, Cordone, Castagnetti, Novac, Courtois and Miramond, "An Analytical Estimation of Spiking Neural Networks Energy
Efficiency", ICONIP 2022, LNCS 13623, pages 574–587, doi:10.1007/978-3-031-30105-6_48 (arXiv 2210.13107). Equation
numbers are theirs. Eq. 2 counts the inputs of a fully connected layer once too often; the authors' own program (Qualia)
and SpikingJelly do not, nor does this. Arithmetic is int32, and each number read or written is an access of its own.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

ADD_PJ, MULTIPLY_PJ = 0.1, 3.1  # int32, Horowitz, ISSCC 2014
MEMORY = ((0.0, 0.0), (8 * 1024.0, 10.0), (32 * 1024.0, 20.0), (1024 * 1024.0, 100.0))  # bytes, pJ an access
QUEUE = 1000  # messages that the queues before and behind a layer hold, as in the paper's experiments
WORD = 4  # bytes of a number

COMPONENTS: tuple[str, ...] = ("operations", "addressing", "weights", "states", "inputs_outputs")


@dataclass(frozen=True)
class Layer:
    """A layer and its spikes in one sample, on average.

    Attributes:
        name: of the layer.
        convolution: or fully connected.
        hidden: or a readout.
        neurons, inputs, weights, biases: of the layer.
        reach: synapses behind an input away from borders: kernel area × output channels, or outputs.
        taps: synapses before a neuron away from borders: weights of an output channel, or inputs.
        kernel_channels: kernel area × output channels; of a fully connected layer 0.
        spikes_in, spikes_out: that arrive, and that its neurons fire.
        operations: spikes times the synapses that are there.
        synapses: that are there.
    """

    name: str
    convolution: bool
    hidden: bool
    neurons: int
    inputs: int
    weights: int
    biases: int
    reach: int
    taps: int
    kernel_channels: int
    spikes_in: float
    spikes_out: float
    operations: float
    synapses: int


@dataclass(frozen=True)
class Reading:
    """What of the paper's model has been replaced by ours.

    Attributes:
        exact_borders: operations are those at synapses that are there, not the kernel's area for each spike.
        small_memories: a memory below 8 kB costs what one of 8 kB does; theirs goes to zero with its size.
        free_biases: a bias lies in a register, not in the weights' memory, and is not read.
        no_queues: spikes wait in no memory.
        compares: a neuron compares in each step, and what resets is free; an ANN compares, and its bias is added free.
        plain_addresses: an address costs one addition an access; theirs has two multiplications a spike, and an ANN's
            has kernels without their input channels.
    """

    exact_borders: bool = False
    small_memories: bool = False
    free_biases: bool = False
    no_queues: bool = False
    compares: bool = False
    plain_addresses: bool = False


STEPS = {
    "exact_borders": "fewer synapses at borders",
    "small_memories": "memories below 8 kB cost what 8 kB do",
    "free_biases": "biases in registers",
    "no_queues": "no queues of spikes",
    "compares": "comparisons charged, resets and additions of an ANN's biases free",
    "plain_addresses": "an addition an address",
}
"""From their model to ours, in this order."""

DENSE_STEPS = {name: words for name, words in STEPS.items() if name not in ("free_biases", "no_queues")} | {
    "free_biases": "biases beside the weights' memory"
}


def readings(steps: Sequence[str]) -> list[Reading]:
    """Theirs, then with one more replaced each time."""
    found = [Reading()]
    for name in steps:
        found.append(dataclasses.replace(found[-1], **{name: True}))
    return found


def spiking(layers: Sequence[Layer], steps: int, reading: Reading) -> dict[str, float]:
    """pJ a sample of integrate-and-fire neurons that are awake in all of `steps`, by `COMPONENTS`."""
    total = dict.fromkeys(COMPONENTS, 0.0)
    for layer in layers:
        events = layer.operations if reading.exact_borders else layer.spikes_in * layer.reach
        updates = steps * layer.neurons
        biases = 0 if reading.free_biases else layer.biases
        added = updates if layer.biases else 0  # Eq. 1, 2
        last = updates if reading.compares else layer.spikes_out
        total["operations"] += ADD_PJ * (events + added + last)
        total["weights"] += (events + updates * bool(biases)) * access(layer.weights + biases, reading)  # Eq. 7, 8
        total["states"] += 2 * (events + updates) * access(layer.neurons, reading)  # Eq. 9, 10, 14, 15
        if not reading.no_queues:
            total["inputs_outputs"] += (layer.spikes_in + layer.spikes_out) * access(QUEUE, reading)  # Eq. 5, 13
        multiplied = 2 * layer.spikes_in if layer.convolution and not reading.plain_addresses else 0.0  # Eq. 16, 17
        total["addressing"] += events * ADD_PJ + multiplied * (ADD_PJ + MULTIPLY_PJ)
    return total


def dense(layers: Sequence[Layer], reading: Reading) -> dict[str, float]:
    """pJ a sample of the ANN that computes every product, by `COMPONENTS`."""
    total = dict.fromkeys(COMPONENTS, 0.0)
    for layer in layers:
        products = layer.synapses if reading.exact_borders else layer.neurons * layer.taps
        biases = layer.neurons if layer.biases else 0
        added = (layer.neurons if layer.hidden else 0) if reading.compares else biases
        total["operations"] += products * (ADD_PJ + MULTIPLY_PJ) + added * ADD_PJ  # Eq. 1, 2
        capacity = layer.weights + (0 if reading.free_biases else layer.biases)
        total["weights"] += (products + biases) * access(capacity, reading)  # Eq. 6
        read = products if layer.convolution else layer.inputs  # Eq. 3, 4
        total["inputs_outputs"] += read * access(layer.inputs, reading)
        total["inputs_outputs"] += layer.neurons * access(layer.neurons, reading)  # Eq. 11, 12
        walked = layer.weights if reading.plain_addresses else layer.kernel_channels
        total["addressing"] += (layer.inputs + layer.neurons + walked) * ADD_PJ  # Eq. 16, 17
    return total


def access(numbers: float, reading: Reading) -> float:
    """pJ to read or write a number in a memory of so many."""
    size = min(numbers * WORD, MEMORY[-1][0])
    if reading.small_memories:
        size = max(size, MEMORY[1][0])
    for (small, low), (large, high) in pairwise(MEMORY):
        if size <= large:
            return low + (high - low) * (size - small) / (large - small)
    raise AssertionError
