"""Networks on a chip's grid: accuracy, and whether the network and its simulation decide alike, image by image.

    python bench/grid.py runs/t4b4 runs/t8b2 --data-dir MNIST

Each is a run that was trained with --time-steps, or what recipes/calibrate.py made without training. All test images
go through the network as evaluation runs it and through the simulator; the row says how many both decide alike, by the
readout and by the first spike.
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
from ttfs_triton.scoring.batches import EvaluationBatches


@dataclasses.dataclass
class Options:
    """Accuracy on grids."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Runs' folders, or others with config.json and model.safetensors."""
    data_dir: Path | None = None
    """Local folder of the data set. Default: as the runs were trained."""
    max_test_samples: int | None = None
    batch_size: int = 250
    output: Path = ROOT / "bench" / "results"
    name: str = "mnist"
    """Of the files: grid-NAME.csv, .json."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        rows = [row(name, options) for name in options.runs]
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"grid: {error}")
    for path in write(options.output, f"grid-{options.name}", rows, environment(torch.device("cpu"))):
        print(f"written: {path}")


@torch.no_grad()
def row(name: str, options: Options) -> dict[str, Any]:
    """Figures of one network."""
    loaded = load_network(name)
    data = load_test_images(loaded, data_dir=options.data_dir, max_samples=options.max_test_samples)
    graph, batches = loaded.network.graph, EvaluationBatches(data, None, options.batch_size)
    if graph.grid is None:
        raise ValueError(f"runs must be of networks on a grid; got {name}. Train with --time-steps.")
    network, decided = loaded.network.network, []
    arriving: list[torch.Tensor] = []
    hook = graph.readout.register_forward_pre_hook(lambda _, inputs: arriving.append(inputs[0]))
    for place in range(len(batches)):
        images, labels = batches[place]
        logits = network(images)
        first = graph.readout.decide(arriving.pop()).prediction
        decided.append(torch.stack([logits.argmax(1), first, labels]))
    hook.remove()
    ours, first, labels = torch.cat(decided, 1)
    found = simulate(network, batches)
    samples = found.samples
    figures = {
        "network": loaded.files.name,
        "time_steps": graph.grid.time_steps,
        "weight_bits": graph.grid.weight_bits,
        "state_bits": graph.grid.state_bits,
        "trained": loaded.files.run is not None,
        "images": samples,
        "accuracy": float((ours == labels).double().mean()),
        "first_spike_accuracy": float((first == labels).double().mean()),
        "simulated_accuracy": found.accuracy,
        "same_decisions": int((ours == found.predictions).sum()),
        "same_first_spike_decisions": int((first == found.first_spike_predictions).sum()),
        "spikes": sum(layer.spikes for layer in found.counts.layers if layer.kind != "readout") / samples,
        "synaptic_operations": sum(layer.synaptic_operations for layer in found.counts.layers) / samples,
    }
    print("  ".join(f"{key} {value}" for key, value in figures.items()))
    return figures


if __name__ == "__main__":
    main()
