"""Time our training step against the alternatives that a user has: SpikingJelly, snnTorch and a plain ANN.

    pip install -e '.[peers]'
    python bench/peers.py --device cpu
    python bench/peers.py --device cuda --batch-size 128 --dtype bfloat16 --repeats 20

All train a VGG16 for 32×32 images and ten classes, with the same layer sizes, weights (up to a factor), batch and data
type; a step is forward, loss and backward, without optimizer. The script compares time, and memory held by tensors;
both grow with the number of time steps T. Accuracy is not compared, since the neurons differ. Ours (σ = 1, the paper's,
and σ = 0) and the ANN (clamped ReLU) have no time axis; the others fire up to T times, and users choose T for accuracy.

The settings favour the other libraries:

- SpikingJelly runs in multi-step mode with the fastest kernel that it has for the device, snnTorch as a loop over time,
  as its users write it; all run eagerly.
- Direct coding: the image is repeated T times. The first convolution has no state and is computed once, which only some
  of their users do. The libraries get normalised images; ours normalises in the step.
- Both run channels last or not, whichever is faster in a trial at the fewest time steps; ours always channels last.
- There are no biases, no batch norm, and no records of spikes or potentials.

Both have leaky integrate-and-fire neurons: half of the potential leaks in a step, threshold 1, reset by subtraction
without a gradient, arctangent surrogate (α = 2). SpikingJelly subtracts at once; snnTorch subtracts in the next step
after the leak, which is its default and its fastest mode. Pooling takes the maximum of spikes; logits are the last
layer's currents, averaged over time. A library that is not installed is left out.

Ours is first checked against its twin, as in train_step.py. All take turns, round by round; ratios of times are medians
of the rounds' ratios. The column floor_ratio is the number of contractions divided by the ANN's three per layer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import _bench as bench
import torch
from torch import Tensor, nn
from train_step import ANN, Batch, Contender, build, check

from ttfs_triton.nn import DFTConv2d, DFTLinear, EarliestSpikePool2d, TTFSNetwork

OURS = "DFT σ=1"
WITHOUT_TIME = (OURS, "DFT σ=0", ANN)
TRIALS = 3
# Our initial weights leave integrate-and-fire neurons silent after two layers; with four times these weights,
# 16 to 40 % of the neurons of every layer fire in a step (VGG16 at width 0.25, T = 8).
GAIN = 4.0
LEAK = 0.5


@dataclasses.dataclass
class Library:
    """The parts from which a library's networks are built."""

    title: str  # name of the library in tables
    layers: Any  # module with Conv2d, BatchNorm2d, Linear, MaxPool2d and Flatten
    neuron: Callable[[], nn.Module]  # makes the neurons of one layer
    prepare: Callable[[nn.Module], None]  # called once with the layers after the first convolution
    unroll: Callable[[nn.Module, Tensor, int], Tensor]
    """Function of these layers, the first neurons' input current (the same in every step) and T; returns the logits."""
    backend: str = "torch"  # implementation of the neurons, for tables


def spikingjelly(device: torch.device, dtype: torch.dtype) -> Library:
    """Multi-step mode: a layer computes all time steps at once, neurons in one fused kernel if there is one.

    SpikingJelly picks the kernel for the device: CUDA if built from source, else Triton; PyTorch on a CPU. Its Triton
    neurons take bfloat16 only through its precision interface.
    """
    layer, neuron, surrogate, functional = (
        import_module(f"spikingjelly.activation_based.{name}")
        for name in ("layer", "neuron", "surrogate", "functional")
    )
    in_bfloat16 = device.type == "cuda" and dtype == torch.bfloat16

    def leaky() -> nn.Module:
        options = {"tau": 1 / LEAK, "decay_input": False, "v_reset": None, "detach_reset": True}
        return neuron.LIFNode(surrogate_function=surrogate.ATan(alpha=2.0), **options)

    def prepare(rest: nn.Module) -> None:
        functional.set_step_mode(rest, "m")
        if in_bfloat16:
            precision = import_module("spikingjelly.activation_based.precision")
            config = precision.PrecisionConfig(mode="bf16", neuron_storage="bf16")
            precision.prepare_model_for_precision(rest, device, config)

    def unroll(rest: nn.Module, current: Tensor, time_steps: int) -> Tensor:
        logits = rest(current.expand(time_steps, *current.shape)).mean(0)
        functional.reset_net(rest)
        return logits

    backend = "triton" if in_bfloat16 else functional.neuron_implementation("lif", device)["implementation"]
    return Library("SpikingJelly", layer, leaky, prepare, unroll, backend)


def snntorch(device: torch.device, dtype: torch.dtype) -> Library:
    """A loop over time, as in snnTorch's tutorials: neurons keep their potential from call to call."""
    library = import_module("snntorch")
    gradient = import_module("snntorch.surrogate").atan(alpha=2.0)

    def unroll(rest: nn.Module, current: Tensor, time_steps: int) -> Tensor:
        for module in rest.modules():
            if isinstance(module, library.Leaky):
                module.reset_mem()  # pyright: ignore[reportCallIssue]
        return torch.stack([rest(current) for _ in range(time_steps)]).mean(0)

    leaky = partial(library.Leaky, beta=LEAK, spike_grad=gradient, init_hidden=True)
    return Library("snnTorch", nn, leaky, lambda rest: None, unroll)


LIBRARIES = {"spikingjelly": spikingjelly, "snntorch": snntorch}  # by name of the package


class Simulation(nn.Module):
    """A network simulated for `time_steps` steps: images [N, C, height, width] to logits [N, classes]."""

    def __init__(self, library: Library, layers: list[nn.Module], time_steps: int) -> None:
        super().__init__()
        self.library, self.time_steps = library, time_steps
        self.first, self.rest = layers[0], nn.Sequential(*layers[1:])
        self.use_layout("contiguous")

    def use_layout(self, layout: str) -> "Simulation":
        """Set the memory format of images and weights."""
        self.layout = layout
        self.format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        return self.to(memory_format=self.format)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        return self.library.unroll(self.rest, self.first(images.contiguous(memory_format=self.format)), self.time_steps)


def mirror(ann: TTFSNetwork, library: Library) -> list[nn.Module]:
    """Layers of a library with an ANN's sizes and `GAIN` times its weights, without biases; neurons for its ReLUs."""
    kinds, layers = library.layers, []
    modules: list[Any] = [getattr(module, "layer", module) for module in (*ann.features, ann.readout)]
    for module in modules:
        if isinstance(module, EarliestSpikePool2d):
            layers.append(kinds.MaxPool2d(module.kernel_size, module.stride))
        elif isinstance(module, nn.Flatten):
            layers.append(kinds.Flatten())
        elif isinstance(module, DFTConv2d):
            geometry = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
            layers += [kinds.Conv2d(*geometry, bias=False), library.neuron()]
            layers[-2].weight.data.copy_(GAIN * module.effective_weight().detach())
        else:
            layers.append(kinds.Linear(module.in_features, module.out_features, bias=False))
            layers[-1].weight.data.copy_(GAIN * module.effective_weight().detach())
            if isinstance(module, DFTLinear):
                layers.append(library.neuron())
    library.prepare(nn.Sequential(*layers[1:]))
    return layers


@dataclasses.dataclass
class Options:
    """Time a training step of VGG16 in several libraries: forward, loss, backward."""

    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16 is autocast with float32 parameters
    steps: tuple[int, ...] = (4, 8, 16)  # numbers of time steps T for SpikingJelly and snnTorch
    width: float = 1.0  # factor on the size of every hidden layer
    repeats: int = 9  # measured rounds
    output: Path = bench.RESULTS  # folder of the CSV file


def run(options: Options) -> None:
    """Check and time all contenders, print the table and write the result file."""
    device = bench.device_of(options.device)
    torch.backends.cudnn.benchmark = True
    packages = [package for package in LIBRARIES if find_spec(package)]
    left_out = [package for package in LIBRARIES if package not in packages]
    if left_out:
        print(f"peers: {' and '.join(left_out)} not found, left out. For all, pip install -e '.[peers]'.")
    about = bench.environment(device) | {"left_out": left_out}
    torch.manual_seed(0)
    images = torch.rand(options.batch_size, 3, 32, 32).to(device, memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(0, 10, (options.batch_size,)).to(device), getattr(torch, options.dtype))
    contenders = make_contenders(options, batch, packages)
    peaks = {contender.name: contender.peak_mib(batch) for contender in contenders}
    steps = {contender.name: partial(contender.step, batch) for contender in contenders}
    ms = bench.time_in_turns(steps, options.repeats, device)
    rows = []
    for contender in contenders:
        case = f"vgg16-b{options.batch_size}-w{options.width:g}"
        row: bench.Row = {"op": "peers", "case": case, "pass": "forward_backward"}
        row |= about_network(contender) | {"dtype": options.dtype} | bench.percentiles(ms[contender.name])
        row |= {"floor_ratio": round(contender.floor, 3), "peak_mib": round(peaks[contender.name], 1)}
        row["time_ratio_to_ours"] = bench.ratio(ms[contender.name], ms[OURS])
        rows.append(row | {"memory_ratio_to_ours": round(peaks[contender.name] / peaks[OURS], 3)})
    show(about, rows)
    bench.write(options.output, f"peers-{options.device}", rows, about)


def make_contenders(options: Options, batch: Batch, packages: Sequence[str]) -> list[Contender]:
    """Ours and the ANN, checked, and every library at every number of time steps."""
    device = batch.images.device
    plain = {"width": options.width, "weight_standardisation": False, "bias": False}
    built = {contender.name: contender for contender in build("vgg16", **plain)}
    for contender in built.values():
        contender.network.to(device)
    contenders = [built[name] for name in WITHOUT_TIME]
    for contender in contenders:
        check(contender, batch)
    for package in packages:
        library = LIBRARIES[package](device, batch.dtype)
        layers = mirror(built[ANN].network, library)
        networks = [Simulation(library, layers, time_steps).to(device) for time_steps in sorted(options.steps)]
        trials = {}
        for layout in ("channels_last", "contiguous"):
            step = partial(Contender(layout, networks[0].use_layout(layout), 0.0).step, batch)
            trials[layout] = min(bench.time_in_turns({layout: step}, TRIALS, device)[layout])
        for network in networks:
            network.use_layout(min(trials, key=trials.__getitem__))
            name = f"{library.title} T={network.time_steps}"
            contenders.append(Contender(name, network, float(network.time_steps)))
    return contenders


def about_network(contender: Contender) -> bench.Row:
    """Columns of a row that name what was timed."""
    network, row = contender.network, {"provider": contender.name, "version": "", "backend": "", "time_steps": ""}
    if not isinstance(network, Simulation):
        return row | {"layout": "channels_last"}
    title = network.library.title
    row |= {"provider": title, "version": version(title), "backend": network.library.backend}
    return row | {"time_steps": network.time_steps, "layout": network.layout}


def show(about: bench.Row, rows: list[bench.Row]) -> None:
    """Print the table, and the libraries' versions, implementations of neurons and memory formats."""
    print(bench.machine_line(about))
    columns = {"": "{provider}", "T": "{time_steps}", "ms": "{ms_p50:.1f}", "p20–p80": "{ms_p20:.1f}–{ms_p80:.1f}"}
    columns |= {"×ours": "{time_ratio_to_ours:.2f}", "MiB": "{peak_mib:.1f}", "× ours": "{memory_ratio_to_ours:.2f}"}
    bench.print_rows(rows, columns, title=f"{rows[0]['case']}, {rows[0]['dtype']}")
    libraries = (f"{row['provider']} {row['version']}: neurons by {row['backend']}, {row['layout']}" for row in rows)
    print("\n".join(dict.fromkeys(line for line, row in zip(libraries, rows, strict=True) if row["version"])))


main = partial(bench.run_script, Options, run, __doc__)

if __name__ == "__main__":
    main()
