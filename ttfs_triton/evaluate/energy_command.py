"""The command `ttfs energy`: counts and energy of another library's rate-coded network, beside a TTFS network's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from rich.text import Text

from ttfs_triton.chip import simulate, simulated_run
from ttfs_triton.commands import EnergyOptions
from ttfs_triton.data.images import load_images
from ttfs_triton.energy import Counts, Estimate, RunOptions, count_rate_coded, estimate, estimate_rate_coded
from ttfs_triton.energy.chip import energy_range, load_chips
from ttfs_triton.evaluate import EvaluationBatches
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.evaluate.tables import not_in_it, operations_table
from ttfs_triton.model.own_network import build_network_of, file_and_function
from ttfs_triton.table import Table, print_whole
from ttfs_triton.wording import number, percent


def run(options: EnergyOptions) -> None:
    """Count, simulate and price the networks that the options name, and print tables."""
    file_and_function(options.module, "module")
    if options.ttfs is None and options.dataset is None and options.data_dir is None:
        raise ValueError("energy: images must be named; got none. Add --data-dir or --dataset.")
    chips, loaded = load_chips(options.chip), options.ttfs and load_network(options.ttfs, options.network)
    load = partial(load_test_images, loaded) if loaded else partial(load_images, split="test")
    data = load(**options.images_named(), max_samples=options.max_test_samples, progress=True)
    sizes: Any = {"in_channels": data.shape[1], "image_size": data.shape[2:], "classes": len(data.class_names)}
    module = build_network_of(options.module, **sizes)
    batches = EvaluationBatches(data, None, options.batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    name, counted = f"{options.library}, rate-coded", count_rate_coded(module.to(device), batches, options.library)
    energies = [estimate_rate_coded(counted, chip, network=name, step_us=options.step_us) for chip in chips]
    columns = {name: _column(f"{counted.steps}", counted.correct / counted.counts.samples, counted.counts, energies)}
    if loaded:
        name, grid = loaded.files.name, loaded.network.graph.grid
        steps = options.steps or (32 if grid is None else grid.time_steps)
        simulated = simulate(loaded.network.to(device), batches, steps=steps)
        ttfs = simulated_run(simulated, RunOptions(steps=steps, step_us=options.step_us))
        energies = [estimate(ttfs.counts, chip, ttfs.options, network=name) for chip in chips]
        columns[name] = _column(f"{steps} a window", simulated.accuracy, ttfs.counts, energies)
    rows = [(row, *(cells[row] for cells in columns.values())) for row in columns[name]]
    title = f"Means over {len(data):,} images, {data.name}, {data.split}"
    print_whole(Text(), Table(title, ("an image", *columns), rows))


def _column(steps: str, accuracy: float | None, counts: Counts, energies: Sequence[Estimate]) -> dict[str, str]:
    """Print a network's operations by layer; returns its column of the last table: accuracy, mean counts, energies."""
    print_whole(
        Text(f"\n{energies[0].network}"),
        operations_table(counts, f"time steps: {steps}"),
        Text(f"- {energies[0].assumptions[0]}"),
    )
    cells = {"accuracy": percent(accuracy), "time steps": steps}
    for key in ("spikes", "synaptic_operations", "analog_macs", "dense_macs"):
        cells[key.replace("_macs", " MACs").replace("_", " ")] = number(counts.total()[key] / counts.samples)
    for priced in energies:
        cells[f"energy on {priced.chip.name}"] = energy_range(priced.total)
        cells[f"  not in it, {priced.chip.name}"] = not_in_it(priced)
    return cells
