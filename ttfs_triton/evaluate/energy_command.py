"""The command `ttfs energy`: counts and energy of another library's rate-coded network, beside a TTFS network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from rich.text import Text

from ttfs_triton.chip import simulate, simulated_run
from ttfs_triton.commands.energy import EnergyOptions
from ttfs_triton.data.images import load_images
from ttfs_triton.energy import Counts, Estimate, RunOptions, available_chips, estimate, load_chip
from ttfs_triton.energy.prices import energy_range
from ttfs_triton.energy.rate_coded import count_rate_coded, estimate_rate_coded
from ttfs_triton.evaluate import EvaluationBatches
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.evaluate.tables import not_in_it, operations_table
from ttfs_triton.model.own_network import build_network_of, file_and_function
from ttfs_triton.table import Table, print_whole
from ttfs_triton.wording import number, percent


class Priced(NamedTuple):
    """A network, its counts over all samples, and the energy of a sample on each chip."""

    name: str
    steps: str
    accuracy: float | None
    counts: Counts
    energy: list[Estimate]


def run(options: EnergyOptions) -> list[Priced]:
    """Count, simulate, price and print the networks of the options."""
    file_and_function(options.module)
    given = [name for name in ("network", "steps") if getattr(options, name) is not None]
    if options.ttfs is None and given:
        raise ValueError(f"energy: {given[0]} must go with ttfs; got none. Add --ttfs RUN, or leave it out.")
    if options.ttfs is None and options.dataset is None and options.data_dir is None:
        raise ValueError("energy: images must be named; got none. Add --data-dir or --dataset.")
    every = [each for name in options.chip for each in (available_chips() if name == "all" else [name])]
    chips = [load_chip(name) for name in dict.fromkeys(every)]
    loaded = None if options.ttfs is None else load_network(options.ttfs, options.network)
    where: dict[str, Any] = {"dataset": options.dataset, "data_dir": options.data_dir, "progress": True}
    where["max_samples"] = options.max_test_samples
    data = load_images(**where, split="test") if loaded is None else load_test_images(loaded, **where)
    sizes: dict[str, Any] = {"in_channels": data.shape[1], "image_size": data.shape[2:]}
    module = build_network_of(options.module, **sizes, classes=len(data.class_names))
    batches = EvaluationBatches(data, None, options.batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    name, found = f"{options.library}, rate-coded", count_rate_coded(module.to(device), batches, options.library)
    energies = [estimate_rate_coded(found, chip, network=name, step_us=options.step_us) for chip in chips]
    networks = [Priced(name, f"{found.steps}", found.correct / found.counts.samples, found.counts, energies)]
    if loaded is not None:
        name, grid = loaded.files.name, loaded.network.graph.grid
        steps = options.steps or (32 if grid is None else grid.time_steps)
        simulated = simulate(loaded.network.to(device), batches, steps=steps)
        own = simulated_run(simulated, RunOptions(steps=steps, step_us=options.step_us))
        energies = [estimate(own.counts, chip, own.options, network=name) for chip in chips]
        networks.append(Priced(name, f"{steps} a window", simulated.accuracy, own.counts, energies))
    for each in networks:
        print_whole(Text(f"\n{each.name}"), operations_table(each.counts))
    print_whole(Text(), networks_table(networks, f"Means over {len(data):,} images, {data.name}, {data.split}"))
    print("\n".join(f"- {each.name}: {each.energy[0].assumptions[0]}" for each in networks))
    return networks


def networks_table(networks: Sequence[Priced], title: str) -> Table:
    """Table with a column for each network: accuracy, counts of an image, and energies with what is not in them."""
    totals = [(each.counts.total(), each.counts.samples) for each in networks]
    names = ("spikes", "synaptic operations", "analog_macs", "dense_macs")
    counts = [(name, *(number(total[name.replace(" ", "_")] / n) for total, n in totals)) for name in names]
    rows = [("accuracy", *(percent(each.accuracy) for each in networks)), ("time steps", *(e.steps for e in networks))]
    rows += [(name.replace("_macs", " MACs"), *cells) for name, *cells in counts]
    for energies in zip(*(each.energy for each in networks), strict=True):
        rows.append((f"energy on {energies[0].chip.name}", *(energy_range(each.total) for each in energies)))
        rows.append(("  not in it", *map(not_in_it, energies)))
    return Table(title, ("an image", *(each.name for each in networks)), rows)
