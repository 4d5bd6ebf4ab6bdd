"""The neuron of earlier TTFS methods: a fixed firing threshold, inputs at any time, causal sets found by sorting.

Inputs still arrive while a neuron may already fire, so which of them make it fire has to be searched. The search is
vectorised over samples and neurons as in Mostafa (2017) and Zhou et al. (2021), and made as cheap as PyTorch's own
operations allow: one argsort for all neurons of a sample, silent inputs cut off, sums in place, a test that divides
nothing, and a backward pass that keeps neither order nor sums.
"""

from typing import Any

import torch
from torch import Tensor


def causal_set_linear(
    spike_times: Tensor, weight: Tensor, *, threshold: float = 1.0, outputs_at_once: int | None = None
) -> Tensor:
    """Spike times of ReL-PSP neurons: t = (θ + Σ w·t_i) / Σ w over the inputs that arrive before t.

    Args:
        spike_times: [batch, fan_in] of the inputs, any unit, inf = silent; float32 or float64.
        weight: [outputs, fan_in], in threshold heights per unit of time.
        threshold: θ, positive.
        outputs_at_once: neurons whose causal sets are searched together. The search holds some tensors of
            [batch, outputs_at_once, fan_in] at a time. None: all neurons.
    Returns:
        [batch, outputs] spike times, inf = silent.
    Gradient: for spike_times and weight, with the causal set that the forward pass found.
    Raises:
        ValueError: shapes, the threshold or outputs_at_once are not as described.
    Source: Wei et al., ICCV 2023, Eq. 2 to 4 and section 2.2.
    """
    if (
        spike_times.dim() != 2
        or weight.dim() != 2
        or spike_times.shape[1] != weight.shape[1]
        or not (spike_times.numel() and weight.numel())
    ):
        raise ValueError(
            "causal_set_linear: spike_times and weight must be [batch, fan_in] and [outputs, fan_in], not empty; got "
            f"{list(spike_times.shape)} and {list(weight.shape)}. Flatten other dimensions."
        )
    if not threshold > 0:
        raise ValueError(f"causal_set_linear: threshold must be positive; got {threshold}. Potentials start at 0.")
    at_once = weight.shape[0] if outputs_at_once is None else outputs_at_once
    if at_once < 1:
        raise ValueError(f"causal_set_linear: outputs_at_once must be at least 1; got {at_once}. None takes all.")
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
        arrival, following: [batch, spikes], sorted spike times (0 where silent), and those of the next input (nan where
            silent, inf after the last).
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
