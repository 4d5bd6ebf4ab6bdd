"""Two costs of a fixed firing threshold, beside the dynamic one: the search for causal sets, and over-sparsity.

With a fixed threshold and layers whose spikes overlap in time, a neuron's causal set, the inputs before its spike, has
to be searched (Wei et al., ICCV 2023, sections 2.2 and 3.1). The search, in chunks that fit a cache, must first give
the spikes and gradients of `dft_linear` in float64. Then both are timed in turns, forward and backward.

Over-sparsity is counted on bundled images in a deep network of random weights, Kaiming's times a gain: silent neurons
never fire, and late spikes reach a neuron after it has fired (their share is among spikes to neurons that fire).
"""

from functools import partial
from itertools import pairwise, product, zip_longest
from pathlib import Path

import _bench as bench
import torch
import tyro
from torch import Tensor

from ttfs_kernels import Neuron, dft_linear
from ttfs_triton.data.images import load_images
from ttfs_triton.nn import activation_to_spike_time

CLOSED_FORM, SEARCH = "closed form", "causal set"
DYNAMIC, DEADLINE, NO_DEADLINE = "dynamic", "fixed, in the dynamic one's window", "fixed, no deadline"
MARKS = {DYNAMIC: ("#0072B2", "o"), DEADLINE: ("#C24E00", "s"), NO_DEADLINE: ("#7A7A7A", "^")}  # Okabe and Ito's
FAN_INS, DEPTH, GAINS = (64, 256, 1024), 8, (0.5, 1.0, 2.0)  # our layers begin at a gain of 0.5
CHUNK = 1 << 18  # elements of [batch, neurons, inputs] that are searched together: 1 MiB


def causal_set_linear(times: Tensor, weight: Tensor) -> Tensor:
    """Spike times [batch, neurons] at a threshold of 1, t = (1 + Σ w·t_i) / Σ w over the inputs before t; inf = silent.

    `times` [batch, inputs] are in windows, `weight` [neurons, inputs] in threshold heights per window.
    """
    spikes = max(1, int(times.isfinite().sum(dim=1).max()))  # the others are silent in every sample
    arrival, order = (ordered[:, :spikes] for ordered in times.detach().sort(dim=1))
    following = torch.cat([arrival[:, 1:], torch.full_like(arrival[:, :1], torch.inf)], dim=1)
    following = following.masked_fill(arrival.isinf(), torch.nan)[:, None]  # silent inputs end no set
    parts, finite = [], times.masked_fill(times.isinf(), 0)
    for part in weight.split(max(1, CHUNK // times.numel())):
        with torch.no_grad():
            slope = part.expand(len(times), -1, -1).gather(2, order[:, None].expand(-1, len(part), -1))
            level = (slope * -arrival.masked_fill(arrival.isinf(), 0)[:, None]).cumsum_(dim=2)
            # The smallest set whose potential reaches the threshold before the next input arrives.
            fires, last = (torch.addcmul(level, slope.cumsum_(dim=2), following) >= 1).max(dim=2)
            causal = (times[:, None] <= arrival.gather(1, last)[..., None]).to(part.dtype)
        used = part * causal
        time = (1 + (used * finite[:, None]).sum(dim=2)) / used.sum(dim=2).masked_fill(~fires, 1)
        parts.append(time.masked_fill(~fires, torch.inf))
    return torch.cat(parts, dim=1)


def check(x: Tensor, weight: Tensor) -> None:
    """Raise `DisagreementError` unless the search gives the closed form's spikes and gradients, in float64.

    The potential meets the ramp 1 − s where, with one more input of weight 1 at the window's start, it meets 1. Neurons
    that meet it before the window are left out: only a fixed threshold lets them fire there.
    """
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = dft_linear(x, weight, neuron=Neuron(derivative_clip=None))
    inputs = torch.cat([(1 - x).masked_fill(x == 0, torch.inf), torch.ones_like(x[:, :1])], dim=1)
    times = causal_set_linear(inputs, torch.cat([weight, torch.ones_like(weight[:, :1])], dim=1))
    pairs = [((2 - times).clamp_min(0)[times > 1], y[times > 1])]
    pairs += zip(*(torch.autograd.grad(spikes.sum(), (x, weight)) for spikes in pairs[0]), strict=True)
    if not all((ours - exact).norm() <= 1e-8 * exact.norm() for ours, exact in pairs):
        raise bench.DisagreementError("check: search and closed form must agree; they do not. Nothing was timed.")


def time_layers(fan_in: int, neurons: int, batch: int) -> list[bench.Row]:
    """Rows of times: forward and backward pass of a layer, half of whose inputs are silent."""
    x = (2 * torch.rand(batch, fan_in) - 1).relu()
    weight = (torch.randn(neurons, fan_in) * 0.5 * (2 / fan_in) ** 0.5).requires_grad_()
    check(x[:8], weight[:32].detach())
    layers = {CLOSED_FORM: (dft_linear, x), SEARCH: (causal_set_linear, activation_to_spike_time(x, 0))}

    def run(name: str) -> None:
        layer, inputs = layers[name][0], layers[name][1].detach().requires_grad_()
        y = layer(inputs, weight)
        torch.autograd.grad(y, (inputs, weight), y.isfinite().to(y.dtype))

    runs, rows = {name: partial(run, name) for name in layers}, []
    ms = bench.time_in_turns(runs, 7, x.device)
    for name, times in ms.items():
        row = {"op": "causal_set", "case": f"b{batch}-o{neurons}", "fan_in": fan_in, "pass": "forward_backward"}
        row |= {"provider": name, "dtype": "float32", **bench.percentiles(times, 4)}
        row["peak_mib"] = round(bench.transient_bytes(runs[name], x.device) / 2**20, 3)
        rows.append(row | {"ratio_to_closed_form": bench.ratio(times, ms[CLOSED_FORM])})
    return rows


def count_silence(neurons: int, batch: int) -> list[bench.Row]:
    """Rows of shares, by gain, rule and layer: silent neurons and late spikes."""
    x = load_images("sample", split="test", max_samples=batch).images.flatten(1) / 255
    sizes, rows = [x.shape[1], *[neurons] * DEPTH], []
    weights = [torch.randn(after, before) * (2 / before) ** 0.5 for before, after in pairwise(sizes)]
    for gain, rule in product(GAINS, MARKS):
        y, times = x, activation_to_spike_time(x, 0)
        for layer, weight in enumerate(weights, 1):
            inputs = times
            if rule == DYNAMIC:
                times = activation_to_spike_time(y := dft_linear(y, gain * weight), layer)
            else:
                times = causal_set_linear(inputs, gain * weight)
                times = times.masked_fill(times > layer + 1, torch.inf) if rule == DEADLINE else times
            fired, spikes = times.isfinite(), inputs.isfinite().sum(dim=1, keepdim=True)
            arrived = torch.searchsorted(inputs.sort(dim=1).values, times, right=True)
            late = ((spikes - arrived) * fired).sum() / (spikes * fired).sum()
            row = {"op": "over_sparsity", "gain": gain, "rule": rule, "layer": layer}
            row["silent"] = round(1 - fired.double().mean().item(), 4)
            rows.append(row | {"late": round(late.item(), 4) if fired.any() else ""})
    return rows


def draw(rows: list[bench.Row], silence: list[bench.Row], path: Path) -> None:
    """Draw times against inputs, and the share of silent neurons layer by layer, one panel per gain."""
    with bench.picture(path, 1, 1 + len(GAINS), size=(9, 3)) as (figure, ((first, *others),)):
        for name, (rule, (colour, marker)) in zip_longest((CLOSED_FORM, SEARCH), MARKS.items()):
            how = {"color": colour, "marker": marker, "markersize": 4}
            ms = [row["ms_p50"] for row in rows if row["provider"] == name]
            first.loglog(FAN_INS[: len(ms)], ms, label=name, **how)
            for panel, gain in zip(others, GAINS, strict=True):
                shares = [100 * row["silent"] for row in silence if (row["gain"], row["rule"]) == (gain, rule)]
                panel.plot(range(1, DEPTH + 1), shares, label=rule, **how)
                panel.set(title=f"silent neurons, %, gain {gain:g}", xlabel="layer", ylim=(-4, 104))
        first.set(title="forward and backward, ms", xlabel="inputs of a neuron", xticks=FAN_INS, xticklabels=FAN_INS)
        first.legend(frameon=False)
        figure.legend(*others[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def main(neurons: int = 256, batch_size: int = 32, output: Path = bench.RESULTS) -> None:
    """Time layers of `neurons` neurons, count silent ones, and write the CSV file and the picture to a folder."""
    torch.manual_seed(0)
    rows = [row for fan_in in FAN_INS for row in time_layers(fan_in, neurons, batch_size)]
    silence = count_silence(neurons, batch_size)
    for some in (rows, [row for row in silence if row["layer"] == DEPTH]):
        bench.print_table(list(some[0]), [list(row.values()) for row in some], width=150)
    path = bench.write(output, "causal_set-cpu", rows + silence, bench.environment(torch.device("cpu")))
    draw(rows, silence, path.with_suffix(".svg"))


if __name__ == "__main__":
    tyro.cli(main)
