"""Energy of trained networks on every chip that has prices, compute only beside memory included.

    python bench/energy.py bundled:cnn1-mnist --random-vgg16 DATA
    python bench/energy.py runs/mnist

Each network runs on its test images (the first ones), is simulated in integers, and its counts are priced. VGG16 has
random weights unless you give a trained run: then about half of its neurons fire, more than after training.
Energies are those of an image; a term without a public price is in no sum and named.
"""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import tyro
from _record import ROOT, environment, write
from rich.console import Console
from torch import nn

from ttfs_triton.data.images import load_images
from ttfs_triton.evaluation import LoadError, load_network, load_test_images
from ttfs_triton.hardware import Range, RunOptions, available_chips, dense_ann, estimate, simulate
from ttfs_triton.nn import vgg16
from ttfs_triton.report import print_chips
from ttfs_triton.scoring.batches import EvaluationBatches


@dataclasses.dataclass
class Options:
    """Price networks on all chips."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Trained networks: folders of runs, or bundled:NAME."""
    random_vgg16: Path | None = None
    """Local folder of CIFAR-10: also VGG16 with random weights on it."""
    data_dir: tuple[Path, ...] = ()
    """Local folders of the runs' data sets, in their order. Default: as the runs were trained."""
    samples: int = 500
    """Test images of each network."""
    steps: int = 32
    weight_bits: int = 8
    threads: int | None = None
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.data_dir and len(options.data_dir) != len(options.runs):
        sys.exit(f"energy: --data-dir must name one folder a run; got {len(options.data_dir)}.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        found = list(networks(options))
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"energy: {error}")
    rows = [row for name, network, batches in found for row in price(options, name, network, batches)]
    about = environment(torch.device("cpu"))
    about |= {"samples": options.samples, "steps": options.steps, "weight_bits": options.weight_bits}
    for path in write(options.output, "energy", rows, about):
        print(f"written: {path}")


def networks(options: Options) -> Iterable[tuple[str, nn.Module, EvaluationBatches]]:
    """Name, network, images."""
    for number, run in enumerate(options.runs):
        loaded = load_network(run)
        folder = options.data_dir[number] if options.data_dir else None
        data = load_test_images(loaded, data_dir=folder, max_samples=options.samples)
        yield f"{loaded.files.name}, trained", loaded.network, EvaluationBatches(data, None, 100)
    if options.random_vgg16 is not None:
        torch.manual_seed(0)
        data = load_images(None, options.random_vgg16, split="test", max_samples=min(options.samples, 100))
        yield "VGG16, random weights", vgg16().eval(), EvaluationBatches(data, None, 20)


def price(options: Options, name: str, network: nn.Module, batches: EvaluationBatches) -> list[dict[str, Any]]:
    """Rows of one network, a chip each."""
    simulated = simulate(network, batches, steps=options.steps, weight_bits=options.weight_bits)
    run = RunOptions(
        steps=options.steps,
        gating=True,
        activity=simulated.activity,
    )
    estimates = [estimate(simulated.counts, chip, run, network=name) for chip in available_chips()]
    print_chips(estimates, Console(width=120))
    rows = []
    for found in estimates:
        ann = dense_ann(simulated.counts, found.chip, options=run).total
        rows.append(
            {
                "network": name,
                "images": simulated.samples,
                "sparsity": round(simulated.counts.sparsity, 4),
                "synaptic_operations": round(simulated.counts.total()["synaptic_operations"] / simulated.samples),
                "chip": found.chip.name,
                "compute_only_nj": nanojoules(found.compute_only),
                "memory_included_nj": nanojoules(found.memory_included),
                "total_nj": nanojoules(found.total),
                "total_low_nj": "" if found.total is None else round(found.total.low / 1e3, 3),
                "total_high_nj": "" if found.total is None else round(found.total.high / 1e3, 3),
                "dense_ann_total_nj": nanojoules(ann),
                "status": found.status or "",
                "unpriced": "; ".join(sorted({term.name for term in found.unpriced})),
                "warnings": "; ".join(found.warnings),
            }
        )
    return rows


def nanojoules(energy: Range | None) -> float | str:
    return "" if energy is None else round(energy.nominal / 1e3, 3)


if __name__ == "__main__":
    main()
