"""Time layers of VGG16, cifarnet and CNN1, pass by pass: our kernels beside PyTorch, a user's composition, and the ANN.

    python bench/kernels.py                                  # on the GPU if there is one, else on the CPU
    python bench/kernels.py --model vgg16 --op conv2d --dtypes bf16 tf32

Passes: forward, whose graph is recorded; grad_x and grad_w, backward passes for a single gradient. The layers of
cifarnet, which have batch norm, have norm_forward and norm_backward (all gradients) instead. Providers:

    triton      our kernels; need a GPU
    torch       our PyTorch backend, one stacked call per contraction
    composed    what a user would write: two convolutions and torch.where, differentiated by autograd
    ann         the ANN's convolution, batch norm and clamp, which is the limit
    composed-compiled, ann-compiled    the same two under torch.compile

Before a pass is timed, its results are compared with float64. Then the providers take turns, round by round, with warm
caches; on a GPU a pass is replayed as a CUDA graph, as in training, so that the host's time does not count.

tflops are useful operations per time: two per synapse that lies on the map, times the contractions that the pass needs.
An ANN needs one forward and one per gradient. A spiking layer (σ > 0) needs one more forward and one more for grad_w.
share_of_peak is the share of the dtype's published dense peak or, on a CPU and other GPUs, of a large matrix product's
rate in this run. peak_mib counts the tensors that a pass makes, a backward pass together with its forward pass; scratch
memory of libraries is left out. ratio_to_ann is the median of the rounds' ratios.

Another table has the host's time for a layer by Triton: how long Python takes to check, plan and launch the layer, when
its plans are cached and its kernels compiled. Without a GPU, this time ends before the launch. There, only some layers
are timed, and a table shows the machine code of our kernels for the same layers.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

import _bench as bench
import torch
from _kernels_layers import FORMATS, SHAPES, Layer, Number, load, products, useful_flops
from _kernels_providers import MARKS, NORM, PASSES, PLAIN, Functions, Provider, prepare
from torch import Tensor
from torch._functorch import config as functorch_config

from ttfs_kernels.checks import why_no_triton
from ttfs_triton.train.device import CudaGraphs, emulates_bfloat16, freed_memory_kept

# On a CPU: layers that differ in what limits them, few enough for two minutes.
ON_CPU = ("c3-64-64-32", "c3-256-256-8", "c3-512-512-2", "c3-64-256-15", "c3-256-256-7", "c5-16-32-14", "f-800-128")
TICKS = {0.25: "¼", 0.5: "½", 1: "1", 2: "2", 4: "4", 8: "8"}  # of the picture
ROUNDS = {"cpu": 7, "cuda": 20}
SILENT = 0.4  # share of silent inputs
BORDER = 0.02  # neurons nearer to a border of the firing rule get no gradient: rounding may carry them across
TOLERANCE: dict[Number, float] = {"bf16": 3e-2, "fp16": 1e-2, "tf32": 1e-2, "fp32": 1e-4}  # largest relative errors
# TFLOP/s of dense products in bf16 and fp16, tf32, fp32; NVIDIA's data sheets.
HOPPER, AMPERE = (989.4, 989.4, 494.7, 66.9), (312.0, 312.0, 156.0, 19.5)
PUBLISHED = {
    **dict.fromkeys(("NVIDIA H100 80GB HBM3", "NVIDIA H200"), HOPPER),
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), AMPERE),
}


@dataclasses.dataclass
class Options:
    """Time layers, pass by pass."""

    op: Literal["conv2d", "linear"] | None = None  # only these layers
    model: Literal["vgg16", "cifarnet", "cnn1"] | None = None  # only this network's layers
    dtypes: tuple[Number, ...] | None = None
    """tf32 is float32 with rounded products. Default: bf16; on a CPU fp32, and bf16 if the CPU has it."""
    batch_size: int | None = None  # default: 256, on a CPU 16
    sigma: float = 1.0  # σ of the neurons: 1 is the paper's neuron, 0 an ANN's clamped ReLU
    providers: tuple[Provider, ...] | None = None  # beside the ANN; default: all that run here
    output: Path = bench.RESULTS  # folder of the CSV file and the picture


class Case:
    """A layer in a number format, with random operands, and what float64 computes from them."""

    def __init__(self, layer: Layer, number: Number, sigma: float, batch: int, device: torch.device) -> None:
        self.layer, self.device = layer, device
        self.number: Number = number
        self.problem = problem = layer.problem(batch, number, sigma)
        self.functions = Functions(problem, sigma)
        torch.manual_seed(0)
        shape = (batch, problem.in_channels, problem.height, problem.width)
        x = torch.rand(shape) * (torch.rand(shape) > SILENT)
        weight = torch.randn(problem.out_channels, problem.group_inputs, *problem.kernel)
        weight *= 0.4 / weight[0].numel() ** 0.5
        x, weight = ((t.flatten(1) if problem.is_matrix_product else t).to(device, problem.dtype) for t in (x, weight))
        if not problem.is_matrix_product:
            x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        norm = torch.tensor([[0.3], [0.1]], device=device).expand(2, problem.out_channels).contiguous()
        self.operands = x, weight, *norm

    def operands_of(self, which: str) -> tuple[Tensor, ...]:
        return self.operands if which in NORM else self.operands[:2]

    def expected(self, which: str, ann: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Upstream gradient, zero at the borders of the firing rule, and the results in float64."""
        operands, functions = [t.double() for t in self.operands_of(which)], self.functions
        with torch.no_grad():
            A, W = (functions.potential(*operands), 0.0) if ann else functions.potentials(*operands)
        clear = ((A + W).abs() > BORDER) & ((A - 1).abs() > BORDER)
        grad = torch.randn(A.shape, device=self.device) * clear
        results = prepare(which, functions.ann if ann else functions.composed, operands, grad.double())()
        return grad.to(self.problem.dtype), results

    def check(self, which: str, provider: str, results: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Raise `DisagreementError` if results are farther from float64 than rounding explains.

        Gradients of silent inputs are left out: ours are 0.
        """
        at_spikes = 0 in PASSES[which][0] and which != "norm_forward" and not provider.startswith("ann")
        for index, (ours, exact) in enumerate(zip(results, expected, strict=True)):
            kept = (self.operands[0] > 0).double() if at_spikes and index == 0 else 1.0
            error = (((ours.double() - exact) * kept).norm() / (exact * kept).norm()).item()
            if not error <= TOLERANCE[self.number]:  # NaN never agrees
                raise bench.DisagreementError(
                    f"check: {provider} must compute {which} of {self.layer.name} in {self.number} as float64 does; "
                    f"got a relative error of {error:.2g}."
                )

    def contenders(self, which: str, providers: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any], float]]:
        """The providers, their passes, warm and checked, and the peak memory of these in MiB."""
        expected = {ann: self.expected(which, ann) for ann in {provider.startswith("ann") for provider in providers}}
        graphs = CudaGraphs(self.device) if self.device.type == "cuda" and torch.backends.cuda.is_built() else None
        for provider in providers:
            grad, exact = expected[provider.startswith("ann")]
            function, operands = self.functions.of(provider), self.operands_of(which)
            with graphs.aside() if graphs else torch.enable_grad():  # the backward pass takes its forward's stream
                run = prepare(which, function, operands, grad)
                results = [run() for _ in range(3)][-1]  # a backward pass must leave all as the next one needs it
            self.check(which, provider, results, exact)
            make: Callable[[], Any] = partial(lambda *how: prepare(*how)(), which, function, operands, grad)
            peak_mib = bench.transient_bytes(make, self.device) / 2**20
            yield provider, graphs.capture(run) if graphs else run, peak_mib

    def rows(self, providers: Sequence[str], peak: float) -> Iterator[bench.Row]:
        """Check and time all passes."""
        useful = useful_flops(self.problem)
        for which in NORM if self.layer.has_norm else PLAIN:
            contenders = list(self.contenders(which, providers))
            runs = {provider: run for provider, run, _ in contenders}
            ms = bench.time_in_turns(runs, ROUNDS[self.device.type], self.device)
            for provider, _, peak_mib in contenders:
                spiking = self.problem.with_slope and not provider.startswith("ann")
                times = bench.percentiles(ms[provider], 4)
                tflops = useful * PASSES[which][1 if spiking else 2] / times["ms_p50"] / 1e9
                yield {
                    "op": "linear" if self.problem.is_matrix_product else "conv2d",
                    "case": f"{self.layer.name}-b{self.problem.batch}",
                    "pass": which,
                    "provider": provider,
                    "dtype": FORMATS[self.number].name,
                    **times,
                    "peak_mib": float(f"{peak_mib:.3g}"),
                    "tflops": float(f"{tflops:.3g}"),
                    "share_of_peak": round(tflops / peak, 3),
                    "ratio_to_ann": bench.ratio(ms[provider], ms["ann"]),
                }


def peak_tflops(number: Number, device: torch.device) -> tuple[float, str]:
    """Peak rate of dense products in TFLOP/s, and its source."""
    published = PUBLISHED.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if published:
        return published[list(FORMATS).index(number)], "published"
    best = size = seconds = 0
    while seconds < 0.05 and size < 16384:  # the largest products are the most efficient
        size = 2 * size or 256
        matrix, times = torch.ones(size, size, dtype=FORMATS[number].dtype, device=device), []
        for _ in range(4):  # the first one looks for a kernel
            start = bench.now(device)
            torch.mm(matrix, matrix)
            times.append(bench.now(device) - start)
        seconds = min(times)
        best = max(best, 2 * size**3 / seconds / 1e12)
    return best, f"measured, products of up to {size}×{size} matrices"


def run(options: Options) -> None:
    """Check and time all layers; print tables, write the result file and the picture."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    functorch_config.donated_buffer = False  # backward passes are repeated
    native = gpu or not emulates_bfloat16()
    numbers: tuple[Number, ...] = options.dtypes or (("bf16",) if gpu else ("fp32", "bf16") if native else ("fp32",))
    layers, providers = chosen(options, gpu), {number: providers_of(options, device, number) for number in numbers}
    rows: list[bench.Row] = []
    about = bench.environment(device) | {"sigma": options.sigma}
    print(bench.machine_line(about))
    for number in numbers:
        with products(number), freed_memory_kept() if not gpu else nullcontext():  # as in training
            peak, source = peak_tflops(number, device)
            about[f"peak_{number}"] = f"{peak:.3g} TFLOP/s, {source}"
            for layer in layers:
                case = Case(layer, number, options.sigma, options.batch_size or (256 if gpu else 16), device)
                rows += (measured := list(case.rows(providers[number], peak)))
                torch.compiler.reset()  # or it would refuse to compile the same lines for ever more layers
                show(measured)
                bench.write(options.output, f"kernels-{device.type}", rows, about)
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET", "0") != "0":
        print("no tables of our kernels: Triton is not installed, or interprets kernels")
    else:
        show_host_time(layers, options.sigma, device)
        if not gpu:
            show_machine_code(layers, options.sigma)
    draw(rows, options.output / f"kernels-{device.type}.svg")


def chosen(options: Options, gpu: bool) -> list[Layer]:
    """The distinct layers of the networks that --op and --model admit; exits if there is none."""
    models = (options.model,) if options.model else ("vgg16", "cifarnet", "cnn1")
    layers = [layer for layer in load(SHAPES) if any(name.startswith(models) for name in layer.networks)]
    kinds = {"linear": True, "conv2d": False, None: None}[options.op]
    layers = [layer for layer in layers if kinds in (None, layer.problem(1, "fp32", 1.0).is_matrix_product)]
    layers = [layer for layer in layers if gpu or layer.name in ON_CPU]
    if not layers:
        sys.exit(f"kernels: --op must be a kind of layer that is timed here; got {options.op} with {options.model}.")
    return layers


def providers_of(options: Options, device: torch.device, number: Number) -> list[str]:
    """The providers to time: --providers, by default all that run here, and always the ANN; exits if one cannot run."""
    reason = why_no_triton(device, FORMATS[number].dtype)
    asked = options.providers or tuple(name for name in MARKS if name != "triton" or device.type == "cuda")
    if reason and "triton" in asked:
        sys.exit(f"kernels: --providers triton must be able to run here; {reason}. Leave it out.")
    spiking = [name for name in asked if options.sigma > 0 or not name.startswith("composed")]
    return list(dict.fromkeys((*spiking, "ann")))


def show(rows: list[bench.Row]) -> None:
    """Print the table of one layer: a line per provider, three columns per pass."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    lines = []
    for provider in dict.fromkeys(row["provider"] for row in rows):
        some = [row for row in rows if row["provider"] == provider]
        cells = [(f"{row['ms_p50']:.3g}", f"{row['ratio_to_ann']:.2f}", f"{row['share_of_peak']:.0%}") for row in some]
        lines.append((provider, *(cell for three in cells for cell in three)))
    headings = ["", *(heading for name in passes for heading in (f"{name} ms", "×ANN", "peak"))]
    bench.print_table(headings, lines, title=f"{rows[0]['case']}, {rows[0]['dtype']}", width=120)


def show_host_time(layers: Sequence[Layer], sigma: float, device: torch.device) -> None:
    """Time the host for the layers by Triton, without and with their batch norm, and print µs."""
    from _host_time import absent_gpu, host_us

    lines = []
    with absent_gpu() if device.type == "cpu" else nullcontext():
        for layer in layers:
            case = Case(layer, "fp16", sigma, 2, device)
            for which in ("forward", "norm_forward") if layer.has_norm else ("forward",):
                us = host_us(partial(case.functions.ours, "triton"), case.operands_of(which))
                lines.append((f"{layer.name}{', batch norm' * (which in NORM)}", *(f"{time_us:.0f}" for time_us in us)))
    headings = ("layer", "no gradients", "forward", "forward and backward")
    bench.print_table(headings, lines, title="host's time in µs for a layer by Triton, plans cached", width=100)


def show_machine_code(layers: Sequence[Layer], sigma: float) -> None:
    """Compile our kernels of these layers for sm_90, 256 images in bf16, and print what they need."""
    from _kernels_compile import default_kernels, show_floors

    start, kernels = time.perf_counter(), []
    for has_norm, first in ((False, "forward"), (True, "normalised")):
        some = [layer for layer in layers if layer.has_norm == has_norm]
        passes = first, "grad_x", "grad_w"
        kernels += default_kernels(some, ("sm_90",), ("bf16",), (sigma,), 256, passes, ((False, False),))
    show_floors(kernels, min(2, os.cpu_count() or 1))
    print(f"{len(kernels)} kernels compiled in {time.perf_counter() - start:.0f} s; none has run")


def draw(rows: Sequence[bench.Row], path: Path) -> None:
    """Draw the ratios to the ANN: a panel per dtype and pass, a line of points per layer."""
    if find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed. For one, pip install -e '.[plot]'.")
        return
    cases, dtypes, passes, providers = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "dtype", "pass", "provider")
    )
    size = 1.8 * len(passes) + 1.2, (0.26 * len(cases) + 0.9) * len(dtypes) + 0.5
    with bench.picture(path, len(dtypes), len(passes), size=size, sharex=True, sharey=True) as (figure, axes):
        for panel, (dtype, which) in zip(axes.flat, product(dtypes, passes), strict=True):
            for provider in providers:
                some = [row for row in rows if (row["dtype"], row["pass"], row["provider"]) == (dtype, which, provider)]
                places, (colour, marker) = [cases.index(row["case"]) for row in some], MARKS[provider]
                ratios = [row["ratio_to_ann"] for row in some]
                panel.plot(ratios, places, marker, color=colour, label=provider, ms=5)
            panel.axvline(1, color="#7A7A7A", linewidth=0.8)
            panel.set(title=f"{which}, {dtype}", xscale="log", yticks=range(len(cases)), yticklabels=cases)
            panel.set_xticks(list(TICKS), list(TICKS.values()))
            panel.minorticks_off()
        axes.flat[0].invert_yaxis()
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        figure.suptitle("time of a layer's passes, divided by the ANN's")


main = partial(bench.run_script, Options, run, __doc__)

if __name__ == "__main__":
    main()
