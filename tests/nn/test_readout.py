import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests import oracles
from tests.nn.common import activations, randomised
from ttfs_triton.chip import simulate
from ttfs_triton.nn import Grid, LatencyEncoder, Neuron, Readout, decide, first_spike_decision, first_spike_times
from ttfs_triton.nn.layers import DFTLinear
from ttfs_triton.nn.prepare import put_on_grid
from ttfs_triton.nn.statistics import SpikeCounter, collect_statistics, record_statistics


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(2, 8), st.integers(1, 5)),
    options=st.fixed_dictionaries({"bias": st.booleans(), "weight_standardisation": st.booleans()}),
    sigma=st.sampled_from([0.0, 0.25, 1.0]),
    ramp=st.sampled_from([(20.0, 10.0), (1.0, 0.0), (2.0, 0.5), (5.0, -1.0)]),
    seed=st.integers(0, 2**20),
)
@torch.no_grad()
def test_readouts_match_event_driven_and_clocked_neurons(size, options, sigma, ramp, seed):
    ramp = dict(zip(("threshold", "initial_potential"), ramp, strict=True))
    readout = Readout(*size, dtype=torch.float64, neuron=Neuron(sigma), at="first_spike", **options, **ramp)
    x = activations(4, size[0], seed=seed)
    bias = randomised(readout, seed, scale=3.0).bias
    operands = x.numpy(), readout.effective_weight().numpy(), None if bias is None else bias.numpy()
    of_neurons = ramp | {"psp_persistence": sigma}
    times = oracles.output_spike_times(*operands, **of_neurons)
    decision = readout.decide(x)
    np.testing.assert_allclose(decision.spike_times.numpy(), times, rtol=0, atol=1e-9)
    np.testing.assert_allclose(readout(x).numpy(), -np.minimum(times, 1) * ramp["threshold"], rtol=0, atol=1e-8)
    assert decision.no_spike.tolist() == np.isinf(times).all(1).tolist()
    chosen = np.take_along_axis(times, decision.prediction.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(chosen, times.min(1), rtol=0, atol=1e-9)
    ticked = oracles.output_spike_times(*operands, neuron=oracles.clock_driven, dt=0.01, **of_neurons)
    delay = np.minimum(ticked, 1) - np.minimum(times, 1)
    assert ((delay >= -1e-9) & (delay <= 0.01 + 1e-9)).all()
    for at, time in (("potential_start", 0.0), ("potential_end", 1.0)):
        readout.at = at
        expected = oracles.membrane_potential(*operands, at=time, psp_persistence=sigma)
        np.testing.assert_allclose(readout(x).numpy(), expected, rtol=0, atol=1e-9)


def test_decision_reports_ties_and_missing_spikes(device):
    potential = torch.tensor([[0.1, 0.5, 0.2], [20.0, 25.0, 0.0], [-5.0, -4.0, -6.0], [1.0, 1.0, 0.0]], device=device)
    slope = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 3.0], [0.0, 0.0, 0.0]], device=device)
    times = first_spike_times(potential.requires_grad_(), slope.requires_grad_(), threshold=20.0)
    decision = first_spike_decision(times, potential + slope)
    # Clear; tied at the start although the potentials differ; no spike: -4, -5, -3 at the end; tied inside.
    assert decision.prediction.tolist() == [1, 0, 2, 0]
    assert decision.tie.tolist() == [False, True, False, True]
    assert decision.no_spike.tolist() == [False, False, True, False]
    times.clamp(max=1.0).sum().backward()
    inside = (times > 0) & (times < 1)
    assert torch.equal(potential.grad != 0, inside)
    assert torch.equal(slope.grad != 0, inside)


@pytest.mark.parametrize("grid", [None, Grid(8, 8)])
def test_highest_potential_at_the_windows_end_decides_without_output_spikes(grid):
    readout = Readout(3, 2, bias=False, weight_standardisation=False, threshold=1.0, initial_potential=0.0)
    readout.weight.data = torch.tensor([[-1.0, 0.0, 0.0], [0.0, -1.5, -1.5]])
    network, x = nn.Sequential(LatencyEncoder(), readout), torch.tensor([[1.0, 0.125, 0.125]])
    put_on_grid(network, grid)
    decision, simulated = decide(network, x), simulate(network, [x], steps=8)
    # At the start potentials are -1 and -0.4, at the end -2 and -3.4.
    assert (decision.prediction.tolist(), decision.no_spike.tolist()) == ([0], [True])
    assert (simulated.first_spike_predictions.tolist(), simulated.no_spike) == ([0], 1)


@pytest.mark.parametrize("at", ["potential_start", "first_spike"])
def test_readouts_compute_in_the_precision_of_their_weights(at):
    readout = Readout(16, 5, at=at, neuron=Neuron(0.0))
    x = activations(64, 16, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = readout(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, readout(x.float()), rtol=0, atol=0)
    assert torch.equal(readout.decide(x.float()).prediction, low.argmax(1))  # without slope, both decide alike


@pytest.mark.parametrize("grid", [None, Grid(8, 6)])
@pytest.mark.parametrize("options", [{}, {"threshold": 1.0, "initial_potential": 0.0, "at": "first_spike"}])
def test_output_spikes_are_counted_apart_on_the_hidden_layers_ramp(grid, options):
    readout, hidden, x = Readout(12, 5, **options), DFTLinear(12, 5), activations(8, 12, seed=1).float()
    randomised(readout, seed=2, scale=3.0).statistics = SpikeCounter((5,))
    hidden.load_state_dict(readout.state_dict())
    for layer in (hidden, readout):
        layer.put_on_grid(grid)
    x = x if grid is None else (8 * x).round() / 8
    with record_statistics(readout):
        readout(x)
    [counts] = collect_statistics(readout)
    spikes = hidden(x)
    assert (counts.kind, counts.spikes, counts.saturated) == ("readout", (spikes > 0).sum(), (spikes == 1).sum())
    assert 0 < counts.saturated < counts.spikes
