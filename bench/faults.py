"""Networks on chips with faults: accuracy of runs, simulated without faults and with some.

    python bench/faults.py runs/plain runs/jitter --spike-jitter 0.05 0.1 --data-dir MNIST

Each run is simulated on all test images, once without faults and once at each level; the same seed draws the same
faults for all.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import tyro
from _record import ROOT, environment, write

from ttfs_triton.evaluation import LoadError, load_network, load_test_images
from ttfs_triton.hardware import simulate
from ttfs_triton.nn import Faults
from ttfs_triton.scoring.batches import EvaluationBatches


@dataclasses.dataclass
class Options:
    """Accuracy with faults."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Runs' folders, or others with config.json and model.safetensors."""
    spike_jitter: tuple[float, ...] = (0.1,)
    """Standard deviations of spike times, in windows."""
    data_dir: Path | None = None
    """Local folder of the data set. Default: as the runs were trained."""
    max_test_samples: int | None = None
    batch_size: int = 250
    seed: int = 0
    """Of the faults."""
    output: Path = ROOT / "bench" / "results"
    name: str = "mnist"
    """Of the files: faults-NAME.csv, .json."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        rows = [row for name in options.runs for row in rows_of(name, options)]
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"faults: {error}")
    for path in write(options.output, f"faults-{options.name}", rows, environment(torch.device("cpu"))):
        print(f"written: {path}")


def rows_of(name: str, options: Options) -> list[dict[str, Any]]:
    """A row for each level, the first without faults."""
    loaded = load_network(name)
    data = load_test_images(loaded, data_dir=options.data_dir, max_samples=options.max_test_samples)
    rows = []
    for jitter in (0.0, *options.spike_jitter):
        batches = EvaluationBatches(data, None, options.batch_size)
        found = simulate(loaded.network.network, batches, faults=Faults(spike_jitter=jitter), seed=options.seed)
        rows.append(
            {
                "network": loaded.files.name,
                "spike_jitter": jitter,
                "images": found.samples,
                "accuracy": found.accuracy,
                "spikes": sum(layer.spikes for layer in found.counts.layers if layer.kind != "readout") / found.samples,
            }
        )
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


if __name__ == "__main__":
    main()
