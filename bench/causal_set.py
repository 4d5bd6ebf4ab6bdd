"""Closed form against causal sets: what the dynamic firing threshold and its consecutive windows save, and silence.

    python bench/causal_set.py --device cpu
    python bench/causal_set.py --device cuda --fan-ins 256 1024 4096

Earlier TTFS methods have a fixed firing threshold and layers whose spikes overlap in time; each neuron's causal set
has to be searched. Here the vectorised search, for all neurons at once in [batch, outputs, fan-in] tensors or for a
chunk of them at a time in bounded memory, runs on the same weights and inputs as `ttfs_kernels.dft_linear`; half of the
inputs are silent. First they are compared in float64: with the threshold's ramp as one more input, the search must find
the closed form's spikes and gradients, or nothing is timed. Then the contenders take turns, round by round; ratios are
medians over the rounds' own ratios. Memory counts inputs, weights and everything a pass makes.

The silent share is counted on images of the bundled sample, latency-coded, in a deep network with random weights, the
same for all rules; see `bench/_silence.py` for what that does and does not say.
"""

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro
from _fixed_threshold import causal_set_linear
from _measure import DisagreementError, now, transient_bytes
from _record import ROOT, environment, write
from _silence import RULES, draw_weights, silent_shares
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ttfs_kernels import Neuron, dft_linear
from ttfs_triton.data.images import load_images
from ttfs_triton.nn import activation_to_spike_time

CLOSED_FORM, SEARCH, CHUNKED = "closed form", "causal set", "causal set, chunked"
# A chunk's tensors should stay in a CPU core's caches, and should fill a GPU. On one busy core (AVX-512, 2 MiB of
# second-level cache) 0.25 to 4 MiB took a third of the time of all outputs at once; the figure for GPUs is not tuned.
CHUNK_MIB = {"cpu": 1.0, "cuda": 256.0}
SHORTEST_MS = 20.0  # passes are repeated until they take so long

Layer = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass
class Options:
    """Time the closed form and the search for causal sets, and count silent neurons."""

    device: Literal["cpu", "cuda"] = "cpu"
    fan_ins: tuple[int, ...] = (64, 256, 1024, 4096)
    outputs: int = 512
    """Neurons of the timed layer, and of each layer of the deep network."""
    batch_size: int = 64
    """Also the number of images in the count of silent neurons."""
    repeats: int = 5
    """Rounds that count; one more warms up."""
    chunk_mib: float | None = None
    """Size of one tensor of the chunked search. Default: 1 on a CPU, 256 on a GPU."""
    depth: int = 8
    """Layers of the deep network."""
    gains: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Factors on Kaiming-normal weights; our layers start at 0.5."""
    draws: int = 3
    """Random weights for each gain."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's choice."""
    seed: int = 0
    plot: bool = True
    """Draw the results beside the tables, as SVG; left out, with a line, without matplotlib."""
    output: Path = ROOT / "bench" / "results"
    """Folder of the results."""


@dataclasses.dataclass
class Contender:
    """A layer with its inputs [batch, fan_in]: activations, or spike times."""

    name: str
    layer: Layer
    inputs: Tensor
    weight: Tensor
    ms: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {"forward": [], "forward_backward": []})

    def forward(self) -> None:
        with torch.no_grad():
            self.layer(self.inputs, self.weight)

    def forward_backward(self) -> None:
        """Gradients of inputs and weights, from a gradient of ones."""
        y = self.layer(self.inputs, self.weight)
        torch.autograd.grad(y, (self.inputs, self.weight), torch.ones_like(y))

    def peak_mib(self, passes: str) -> float:
        run = getattr(self, passes)
        run()
        return (self.inputs.nbytes + self.weight.nbytes + transient_bytes(run, self.inputs.device)) / 2**20

    def time(self, passes: str) -> None:
        """Run often enough for the clock and note the mean."""
        run, elapsed, calls = getattr(self, passes), 0.0, 0
        start = now(self.inputs.device)
        while elapsed < SHORTEST_MS:
            run()
            calls += 1
            elapsed = (now(self.inputs.device) - start) * 1e3
        self.ms[passes].append(elapsed / calls)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    refuse_nonsense(options)
    device = torch.device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        rows = [row for fan_in in options.fan_ins for row in measure(options, fan_in, device)]
    except DisagreementError as error:
        sys.exit(f"causal_set: {error}")
    silence = count_silence(options, device)
    about = environment(device)
    circumstances = {key: about[key] for key in ("device", "threads", "torch", "cudnn", "commit", "utc")}
    rows, silence = ([row | circumstances for row in table] for table in (rows, silence))
    show(about, rows, silence)
    about["options"] = {key: value for key, value in dataclasses.asdict(options).items() if key != "output"}
    name = f"causal_set-{options.device}"
    write(options.output, name, rows, about)
    write(options.output, f"{name}-silent", silence, about)
    if options.plot:
        from _causal_set_plot import draw

        print(f"written: {draw(options.output / f'{name}.svg', rows, silence)}")


def refuse_nonsense(options: Options) -> None:
    """Exit with a reason before any work, if an option cannot be met; say what is left out."""
    for name, least in (("fan_ins", 2), ("outputs", 1), ("batch_size", 1), ("repeats", 1), ("depth", 1), ("draws", 1)):
        value = getattr(options, name)
        if not value or min(value if isinstance(value, tuple) else (value,)) < least:
            sys.exit(f"causal_set: --{name.replace('_', '-')} must be at least {least}; got {value}.")
    for name in ("chunk_mib", "gains"):
        value = getattr(options, name)
        if value is not None and not (value and min(value if isinstance(value, tuple) else (value,)) > 0):
            sys.exit(f"causal_set: --{name.replace('_', '-')} must be positive; got {value}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("causal_set: --device cuda must have a GPU that PyTorch can use; found none. Use --device cpu.")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed. For one, pip install -e '.[plot]'.", file=sys.stderr)
        options.plot = False


def backend_of(device: torch.device) -> str:
    return "auto" if device.type == "cuda" else "torch"


def outputs_at_once(options: Options, fan_in: int) -> int:
    """Neurons whose causal sets fit into a chunk."""
    mib = CHUNK_MIB[options.device] if options.chunk_mib is None else options.chunk_mib
    return max(1, int(mib * 2**20 / (4 * options.batch_size * fan_in)))


def measure(options: Options, fan_in: int, device: torch.device) -> list[dict[str, Any]]:
    """Check, then time all contenders at one fan-in: rows for the table."""
    generator = torch.Generator().manual_seed(options.seed)
    # As in a hidden layer: half of the inputs silent, the others' spikes spread over their window.
    x = (2 * torch.rand(options.batch_size, fan_in, generator=generator) - 1).relu().to(device)
    weight = draw_weights(fan_in, options.outputs, 1, 0.5, generator)[0].to(device)
    chunk = outputs_at_once(options, fan_in)
    check(x[:8].double(), weight[:32].double(), backend_of(device))
    times = activation_to_spike_time(x, 0).requires_grad_()
    x.requires_grad_()
    weight.requires_grad_()
    contenders = [
        Contender(CLOSED_FORM, lambda x, w: dft_linear(x, w, backend=backend_of(device)), x, weight),
        Contender(SEARCH, causal_set_linear, times, weight),
        Contender(CHUNKED, lambda t, w: causal_set_linear(t, w, outputs_at_once=chunk), times, weight),
    ]
    rows = []
    for passes in ("forward", "forward_backward"):
        peaks = [contender.peak_mib(passes) for contender in contenders]
        for round_ in range(1 + options.repeats):
            first = round_ % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                contender.time(passes)
        for contender, peak in zip(contenders, peaks, strict=True):
            own, base = (other.ms[passes][1:] for other in (contender, contenders[0]))
            low, high = torch.tensor(own).quantile(torch.tensor([0.2, 0.8])).tolist()
            rows.append(
                {
                    "op": "causal_set",
                    "case": f"b{options.batch_size}-o{options.outputs}",
                    "fan_in": fan_in,
                    "pass": passes,
                    "provider": contender.name,
                    "backend": backend_of(device) if contender is contenders[0] else "",
                    "outputs_at_once": {SEARCH: options.outputs, CHUNKED: min(chunk, options.outputs)}.get(
                        contender.name, ""
                    ),
                    "dtype": "float32",
                    "ms_p50": round(median(own), 4),
                    "ms_p20": round(low, 4),
                    "ms_p80": round(high, 4),
                    "ratio_to_closed_form": round(median(a / b for a, b in zip(own, base, strict=True)), 2),
                    "peak_mib": round(peak, 4),
                }
            )
    return rows


def check(x: Tensor, weight: Tensor, backend: str) -> None:
    """The search must find the closed form's spikes and gradients if the ramp is one more input; all in float64.

    The potential meets the threshold 1 − s where the potential plus s meets 1, and s is an input of weight 1 at the
    window's start. Neurons that reach 1 before are left out: there only the fixed threshold lets them fire.

    Raises:
        DisagreementError: it does not.
    """
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = dft_linear(x, weight, neuron=Neuron(derivative_clip=None), backend=backend)
    inputs = torch.cat([1 - x, torch.ones_like(x[:, :1])], dim=1)
    inputs = inputs.masked_fill(torch.cat([x == 0, torch.zeros_like(x[:, :1]).bool()], dim=1), torch.inf)
    synapses = torch.cat([weight, torch.ones_like(weight[:, :1])], dim=1)
    for at_once in (None, 5):
        times = causal_set_linear(inputs, synapses, outputs_at_once=at_once)
        comparable = times.detach() > 1
        found, expected = (2 - times).clamp_min(0)[comparable], y[comparable]
        pairs = [(found, expected)]
        pairs += zip(*(torch.autograd.grad(a.sum(), (x, weight), retain_graph=True) for a in pairs[0]), strict=True)
        for what, (ours, theirs) in zip(("spikes", "gradients of x", "gradients of weight"), pairs, strict=True):
            error, size = (ours - theirs).norm().item(), theirs.norm().item()
            if not error <= 1e-8 * size:
                raise DisagreementError(
                    f"{SEARCH} must agree with the {CLOSED_FORM} in float64; got {what} {error:.2g} apart (at most "
                    f"{1e-8 * size:.2g}). Nothing was timed."
                )


def count_silence(options: Options, device: torch.device) -> list[dict[str, Any]]:
    """Silent neurons of the deep network under every rule, gain by gain: rows for the table."""
    images = load_images("sample", split="test", max_samples=options.batch_size).images
    x = images.flatten(1).to(device) / 255

    def search(times: Tensor, weight: Tensor) -> Tensor:
        return causal_set_linear(times, weight, outputs_at_once=outputs_at_once(options, weight.shape[1]))

    rows = []
    for gain in options.gains:
        generator = torch.Generator().manual_seed(options.seed)
        weights = [
            [weight.to(device) for weight in draw_weights(x.shape[1], options.outputs, options.depth, gain, generator)]
            for _ in range(options.draws)
        ]
        for rule, layer, shares in silent_shares(x, weights, search, backend_of(device)):
            rows.append({"op": "silent_share", "gain": gain, "rule": rule, "layer": layer} | shares)
    return rows


def show(about: dict[str, Any], rows: list[dict[str, Any]], silence: list[dict[str, Any]]) -> None:
    """One table for times and memory, one for silent neurons."""
    console = Console()
    console.print(
        f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {about['utc']} UTC", soft_wrap=True
    )
    style: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE, "padding": (0, 1, 0, 0), "show_edge": False}
    table = Table(title=f"{rows[0]['case']}, float32; × is against the closed form", **style)
    for heading in ("fan-in", "", "forward ms", "×", "MiB", "fwd+bwd ms", "×", "MiB"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    halves = ([row for row in rows if row["pass"] == name] for name in ("forward", "forward_backward"))
    for forward, both in zip(*halves, strict=True):
        cells = [
            cell
            for row in (forward, both)
            for cell in (digits(row["ms_p50"]), digits(row["ratio_to_closed_form"]), digits(row["peak_mib"]))
        ]
        closed = forward["provider"] == CLOSED_FORM
        table.add_row(str(forward["fan_in"]) if closed else "", forward["provider"], *cells)
    console.print(table)
    layers = sorted({row["layer"] for row in silence})
    table = Table(title="silent neurons, % of layer 1, 2, …; random weights, nothing trained", **style)
    for heading in ("gain", "", *map(str, layers)):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for gain in dict.fromkeys(row["gain"] for row in silence):
        for rule in RULES:
            shares = [row["silent_share"] for row in silence if (row["gain"], row["rule"]) == (gain, rule)]
            table.add_row(f"{gain:g}" if rule == RULES[0] else "", rule, *(f"{100 * share:.3g}" for share in shares))
    console.print(table)


def digits(value: float) -> str:
    """Three digits or more, no exponent."""
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f}"


if __name__ == "__main__":
    main()
