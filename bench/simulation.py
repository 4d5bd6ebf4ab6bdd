"""How many time steps and weight bits a trained network needs, and how fast the simulator is.

    python bench/simulation.py                         # CNN1 on MNIST, which comes with the package
    python bench/simulation.py runs/mnist

Simulates a network on the whole test set at every pair of time steps and weight bits, beside the closed form, and times
the simulator on the first images. Energy is priced on --chip. The default, ANP-I, is the chip of the neuron's authors;
only its synaptic operations have a price.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import _bench as bench
import torch
import tyro
from accelerate import Accelerator
from rich.console import Console

from ttfs_triton.evaluation import LoadError, load_network, load_test_images
from ttfs_triton.hardware import Simulation, estimate, simulate, simulated_run, sweep
from ttfs_triton.report import draw_sweep, sweep_details
from ttfs_triton.scoring.batches import EvaluationBatches
from ttfs_triton.scoring.evaluate import evaluate


@dataclasses.dataclass
class Options:
    """Sweep over time steps and weight bits."""

    run: tyro.conf.Positional[str] = "bundled:cnn1-mnist"  # a run's folder, its weights, or bundled:NAME
    data_dir: Path | None = None
    """Local folder of the data set. Default: as in training."""
    steps: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    weight_bits: tuple[int, ...] = (2, 3, 4, 6, 8, 16)
    chip: str = "anp_i"
    max_test_samples: int | None = None
    timed_images: int = 500
    batch_size: int = 250
    output: Path = bench.RESULTS
    name: str = "mnist"
    """Name of the files: simulation-NAME.csv and simulation-NAME.svg."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        loaded = load_network(options.run)
        data = load_test_images(loaded, data_dir=options.data_dir, max_samples=options.max_test_samples)
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"simulation: {error}")
    network = loaded.network
    batches = EvaluationBatches(data, None, options.batch_size)
    about = bench.environment(torch.device("cpu"))
    closed = evaluate(network, batches, Accelerator(cpu=True))
    print(f"closed form: {closed.accuracy:.2%} of {closed.images:,} images, {closed.first_spike_accuracy:.2%} by spike")

    def price(found: Simulation) -> float:
        counts, run = simulated_run(found)
        total = estimate(counts, options.chip, run).total
        return float("nan") if total is None else total.nominal

    grid: Any = {"steps": options.steps, "weight_bits": options.weight_bits}
    found = sweep(network, batches, price=price, chip=options.chip, **grid)
    Console().print(sweep_details(found))
    rows: list[dict[str, Any]] = [dataclasses.asdict(row) for row in found.rows]
    for row in rows:
        row["points_lost"] = round(100 * (closed.accuracy - row["accuracy"]), 3)
    throughput = images_per_second(options, network, data)
    print(f"{throughput:,.0f} images / s at 64 steps, 8 bits")
    about |= {
        "network": network.config.to_dict(),
        "chip": options.chip,
        "images": closed.images,
        "closed_form": {"accuracy": closed.accuracy, "first_spike_accuracy": closed.first_spike_accuracy},
        "images_per_second": throughput,
    }
    name = f"simulation-{options.name}"
    bench.write(options.output, name, rows, about)
    print(f"written: {draw_sweep(found, options.output / f'{name}.svg')}")


def images_per_second(options: Options, network: torch.nn.Module, data: Any) -> float:
    """Images per second of the simulator, after one batch of warm-up."""
    batches = EvaluationBatches(data, torch.arange(min(options.timed_images, len(data))), options.batch_size)
    simulate(network, [batches[0]])
    start = time.perf_counter()
    simulate(network, batches)
    return round(len(batches.indices) / (time.perf_counter() - start), 1)


if __name__ == "__main__":
    main()
