"""Accuracy against cost for bundled networks, by `ttfs sweep`.

    python bench/frontier.py mnist --data-dir MNIST --cpu
    python bench/frontier.py cifar10 --data-dir CIFAR10 --cpu

Settings are fixed in frontier.yaml, so that the table can be reproduced: targets of activity, grids with training and
without, a target on a grid, jitter with training and without, deadlines. The points' runs are in --folder, where the
same command resumes them. The table goes to bench/results/frontier-NAME.csv.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import _bench as bench
import torch
import tyro
import yaml

from ttfs_triton.sweep import FrontierOptions
from ttfs_triton.sweep.command import run
from ttfs_triton.train import Interrupted


@dataclasses.dataclass
class Options:
    """Sweep with fixed settings."""

    name: tyro.conf.Positional[Literal["mnist", "cifar10"]]  # name of the settings in frontier.yaml
    data_dir: Path | None = None  # local folder of the data set; default: the Hub
    folder: Path | None = None  # folder of the sweep; default: runs/frontier-NAME
    cpu: bool = False  # use the CPU even if there is a GPU
    output: Path = bench.RESULTS  # folder of the CSV file


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    about = bench.environment(torch.device("cpu" if options.cpu or not torch.cuda.is_available() else "cuda"))
    try:
        rows = run(settings(options))
    except (ValueError, RuntimeError, OSError, Interrupted) as error:
        sys.exit(f"frontier: {error}")
    bench.write(options.output, f"frontier-{options.name}", rows, about)


def settings(options: Options) -> FrontierOptions:
    """The options of the sweep, from frontier.yaml and the command line."""
    folder = Path(__file__).parent
    values: dict[str, Any] = yaml.safe_load((folder / "frontier.yaml").read_text(encoding="utf-8"))[options.name]
    values |= {"config": folder / f"frontier-{options.name}.yaml", "data_dir": options.data_dir, "cpu": options.cpu}
    values["output_dir"] = options.folder or bench.ROOT / "runs" / f"frontier-{options.name}"
    return FrontierOptions(**values)


if __name__ == "__main__":
    main()
