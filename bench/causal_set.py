"""Time and memory of the closed form, which the dynamic firing threshold allows, and of a search for causal sets.

    python bench/causal_set.py --device cpu
    python bench/causal_set.py --device cuda --fan-ins 256 1024 4096

Earlier TTFS methods have a fixed firing threshold and layers whose spikes overlap in time. Inputs still arrive while a
neuron may already fire, so each neuron's causal set, the inputs that make it fire, has to be searched. Here the search,
for all neurons at once in [batch, outputs, fan-in] tensors or for a chunk of them at a time in bounded memory, runs on
the same weights and inputs as `ttfs_kernels.dft_linear`; half of the inputs are silent. First both are compared
in float64: with the threshold's ramp as one more input, the search must find the closed form's spikes and gradients, or
nothing is timed. Then the contenders take turns, round by round; ratios are medians over the rounds' own ratios. Memory
counts inputs, weights and everything that a pass allocates.

The search is vectorised over samples and neurons as in Mostafa (2017) and Zhou et al. (2021), and as cheap as PyTorch's
own operations allow: one argsort for all neurons of a sample, silent inputs cut off, sums in place, a test without
divisions, and a backward pass that keeps neither order nor sums.
"""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import _bench as bench
import torch
import tyro
from torch import Tensor

from ttfs_kernels import Neuron, dft_linear
from ttfs_triton.nn import activation_to_spike_time

CLOSED_FORM, SEARCH, CHUNKED = "closed form", "causal set", "causal set, chunked"
# A chunk's tensors should stay in a CPU core's caches, and should fill a GPU. On one busy core (AVX-512, 2 MiB of
# second-level cache) 0.25 to 4 MiB took a third of the time of all outputs at once; the figure for GPUs is not tuned.
CHUNK_MIB = {"cpu": 1.0, "cuda": 256.0}
BACKENDS = {"cpu": "torch", "cuda": "auto"}
SHORTEST_MS = 20.0  # passes are repeated for at least this long
PASSES = ("forward", "forward_backward")


@dataclasses.dataclass
class Options:
    """Time the closed form and the search for causal sets."""

    device: Literal["cpu", "cuda"] = "cpu"
    fan_ins: tuple[int, ...] = (64, 256, 1024, 4096)
    outputs: int = 512  # neurons of the layer
    batch_size: int = 64
    repeats: int = 5  # measured rounds, after one that warms up
    output: Path = bench.RESULTS  # folder of the CSV file


@dataclasses.dataclass
class Contender:
    """A layer with its inputs [batch, fan_in]: activations, or spike times."""

    name: str
    layer: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    weight: Tensor
    ms: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {name: [] for name in PASSES})

    def run(self, name: str) -> None:
        """Run a pass; the backward pass starts from a gradient of ones and returns gradients of inputs and weights."""
        with torch.set_grad_enabled(name == "forward_backward"):
            y = self.layer(self.inputs, self.weight)
            if name == "forward_backward":
                torch.autograd.grad(y, (self.inputs, self.weight), torch.ones_like(y))

    def peak_mib(self, name: str) -> float:
        self.run(name)
        transient = bench.transient_bytes(lambda: self.run(name), self.inputs.device)
        return (self.inputs.nbytes + self.weight.nbytes + transient) / 2**20

    def time(self, name: str) -> None:
        """Repeat a pass for at least SHORTEST_MS and note the mean time."""
        elapsed, calls = 0.0, 0
        start = bench.now(self.inputs.device)
        while elapsed < SHORTEST_MS:
            self.run(name)
            calls += 1
            elapsed = (bench.now(self.inputs.device) - start) * 1e3
        self.ms[name].append(elapsed / calls)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    device = bench.device_of("causal_set", options.device)
    try:
        rows = [row for fan_in in options.fan_ins for row in measure(options, fan_in, device)]
    except bench.DisagreementError as error:
        sys.exit(f"causal_set: {error}")
    about = bench.environment(device)
    print(bench.machine_line(about))
    show(rows)
    bench.write(options.output, f"causal_set-{options.device}", rows, about)


def measure(options: Options, fan_in: int, device: torch.device) -> list[bench.Row]:
    """Check, then time all contenders at one fan-in: rows for the table."""
    generator, backend = torch.Generator().manual_seed(0), BACKENDS[options.device]
    # As in a hidden layer: half of the inputs silent, the others' spikes spread over their window.
    x = (2 * torch.rand(options.batch_size, fan_in, generator=generator) - 1).relu().to(device)
    weight = torch.randn(options.outputs, fan_in, generator=generator).to(device) * 0.5 * (2 / fan_in) ** 0.5
    chunk = max(1, int(CHUNK_MIB[options.device] * 2**20 / (4 * options.batch_size * fan_in)))  # outputs at once
    check(x[:8].double(), weight[:32].double(), backend)
    times = activation_to_spike_time(x, 0).requires_grad_()
    x.requires_grad_()
    weight.requires_grad_()
    contenders = [
        Contender(CLOSED_FORM, partial(dft_linear, backend=backend), x, weight),
        Contender(SEARCH, causal_set_linear, times, weight),
        Contender(CHUNKED, partial(causal_set_linear, outputs_at_once=chunk), times, weight),
    ]
    rows = []
    for name in PASSES:
        peaks = [contender.peak_mib(name) for contender in contenders]
        for contender in bench.in_turns(contenders, 1 + options.repeats):
            contender.time(name)
        for contender, peak in zip(contenders, peaks, strict=True):
            own, base = (other.ms[name][1:] for other in (contender, contenders[0]))
            rows.append(
                {
                    "op": "causal_set",
                    "case": f"b{options.batch_size}-o{options.outputs}",
                    "fan_in": fan_in,
                    "pass": name,
                    "provider": contender.name,
                    "backend": backend if contender.name == CLOSED_FORM else "",
                    "outputs_at_once": {SEARCH: options.outputs, CHUNKED: chunk}.get(contender.name, ""),
                    "dtype": "float32",
                    **bench.percentiles(own, 4),
                    "ratio_to_closed_form": bench.ratio(own, base),
                    "peak_mib": round(peak, 4),
                }
            )
    return rows


def check(x: Tensor, weight: Tensor, backend: str) -> None:
    """Check in float64 that the search finds the closed form's spikes and gradients, with the ramp as one more input.

    The potential meets the threshold 1 − s where the potential plus s meets 1, and s is an input of weight 1 at the
    window's start. Neurons that reach 1 before the window are left out: only a fixed threshold lets them fire there.

    Raises:
        DisagreementError: spikes or gradients differ.
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
                raise bench.DisagreementError(
                    f"{SEARCH} must agree with the {CLOSED_FORM} in float64; got {what} {error:.2g} apart (at most "
                    f"{1e-8 * size:.2g}). Nothing was timed."
                )


def show(rows: list[bench.Row]) -> None:
    """Print the table of times and memory."""
    headings = ("fan-in", "", "forward ms", "×", "MiB", "fwd+bwd ms", "×", "MiB")
    lines = []
    for pair in zip(*([row for row in rows if row["pass"] == name] for name in PASSES), strict=True):
        columns = ("ms_p50", "ratio_to_closed_form", "peak_mib")
        cells = [bench.digits(row[key]) for row in pair for key in columns]
        lines.append((pair[0]["fan_in"], pair[0]["provider"], *cells))
    bench.print_table(headings, lines, title=f"{rows[0]['case']}, float32; × is against the closed form", left=("",))


def causal_set_linear(
    spike_times: Tensor, weight: Tensor, *, threshold: float = 1.0, outputs_at_once: int | None = None
) -> Tensor:
    """Spike times of ReL-PSP neurons: t = (θ + Σ w·t_i) / Σ w over the inputs that arrive before t.

    Args:
        spike_times: [batch, fan_in], spike times of the inputs, in any unit, inf = silent; float32 or float64.
        weight: [outputs, fan_in], in threshold heights per unit of time.
        threshold: θ, positive.
        outputs_at_once: neurons whose causal sets are searched together. The search holds some tensors of
            [batch, outputs_at_once, fan_in] at a time. None: all neurons.
    Returns:
        [batch, outputs] spike times, inf = silent.
    Gradient: for spike_times and weight, with the causal set that the forward pass found.
    Source: Wei et al., ICCV 2023, Eq. 2 to 4 and section 2.2.
    """
    at_once = outputs_at_once or len(weight)
    return _CausalSetLinear.apply(spike_times, weight, threshold, at_once)  # pyright: ignore[reportReturnType]


class _CausalSetLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spike_times: Tensor, weight: Tensor, threshold: float, at_once: int) -> Tensor:
        arrival, order = spike_times.sort(dim=1)
        spikes = max(1, int(arrival.isfinite().sum(dim=1).amax()))
        arrival, order = arrival[:, :spikes], order[:, :spikes]  # the rest is silent in every sample
        silent = arrival.isinf()
        following = torch.cat([arrival[:, 1:], torch.full_like(arrival[:, :1], torch.inf)], dim=1)
        following.masked_fill_(silent, torch.nan)  # no comparison holds: silent inputs end no causal set
        finite = arrival.masked_fill(silent, 0)
        found = [_search(part, order, finite, following, threshold) for part in weight.split(at_once)]
        time, latest, slope = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        ctx.save_for_backward(spike_times, weight, time, latest, slope)
        ctx.at_once = at_once
        return time

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        spike_times, weight, time, latest, slope = ctx.saved_tensors
        h = grads[0] / slope
        finite, time = spike_times.masked_fill(spike_times.isinf(), 0), time.masked_fill(time.isinf(), 0)
        grad_times, grad_weight = torch.zeros_like(spike_times), torch.empty_like(weight)
        for start in range(0, weight.shape[0], ctx.at_once):
            here = slice(start, start + ctx.at_once)
            causal = (spike_times[:, None] <= latest[:, here, None]).to(weight.dtype)
            grad_times += (causal * weight[here]).mul_(h[:, here, None]).sum(dim=1)
            lag = finite[:, None] - time[:, here, None]
            grad_weight[here] = lag.mul_(causal).mul_(h[:, here, None]).sum(dim=0)
        return grad_times, grad_weight, None, None


def _search(
    weight: Tensor, order: Tensor, arrival: Tensor, following: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Spike time, arrival of the causal set's last input and slope, [batch, outputs]; silent: inf, -inf, inf.

    After its k-th input the potential is slope·t + intercept. It starts below the threshold, so the first k for which
    it has reached the threshold when the next input arrives is the causal set, and the crossing lies between the two.

    Args:
        weight: [outputs, fan_in].
        order: [batch, spikes], inputs by spike time.
        arrival, following: [batch, spikes], sorted spike times (0 where silent), and the spike time of the next input
            (nan where silent, inf after the last).
        threshold: θ.
    """
    outputs = weight.shape[0]
    slope = weight.expand(order.shape[0], -1, -1).gather(2, order[:, None].expand(-1, outputs, -1))
    intercept = (slope * -arrival[:, None]).cumsum_(dim=2)
    slope.cumsum_(dim=2)
    reached = torch.addcmul(intercept, slope, following[:, None]) >= threshold
    fires, last = reached.max(dim=2)  # the first maximum: the smallest set
    slope, intercept = (sums.gather(2, last[..., None])[..., 0] for sums in (slope, intercept))
    latest, end = arrival.gather(1, last), following.gather(1, last)
    time = ((threshold - intercept) / slope).clamp(latest, end)
    return (
        torch.where(fires, time, torch.inf),
        torch.where(fires, latest, -torch.inf),
        torch.where(fires, slope, torch.inf),
    )


if __name__ == "__main__":
    main()
