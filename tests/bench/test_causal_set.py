"""The searched causal sets against simulated potentials, and what the script writes."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.bench.modules import modules

(causal_set,) = modules("causal_set")

SMALL = "--fan-ins 4 8 --outputs 6 --batch-size 8 --repeats 2".split()
search = causal_set.causal_set_linear


def simulate(spike_times: Sequence[float], weights: Sequence[float], threshold: float) -> float:
    """Spike time of one neuron: its potential, straight from one input spike to the next, until it is high enough."""
    potential, slope, now = 0.0, 0.0, -math.inf
    spikes = sorted((t, w) for t, w in zip(spike_times, weights, strict=True) if not math.isinf(t))
    for time, weight in [*spikes, (math.inf, 0.0)]:
        if slope > 0 and now + (threshold - potential) / slope <= time:
            return now + (threshold - potential) / slope
        if slope:
            potential += slope * (time - now)
        slope, now = slope + weight, time
    return math.inf


def random_layer(seed: int, batch: int, fan_in: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Spike times, among them silent inputs and equal ones, and weights; float64."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(batch, fan_in, generator=generator, dtype=torch.float64)
    times[:, ::3] = (8 * times[:, ::3]).round() / 8
    times = times.masked_fill(torch.rand(batch, fan_in, generator=generator) < 0.3, torch.inf)
    return times, torch.randn(outputs, fan_in, generator=generator, dtype=torch.float64)


layers = {"seed": st.integers(0, 10_000), "batch": st.integers(1, 4)}
layers |= {"fan_in": st.integers(1, 20), "outputs": st.integers(1, 6)}


@given(**layers, threshold=st.sampled_from([0.05, 0.3, 1.0]))
def test_search_finds_the_simulated_spikes(seed, batch, fan_in, outputs, threshold):
    times, weight = random_layer(seed, batch, fan_in, outputs)
    found = search(times, weight, threshold=threshold)
    expected = [[simulate(sample, row, threshold) for row in weight.tolist()] for sample in times.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(**layers)
def test_search_in_chunks_is_the_same(seed, batch, fan_in, outputs):
    times, weight = (tensor.requires_grad_() for tensor in random_layer(seed, batch, fan_in, outputs))
    whole = search(times, weight, threshold=0.3)
    upstream = torch.randn_like(whole)
    gradients = torch.autograd.grad(whole, (times, weight), upstream)
    for outputs_at_once in (1, 2, outputs + 1):
        chunked = search(times, weight, threshold=0.3, outputs_at_once=outputs_at_once)
        torch.testing.assert_close(chunked, whole, rtol=0, atol=0)
        torch.testing.assert_close(torch.autograd.grad(chunked, (times, weight), upstream), gradients)


def test_search_has_exact_gradients():
    times, weight = random_layer(1, 3, 9, 5)
    times += 1e-3 * torch.rand_like(times)  # at equal spike times there is no derivative

    def finite_spike_times(times: Tensor, weight: Tensor) -> Tensor:
        found = search(times, weight, threshold=0.3)
        return torch.where(found.isinf(), 0, found)

    spikes = search(times, weight, threshold=0.3)
    assert spikes.isfinite().any()
    assert spikes.isinf().any()
    assert times.isinf().any()
    assert torch.autograd.gradcheck(finite_spike_times, (times.requires_grad_(), weight.requires_grad_()))


def test_writes_times_of_all_contenders(run_script, monkeypatch):
    monkeypatch.setattr(causal_set, "SHORTEST_MS", 0.1)
    rows, _ = run_script(causal_set, *SMALL)
    assert [(row["fan_in"], row["pass"], row["provider"]) for row in rows] == [
        (fan_in, passes, provider)
        for fan_in in ("4", "8")
        for passes in ("forward", "forward_backward")
        for provider in ("closed form", "causal set", "causal set, chunked")
    ]
    assert all(float(row["ratio_to_closed_form"]) == 1 for row in rows if row["provider"] == "closed form")


def test_chunks_bound_the_memory():
    times, weight = torch.rand(16, 64).requires_grad_(), torch.randn(64, 64).requires_grad_()
    for name in causal_set.PASSES:
        whole, chunked = (
            causal_set.Contender("", lambda t, w, n=n: search(t, w, outputs_at_once=n), times, weight).peak_mib(name)
            for n in (None, 4)
        )
        assert whole > 3 * 16 * 64 * 64 * 4 / 2**20 > 4 * chunked


def test_times_nothing_that_disagrees(run_script, monkeypatch, tmp_path):
    monkeypatch.setattr(causal_set, "causal_set_linear", lambda *given, **options: 1.01 * search(*given, **options))
    monkeypatch.setattr(causal_set.Contender, "time", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit, match=r"causal_set: causal set must agree with the closed form.*got spikes"):
        run_script(causal_set, *SMALL)
    assert not list(tmp_path.iterdir())
