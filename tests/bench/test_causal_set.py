"""`bench/causal_set.py`: the search for causal sets, and what is timed and counted."""

import math

import torch

from tests.bench.modules import modules

bench, causal_set = modules("_bench", "causal_set")


def first_crossing(times: list[float], weight: list[float]) -> float:
    """Spike time of one neuron: after each input in turn, its potential may meet 1 before the next."""
    inputs = sorted((time, w) for time, w in zip(times, weight, strict=True) if time < math.inf)
    for count in range(1, len(inputs) + 1):
        slope = sum(w for _, w in inputs[:count])
        following = inputs[count][0] if count < len(inputs) else math.inf
        if slope > 0:
            time = (1 + sum(w * t for t, w in inputs[:count])) / slope
            if inputs[count - 1][0] <= time <= following:
                return time
    return math.inf


def test_search_finds_the_first_crossing(monkeypatch):
    monkeypatch.setattr(causal_set, "CHUNK", 7)
    times = torch.rand(5, 12, dtype=torch.float64)
    times[torch.rand(5, 12) < 0.3] = torch.inf
    times[0] = torch.inf
    weight = torch.randn(20, 12, dtype=torch.float64) + 0.1
    spike_times = causal_set.causal_set_linear(times, weight)
    expected = [[first_crossing(inputs, synapses) for synapses in weight.tolist()] for inputs in times.tolist()]
    torch.testing.assert_close(spike_times, torch.tensor(expected, dtype=torch.float64))
    assert 0 < spike_times.isinf().double().mean() < 1
