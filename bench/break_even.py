"""Energies of networks and of their dense ANNs, on chips that price memory, and the points at which both are equal.

    python bench/break_even.py bundled:cnn1-mnist bundled:vgg9-cifar10 --data-dir MNIST CIFAR10 --ann-accuracy 1 0.8496

A row is a network at a number of steps on a chip that prices the dense ANN with memory and without, at the same widths
of weights and states. The verdict compares with this ANN alone. Other columns compare with harder baselines: an ANN
whose activations are as narrow as its weights, an ANN that skips zeros, memories that hold several numbers per word,
and an ANN that reads a weight or input once for several products (`reuse_at_par`: the number of products at which this
ANN costs as much as the network). `of_updates` and `of_operations` split `ratio`: the energy of neurons over steps and
the energy of synaptic operations, both divided by the dense ANN's energy. The second file has the layers: the share of
inputs that spike, and the share at which the layer costs as much as in the dense ANN.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _bench as bench
import torch
import tyro

from ttfs_triton.chip import Simulation, simulate, simulated_run
from ttfs_triton.energy import (
    Chip,
    Counts,
    Estimate,
    InputCounts,
    RunOptions,
    available_chips,
    break_even_firing_share,
    dense_ann,
    estimate,
    fair_chip,
    load_chip,
    verdict,
    zero_skipping_ann,
)
from ttfs_triton.evaluate.batches import EvaluationBatches
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.model import LoadError, TTFSModel

READS = ("weight reads", "input reads")
SHOWN = (
    *("network", "accuracy", "sparsity", "steps", "chip", "ratio", "of_updates", "of_operations", "cheaper"),
    *("steps_at_par", "sparsity_at_par", "ratio_narrow_ann", "ratio_zero_skipping", "ratio_packed", "reuse_at_par"),
)


@dataclasses.dataclass
class Options:
    """Find where networks cost as much as their dense ANNs."""

    networks: tyro.conf.Positional[tuple[str, ...]]  # folders of runs, or bundled:NAME
    data_dir: tuple[Path, ...] = ()
    """Local folders of the networks' data sets, in the networks' order. Default: as in training."""
    ann_accuracy: tuple[float, ...] = ()  # accuracies of the networks' ANNs; default 1, which no ANN exceeds
    steps: tuple[int, ...] = (4, 8, 16, 32, 64)  # time steps per window; a network on a grid uses the grid's
    weight_bits: int = 8  # bits of a weight in the simulation; a network on a grid uses the grid's
    samples: int | None = None  # number of test images per network; default: all
    name: str = "break_even"  # name of the files: NAME.csv and NAME-layers.csv
    output: Path = bench.RESULTS  # folder of the CSV files


class Tested(NamedTuple):
    """A trained network, the name of its run, and its test images with labels."""

    name: str
    network: TTFSModel
    batches: EvaluationBatches

    def simulation(self, steps: int, weight_bits: int) -> dict[str, Any]:
        """Steps and bits as arguments of `simulate`; none for a network on a grid, which takes the grid's."""
        return {"steps": steps, "weight_bits": weight_bits} if self.network.graph.grid is None else {}


def load_tested(runs: Sequence[str], data_dirs: Sequence[Path], samples: int | None) -> list[Tested]:
    """Networks and their test images, in the order of `runs`; exits with a message if one cannot be loaded."""
    if data_dirs and len(data_dirs) != len(runs):
        sys.exit(f"break_even: --data-dir must name one folder per network; got {len(data_dirs)} for {len(runs)}.")
    networks = []
    try:
        for run, folder in zip(runs, data_dirs or [None] * len(runs), strict=True):
            loaded = load_network(run)
            data = load_test_images(loaded, data_dir=folder, max_samples=samples)
            networks.append(Tested(loaded.files.name, loaded.network, EvaluationBatches(data, None, 100)))
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"break_even: {error}")
    return networks


def run(options: Options) -> None:
    """Find the points, print the main columns and write the rows of networks and of layers."""
    anns = options.ann_accuracy or (1.0,) * len(options.networks)
    if len(anns) != len(options.networks):
        sys.exit(f"break_even: --ann-accuracy must have one value per network; got {len(anns)}.")
    networks = load_tested(options.networks, options.data_dir, options.samples)
    rows, layers = [], []
    for tested, ann in zip(networks, anns, strict=True):
        grid = tested.network.graph.grid
        for steps in options.steps if grid is None else (grid.time_steps,):
            simulation = simulate(tested.network, tested.batches, **tested.simulation(steps, options.weight_bits))
            for chip in fair_chips(simulation.counts):
                rows.append(network_row(tested, simulation, chip, ann))
                layers += layer_rows(tested, simulation, chip)
    bench.print_table(SHOWN, [[row[key] for key in SHOWN] for row in rows], width=200, left=("chip",))
    about = bench.environment(torch.device("cpu")) | {"samples": options.samples or "all"}
    bench.write(options.output, options.name, rows, about)
    bench.write(options.output, f"{options.name}-layers", layers, about)


def fair_chips(counts: Counts) -> list[Chip]:
    """Chips of the package that price memory separately, and that price the dense ANN with memory and without."""
    run, chips = RunOptions(steps=1), map(load_chip, available_chips())
    return [chip for chip in chips if chip.memory and fair_chip(counts, [chip], run) == chip]


def network_row(tested: Tested, simulation: Simulation, chip: Chip, ann: float) -> bench.Row:
    """The row of one network at a number of steps on one chip."""
    run, counts = simulated_run(simulation).options, simulation.counts
    dense, decided = dense_ann(counts, chip, options=run), verdict(counts, chip, run, ())
    mine, theirs = memory_included(estimate(counts, chip, run)), memory_included(dense)
    updates = memory_included(without_operations(simulation, chip))
    narrow = dense_ann(counts, chip, options=replace(run, state_bits=chip.bits))
    assert chip.memory is not None
    packed = replace(chip, memory=replace(chip.memory, packed=True))
    reads = sum(term.energy.nominal for term in dense.terms if term.name in READS and term.energy is not None)
    rest = mine - (theirs - reads)
    share = break_even_firing_share(counts, chip, run).value  # at these spike times
    skipping = zero_skipping_ann(counts, chip, options=run)
    packed_ann = dense_ann(counts, packed, options=run)
    return {
        "network": tested.name,
        "images": simulation.samples,
        "accuracy": simulation.accuracy,
        "steps": simulation.settings.steps,
        "weight_bits": simulation.settings.weight_bits,
        "sparsity": round(counts.sparsity, 4),
        "ann_accuracy": ann,
        "within_a_point": (simulation.accuracy or 0) >= ann - 0.01,
        "chip": chip.name,
        "memory_included_nj": round(mine / 1e3, 3),
        "dense_ann_memory_included_nj": round(theirs / 1e3, 3),
        "ratio": round(mine / theirs, 4),
        "of_updates": round(updates / theirs, 4),
        "of_operations": round((mine - updates) / theirs, 4),
        "ratio_arithmetic": round(decided.arithmetic[decided.asked], 4),
        "cheaper": decided.cheaper,
        "steps_at_par": steps_at_par(counts, chip, theirs),
        "sparsity_at_par": rounded(share),
        "ratio_narrow_ann": round(mine / memory_included(narrow), 4),
        "ratio_zero_skipping": round(mine / memory_included(skipping), 4),
        "ratio_packed": round(memory_included(estimate(counts, packed, run)) / memory_included(packed_ann), 4),
        "reuse_at_par": rounded(reads / rest) if rest > 0 else "",
    }


def layer_rows(tested: Tested, simulation: Simulation, chip: Chip) -> list[bench.Row]:
    """Rows of the layers that read spikes, of one network at a number of steps on one chip."""
    run, counts = simulated_run(simulation).options, simulation.counts
    ours, fixed = by_layer(estimate(counts, chip, run)), by_layer(without_operations(simulation, chip))
    theirs = by_layer(dense_ann(counts, chip, options=run))
    rows = []
    for layer in counts.averages():
        if layer.kind == "analog":
            continue
        density = layer.synaptic_operations / layer.synapses
        operations = ours[layer.name] - fixed[layer.name]
        par = density * (theirs[layer.name] - fixed[layer.name]) / operations if operations else None
        rows.append(
            {
                "network": tested.name,
                "steps": simulation.settings.steps,
                "chip": chip.name,
                "layer": layer.name,
                "fan_in": round(layer.synapses / layer.neurons, 1),
                "fan_out": round(layer.synapses / layer.inputs, 1),
                "density": round(density, 4),
                "density_at_par": rounded(par) if par is None or par > 0 else "none",
                "ratio": round(ours[layer.name] / theirs[layer.name], 4),
                "share_of_dense_ann": round(theirs[layer.name] / sum(theirs.values()), 4),
            }
        )
    return rows


def without_operations(simulation: Simulation, chip: Chip) -> Estimate:
    """Energy of the network without synaptic operations: neurons over their steps, and an analog first layer."""
    counts = simulation.counts
    layers = tuple(replace(layer, synaptic_operations=0) for layer in counts.layers)
    return estimate(replace(counts, layers=layers, input=InputCounts()), chip, simulated_run(simulation).options)


def steps_at_par(counts: Counts, chip: Chip, theirs: float) -> float | str:
    """Steps per window at which the network, whose energy is linear in steps, costs as much as the ANN; or "none"."""
    one, two = (memory_included(estimate(counts, chip, RunOptions(steps=steps))) for steps in (1, 2))
    steps = 1 + (theirs - one) / (two - one)
    return round(steps, 1) if steps > 0 else "none"


def memory_included(energy: Estimate) -> float:
    """Nominal energy in pJ, memory included."""
    assert energy.memory_included is not None
    return energy.memory_included.nominal


def by_layer(estimated: Estimate) -> dict[str, float]:
    return {name: energy.nominal for name, energy in estimated.by_layer().items() if energy is not None}


def rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


main = partial(bench.run_script, Options, run, __doc__)

if __name__ == "__main__":
    main()
