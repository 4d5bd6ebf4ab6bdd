"""Our synaptic operations beside those of NeuroBench and Sinabs, on binary masks, where all define the same thing.

    pip install -e '.[counters]'
    python bench/public_counters.py

Each convolution and fully connected layer, those of CNN1 and odd ones, gets the same random 0/1 spikes: as a layer of
ours, and as the PyTorch layer of the same sizes. Exit status 1 if the figures differ.

Where they would differ on networks with spike times, and why ours does not:
- NeuroBench takes inputs other than −1, 0 and 1 for real values, so spike times are charged as multiply-accumulates.
- Sinabs multiplies fan-out with values: a spike with activation 0.3 is three tenths of an operation.
- Both call non-zero values spikes: of spike times with inf for silence, silence counts and a spike at 0 does not.
"""

import dataclasses
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tyro
from _record import ROOT, environment, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ttfs_triton.hardware import count
from ttfs_triton.nn import DFTConv2d, DFTLinear

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "CNN1 conv1": {"in_channels": 1, "out_channels": 16, "kernel_size": 5, "padding": 2, "size": 28},
    "CNN1 conv2": {"in_channels": 16, "out_channels": 32, "kernel_size": 5, "size": 14},
    "3×3, padded": {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "padding": 1, "size": 9},
    "3×3, stride 2": {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "padding": 1, "stride": 2, "size": 9},
    "3×3, dilation 2": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 2, "dilation": 2, "size": 9},
    "3×3, 4 groups": {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "padding": 1, "groups": 4, "size": 9},
}
LINEAR = {"CNN1 fc1": (800, 128), "CNN1 readout": (128, 10)}


@dataclasses.dataclass
class Options:
    """Compare counters."""

    samples: int = 4
    density: float = 0.3
    """Share of the inputs that spike."""
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if missing := [name for name in ("neurobench", "sinabs") if find_spec(name) is None]:
        sys.exit(f"public_counters: must have {' and '.join(missing)}. Run: pip install -e '.[counters]'")
    rows = [row(name, ours, theirs, spikes) for name, ours, theirs, spikes in cases(options)]
    table = Table("layer", "ours", "NeuroBench", "Sinabs", "agree")
    for line in rows:
        table.add_row(*(str(line[key]) for key in ("layer", "ours", "neurobench", "sinabs", "agree")))
    Console().print(table)
    about = environment(torch.device("cpu")) | {name: version(name) for name in ("neurobench", "sinabs")}
    about["options"] = {"samples": options.samples, "density": options.density}
    for path in write(options.output, "public_counters", rows, about):
        print(f"written: {path}")
    sys.exit(int(not all(line["agree"] for line in rows)))


def cases(options: Options) -> list[tuple[str, nn.Module, nn.Module, Tensor]]:
    """Name, our layer, PyTorch's, spikes [samples, ...]."""
    torch.manual_seed(0)
    found: list[tuple[str, nn.Module, nn.Module, Tensor]] = []
    for name, given in CONVOLUTIONS.items():
        sizes = {key: value for key, value in given.items() if key != "size"}
        shape = (options.samples, sizes["in_channels"], given["size"], given["size"])
        found.append((name, DFTConv2d(**sizes), nn.Conv2d(**sizes), spikes_of(shape, options.density)))
    for name, (inputs, outputs) in LINEAR.items():
        spikes = spikes_of((options.samples, inputs), options.density)
        found.append((name, DFTLinear(inputs, outputs), nn.Linear(inputs, outputs), spikes))
    return found


def spikes_of(shape: tuple[int, ...], density: float) -> Tensor:
    return (torch.rand(shape) < density).float()


def row(name: str, ours: nn.Module, theirs: nn.Module, spikes: Tensor) -> dict[str, Any]:
    """Operations of all samples by each counter."""
    own = count(nn.Sequential(ours), [spikes]).layers[0].synaptic_operations
    by_neurobench, by_sinabs = neurobench(theirs, spikes), sinabs(theirs, spikes)
    agree = own == by_neurobench == by_sinabs
    return {"layer": name, "ours": own, "neurobench": by_neurobench, "sinabs": by_sinabs, "agree": agree}


def neurobench(layer: nn.Module, spikes: Tensor) -> int:
    """NeuroBench's effective accumulates."""
    from neurobench.metrics.utils.layers import single_layer_MACs  # pyright: ignore[reportMissingImports]

    operations, spiking = single_layer_MACs(spikes, layer)
    assert spiking
    return round(float(operations))


def sinabs(layer: nn.Module, spikes: Tensor) -> int:
    """Sinabs's synaptic operations, which it averages over samples."""
    from sinabs.hooks import (  # pyright: ignore[reportMissingImports]
        conv_layer_synops_hook,
        get_hook_data_dict,
        linear_layer_synops_hook,
    )

    layer.register_forward_hook(linear_layer_synops_hook if isinstance(layer, nn.Linear) else conv_layer_synops_hook)
    layer(spikes)
    return round(float(get_hook_data_dict(layer)["layer_synops_per_timestep"]) * len(spikes))


if __name__ == "__main__":
    main()
