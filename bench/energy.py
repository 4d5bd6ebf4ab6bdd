"""Energy of trained networks and of their dense ANNs on every chip, with memory and of arithmetic alone.

    python bench/energy.py bundled:cnn1-mnist bundled:vgg9-cifar10 --data-dir MNIST CIFAR10

Each network is simulated in integers on its first test images, at every number of steps, and priced. A row is a network
on a chip; rows of equal arithmetic stand together, the chip that prices memory before the one that does not. Energies
are per image, at nominal prices; terms without a public price are named and left out of all sums. A ratio is the
network's energy divided by its dense ANN's energy at the same prices and widths: at --steps, and the smallest and
largest ratio from 4 to 128 steps per window.
"""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _bench as bench
import torch
import tyro

from ttfs_triton.chip import Simulation, simulate_at, simulated_run
from ttfs_triton.energy import Chip, Range, available_chips, dense_ann, estimate, load_chip, verdict
from ttfs_triton.energy.compare import STEPS
from ttfs_triton.evaluate.batches import EvaluationBatches
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.model import LoadError, TTFSModel


@dataclasses.dataclass
class Options:
    """Price networks on all chips."""

    networks: tyro.conf.Positional[tuple[str, ...]]  # folders of runs, or bundled:NAME
    data_dir: tuple[Path, ...] = ()
    """Local folders of the networks' data sets, in the networks' order. Default: as in training."""
    samples: int = 500  # number of test images for each network
    steps: int = 32  # time steps per window; a network on a grid uses its own
    weight_bits: int = 8  # weight bits in the simulation; a network on a grid uses its own
    output: Path = bench.RESULTS  # folder of the CSV file


class Tested(NamedTuple):
    """A trained network, the name of its run, and the first test images with labels."""

    name: str
    network: TTFSModel
    batches: EvaluationBatches

    def simulation(self, steps: int, weight_bits: int) -> dict[str, Any]:
        """Steps and bits as arguments of `simulate`; none for a network on a grid, which has its own."""
        return {"steps": steps, "weight_bits": weight_bits} if self.network.graph.grid is None else {}


def load_tested(command: str, runs: Sequence[str], data_dirs: Sequence[Path], samples: int | None) -> list[Tested]:
    """Networks and their test images, in the order of `runs`; exits with a message if one cannot be loaded."""
    if data_dirs and len(data_dirs) != len(runs):
        sys.exit(f"{command}: --data-dir must name one folder per network; got {len(data_dirs)} for {len(runs)}.")
    networks = []
    try:
        for run, folder in zip(runs, data_dirs or [None] * len(runs), strict=True):
            loaded = load_network(run)
            data = load_test_images(loaded, data_dir=folder, max_samples=samples)
            networks.append(Tested(loaded.files.name, loaded.network, EvaluationBatches(data, None, 100)))
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"{command}: {error}")
    return networks


def run(options: Options) -> None:
    """Price the networks, print the main columns and write the rows."""
    networks = load_tested("energy", options.networks, options.data_dir, options.samples)
    rows = [row for tested in networks for row in price(options, tested)]
    shown = ("network", "chip", "memory_included_nj", "ratio_with_memory", "ratio_arithmetic", "verdict")
    bench.print_table(shown, [[row[key] for key in shown] for row in rows], width=200, left=("chip", "verdict"))
    bench.write(options.output, "energy", rows, bench.environment(torch.device("cpu")) | {"samples": options.samples})


def price(options: Options, tested: Tested) -> list[bench.Row]:
    """Rows of one network, one per chip."""
    grid = tested.network.graph.grid
    steps = (options.steps, *STEPS) if grid is None else (grid.time_steps,)
    bits = options.weight_bits if grid is None else "network"
    simulations = simulate_at(tested.network, tested.batches, steps, weight_bits=bits)
    (counts, run), *others = map(simulated_run, simulations)
    about = about_simulation(tested, simulations[0])
    about["synaptic_operations"] = round(counts.total()["synaptic_operations"] / simulations[0].samples)
    rows = []
    for chip in sorted(map(load_chip, available_chips()), key=place):
        ours, ann = estimate(counts, chip, run), dense_ann(counts, chip, options=run)
        decided = verdict(counts, chip, run, others)
        row = {**about, "chip": chip.name, "memory": memory(chip)}
        for measure, name in (("memory_included", "with_memory"), ("compute_only", "arithmetic")):
            row[f"{measure}_nj"] = nanojoules(getattr(ours, measure))
            row[f"dense_ann_{measure}_nj"] = nanojoules(getattr(ann, measure))
            row |= ratios(name, getattr(decided, name), decided.asked)
        row |= {"verdict": decided.sentences()[-1], "total_nj": nanojoules(ours.total)}
        row |= {f"total_{end}_nj": nanojoules(ours.total, end) for end in ("low", "high")}
        row |= {"status": ours.status or "", "unpriced": "; ".join(sorted({term.name for term in ours.unpriced}))}
        rows.append(row | {"warnings": "; ".join(ours.warnings)})
    return rows


def about_simulation(tested: Tested, simulation: Simulation) -> bench.Row:
    """Columns of a row that say what was simulated."""
    return {
        "network": tested.name,
        "images": simulation.samples,
        "accuracy": simulation.accuracy,
        "steps": simulation.settings.steps,
        "weight_bits": simulation.settings.weight_bits,
        "sparsity": round(simulation.counts.sparsity, 4),
    }


def place(chip: Chip) -> tuple[bool, str, bool, str]:
    """Sort key: chips of arithmetic by precision, with memory before without; then chips of synaptic operations."""
    return not chip.arithmetic, chip.name.partition(":")[2], chip.memory is None, chip.name


def memory(chip: Chip) -> str:
    if chip.holds("memory"):
        return "inside a synaptic operation"
    return "no price" if chip.memory is None else "priced"


def ratios(name: str, at_steps: tuple[float, ...], asked: int) -> dict[str, float | str]:
    """Columns of ratios: at --steps, and the smallest and largest over all steps; empty if there are no ratios."""
    least_most = (at_steps[asked], min(at_steps), max(at_steps)) if at_steps else ()
    values = [round(value, 4) for value in least_most] or ["", "", ""]
    return dict(zip((f"ratio_{name}", f"ratio_{name}_least", f"ratio_{name}_most"), values, strict=True))


def nanojoules(energy: Range | None, which: str = "nominal") -> float | str:
    return "" if energy is None else round(getattr(energy, which) / 1e3, 3)


main = partial(bench.run_script, Options, run, __doc__)

if __name__ == "__main__":
    main()
