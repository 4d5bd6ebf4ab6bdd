"""Trained networks and their test images, for benches that take several."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttfs_triton.evaluation import LoadError, load_network, load_test_images
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import Grid
from ttfs_triton.scoring.batches import EvaluationBatches


@dataclass(frozen=True)
class Tested:
    """A network and what it is tested on.

    Attributes:
        name: of the run, or of the bundled network.
        network: trained, in evaluation mode.
        batches: the first test images, with labels.
    """

    name: str
    network: TTFSModel
    batches: EvaluationBatches

    def simulation(self, steps: int, weight_bits: int | None) -> dict[str, Any]:
        """Steps and bits as `simulate` takes them; a network on a grid has its own."""
        grid: Grid | None = self.network.graph.grid
        return {"steps": steps, "weight_bits": weight_bits} if grid is None else {}


def load_tested(
    command: str, runs: Sequence[str], data_dirs: Sequence[Path], samples: int | None, batch_size: int = 100
) -> list[Tested]:
    """Networks in order. What the user can mend ends the command with a message.

    Args:
        command: its name, for messages.
        runs: folders of runs, or bundled:NAME.
        data_dirs: local folder of the data of each; none: as they were trained.
        samples: first test images of each; None: all.
        batch_size: images a forward pass.
    """
    if data_dirs and len(data_dirs) != len(runs):
        sys.exit(f"{command}: --data-dir must name one folder a network; got {len(data_dirs)} for {len(runs)}.")
    found = []
    try:
        for place, run in enumerate(runs):
            loaded = load_network(run)
            folder = data_dirs[place] if data_dirs else None
            data = load_test_images(loaded, data_dir=folder, max_samples=samples)
            batches = EvaluationBatches(data, None, batch_size)
            found.append(Tested(loaded.files.name, loaded.network, batches))
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"{command}: {error}")
    return found
