"""What accuracy costs: the frontier of networks that come with the package, by the sweep that users have.

    python bench/frontier.py mnist --data-dir MNIST --cpu
    python bench/frontier.py cifar10 --data-dir CIFAR10 --cpu

Settings are fixed here, so that the table can be made again: targets of activity, grids with training and without, a
target on a grid, jitter with training and without, deadlines. Points are runs in --folder, which the same command goes
on with; the table goes to bench/results/frontier-NAME.csv.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from _record import ROOT, environment, write

from ttfs_triton.frontier import FrontierOptions
from ttfs_triton.frontier.command import run
from ttfs_triton.train import Interrupted

SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {
        "runs": ("bundled:cnn1-mnist",),
        "target_sparsity": ("0.3", "0.2", "0.15", "0.1", "0.05"),
        "target_operations": ("0.25",),
        "target_energy": ("lemaire45:int8:72",),
        "points": (
            "spike_jitter=0.1",
            "time_steps=4+weight_bits=4+epochs=6+ema_decay=0.999",
            "time_steps=4+weight_bits=4+epochs=24+ema_decay=0.999",
            "time_steps=4+weight_bits=4+target_sparsity=0.1",
            "time_steps=8+weight_bits=2+epochs=6+lr=0.002+ema_decay=0.999",
        ),
        "time_steps": (4, 8),
        "weight_bits": (2, 4),
        "spike_jitter": (0.02, 0.05, 0.1),
        "deadlines": True,
        "epochs": 4,
        "config": ROOT / "bench" / "frontier-mnist.yaml",
    },
    "cifar10": {
        "runs": ("bundled:vgg9-cifar10",),
        "target_sparsity": ("0.3", "0.2", "0.1", "0.05"),
        "points": (
            "target_sparsity=0.15+epochs=12",
            "time_steps=16+weight_bits=4+epochs=2",
            "target_sparsity=0.05+epochs=12",
        ),
        "time_steps": (8, 16),
        "weight_bits": (4,),
        "deadlines": True,
        "epochs": 6,
        "config": ROOT / "bench" / "frontier-cifar10.yaml",
    },
}


@dataclasses.dataclass
class Options:
    """Sweep with fixed settings."""

    name: tyro.conf.Positional[Literal["mnist", "cifar10"]]
    """Of the settings."""
    data_dir: Path | None = None
    """Local folder of the data set. Default: the Hub."""
    folder: Path | None = None
    """Of the sweep. Default: runs/frontier-NAME."""
    cpu: bool = False
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.output.mkdir(parents=True, exist_ok=True)  # before hours of training
    about = environment(torch.device("cpu" if options.cpu or not torch.cuda.is_available() else "cuda"))
    try:
        rows = run(settings(options))
    except (ValueError, RuntimeError, OSError, Interrupted) as error:
        sys.exit(f"frontier: {error}")
    write(options.output, f"frontier-{options.name}", [row.flat() for row in rows], about)


def settings(options: Options) -> FrontierOptions:
    """The sweep."""
    folder = options.folder or ROOT / "runs" / f"frontier-{options.name}"
    return FrontierOptions(**SETTINGS[options.name], output_dir=folder, data_dir=options.data_dir, cpu=options.cpu)


if __name__ == "__main__":
    main()
