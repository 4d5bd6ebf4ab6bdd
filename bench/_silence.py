"""How many neurons of a deep network stay silent, under the dynamic and under a fixed firing threshold.

Both rules get the very same weights, drawn at random; nothing is trained. So the shares say where training starts, not
where it ends, and nothing about remedies of earlier methods, such as weights with a positive mean or penalties.

A fixed threshold has no window of its own. It is given two deadlines: layer l's window under the dynamic threshold,
until (l + 1)·Tw, so that both answer at the same time; and none, which lets every neuron with a rising potential fire
in the end, however late.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels import dft_linear
from ttfs_triton.nn import activation_to_spike_time

DYNAMIC = "dynamic"
FIXED = "fixed, same deadline"
FIXED_FREE = "fixed, no deadline"
RULES = (DYNAMIC, FIXED, FIXED_FREE)

Search = Callable[[Tensor, Tensor], Tensor]


def draw_weights(fan_in: int, width: int, depth: int, gain: float, generator: torch.Generator) -> list[Tensor]:
    """Kaiming-normal weights times gain, as our layers draw theirs: std = gain·√(2 / fan_in)."""
    sizes = [fan_in] + [width] * depth
    return [
        torch.randn(outputs, inputs, generator=generator) * gain * (2 / inputs) ** 0.5
        for inputs, outputs in pairwise(sizes)
    ]


def spike_times_of(rule: str, x: Tensor, weights: list[Tensor], search: Search, backend: str) -> Iterator[Tensor]:
    """Absolute spike times of the inputs and then of each layer, [batch, neurons], in windows; inf = silent.

    Args:
        rule: one of RULES.
        x: [batch, inputs], activations, 1 = the earliest spike.
        weights: of each layer, [outputs, inputs], in threshold heights a window.
        search: finds spike times under the fixed threshold.
        backend: of `dft_linear`.
    """
    times = activation_to_spike_time(x, 0)
    yield times
    for layer, weight in enumerate(weights, start=1):
        if rule == DYNAMIC:
            x = dft_linear(x, weight, backend=backend)
            times = activation_to_spike_time(x, layer)
        else:
            times = search(times, weight)
        if rule == FIXED:
            times = times.masked_fill(times > layer + 1, torch.inf)
        yield times


def silent_shares(
    x: Tensor, weights: list[list[Tensor]], search: Search, backend: str
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Rule, layer and what its neurons do, over all draws of the weights."""
    for rule in RULES:
        draws = [list(spike_times_of(rule, x, draw, search, backend)) for draw in weights]
        for layer in range(1, len(draws[0])):
            yield rule, layer, describe([(draw[layer - 1], draw[layer]) for draw in draws], layer)


def describe(draws: list[tuple[Tensor, Tensor]], layer: int) -> dict[str, Any]:
    """What the neurons of a layer do.

    Args:
        draws: spike times of inputs and outputs, [batch, neurons], for each draw of the weights.
        layer: its number; under the dynamic threshold its window starts at this time.
    Returns:
        silent_share, with silent_min and silent_max over the draws; at_start_share, of neurons that fire just when
        the window starts, in which the dynamic threshold keeps no more than that they were strong enough; late_share,
        of spikes that come after the neuron they reach has fired, among those that reach one that fires; spike_time,
        the median in windows. The last two are empty where nothing fires.
    """
    silent = [times.isinf().double().mean().item() for _, times in draws]
    late = total = 0
    for inputs, times in draws:
        spikes = inputs.isfinite().sum(dim=1, keepdim=True)
        arrived = torch.searchsorted(inputs.sort(dim=1).values, times, right=True)
        late += (spikes - arrived)[times.isfinite()].sum().item()
        total += spikes.expand_as(times)[times.isfinite()].sum().item()
    fired = torch.cat([times[times.isfinite()] for _, times in draws])
    return {
        "silent_share": round(sum(silent) / len(silent), 4),
        "silent_min": round(min(silent), 4),
        "silent_max": round(max(silent), 4),
        "at_start_share": round(sum((times == layer).double().mean().item() for _, times in draws) / len(draws), 4),
        "late_share": round(late / total, 4) if total else "",
        "spike_time": round(fired.median().item(), 2) if len(fired) else "",
    }
