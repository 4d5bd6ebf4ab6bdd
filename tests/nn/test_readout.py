import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from tests.nn.common import activations, randomised
from ttfs_triton.nn import (
    Neuron,
    Readout,
    SpikeCounter,
    collect_statistics,
    first_spike_decision,
    first_spike_times,
    record_statistics,
)

ramps = st.sampled_from([(20.0, 10.0), (1.0, 0.0), (2.0, 0.5), (5.0, -1.0)])
layers = {
    "samples": st.integers(1, 4),
    "in_features": st.integers(2, 8),
    "classes": st.integers(1, 5),
    "options": st.fixed_dictionaries({"bias": st.booleans(), "weight_standardisation": st.booleans()}),
    "sigma": st.sampled_from([0.0, 0.25, 1.0]),
    "seed": st.integers(0, 2**20),
}


def arrays(readout):
    bias = None if readout.bias is None else readout.bias.detach().numpy()
    return readout.effective_weight().detach().numpy(), bias


@settings(max_examples=30)
@given(at=st.sampled_from(["potential_start", "potential_end"]), **layers)
def test_potential_matches_spike_by_spike_sum(samples, in_features, classes, at, options, sigma, seed):
    readout = Readout(in_features, classes, at=at, neuron=Neuron(sigma), dtype=torch.float64, **options)
    randomised(readout, seed, scale=3.0)
    x = activations(samples, in_features, seed=seed)
    expected = oracles.membrane_potential(
        x.numpy(), *arrays(readout), at=float(at == "potential_end"), psp_persistence=sigma
    )
    np.testing.assert_allclose(readout(x).detach().numpy(), expected, rtol=0, atol=1e-9)


@settings(max_examples=60)
@given(ramp=ramps, **layers)
def test_first_spikes_match_event_driven_and_clocked_neurons(samples, in_features, classes, options, sigma, ramp, seed):
    ramp = dict(zip(("threshold", "initial_potential"), ramp, strict=True))
    options |= ramp | {"neuron": Neuron(sigma), "at": "first_spike"}
    readout = randomised(Readout(in_features, classes, dtype=torch.float64, **options), seed, scale=3.0)
    x = activations(samples, in_features, seed=seed)
    of_neurons = ramp | {"psp_persistence": sigma}
    times = oracles.output_spike_times(x.numpy(), *arrays(readout), **of_neurons)
    decision = readout.decide(x)
    np.testing.assert_allclose(decision.spike_times.detach().numpy(), times, rtol=0, atol=1e-9)
    logits = -np.minimum(times, 1) * ramp["threshold"]
    np.testing.assert_allclose(readout(x).detach().numpy(), logits, rtol=0, atol=1e-8)
    assert decision.no_spike.tolist() == np.isinf(times).all(1).tolist()
    chosen = np.take_along_axis(times, decision.prediction.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(chosen, times.min(1), rtol=0, atol=1e-9)
    ticked = oracles.output_spike_times(x.numpy(), *arrays(readout), neuron=oracles.clock_driven, dt=0.01, **of_neurons)
    delay = np.minimum(ticked, 1) - np.minimum(times, 1)
    assert ((delay >= -1e-9) & (delay <= 0.01 + 1e-9)).all()


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_first_spike_gradients_match_numeric_ones(sigma):
    """Gradients of potentials are tested with whole networks."""
    options = {"neuron": Neuron(sigma), "threshold": 2.0, "initial_potential": 0.5, "at": "first_spike"}
    readout = randomised(Readout(6, 4, dtype=torch.float64, **options), seed=3, scale=2.0)
    x = activations(5, 6, seed=4, silent=0.0, saturated=0.0).requires_grad_()
    times = readout.decide(x).spike_times
    assert (times == math.inf).any()
    assert ((times > 0) & (times < 1)).any()
    assert torch.autograd.gradcheck(lambda x, *_: readout(x), (x, *readout.parameters()), atol=1e-7)


def test_first_spike_times_cover_every_case():
    potential = torch.tensor([2.0, 3.0, 1.0, 0.0, -1.0, 1.9, 0.0], requires_grad=True)
    slope = torch.tensor([-9.0, 0.0, 0.0, 2.0, 0.5, -5.0, -1.0], requires_grad=True)
    # θ = 2: at or above the threshold, on the ramp, crossing by slope, too slow, falling.
    times = first_spike_times(potential, slope, threshold=2.0)
    torch.testing.assert_close(
        times.detach(), torch.tensor([0.0, 0.0, 0.5, 0.5, math.inf, math.inf, math.inf]), rtol=1e-6, atol=0
    )
    times.clamp(max=1.0).sum().backward()
    for gradient in (potential.grad, slope.grad):
        assert (gradient != 0).tolist() == [False, False, True, True, False, False, False]


def test_decision_reports_ties_and_missing_spikes(device):
    potential = torch.tensor([[0.1, 0.5, 0.2], [20.0, 25.0, 0.0], [-5.0, -4.0, -6.0], [1.0, 1.0, 0.0]])
    slope = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 3.0], [0.0, 0.0, 0.0]])
    potential, slope = potential.to(device), slope.to(device)
    decision = first_spike_decision(first_spike_times(potential, slope, threshold=20.0), potential + slope)
    # Clear; tied at the start although the potentials differ; no spike: -4, -5, -3 at the end; tied inside.
    assert decision.prediction.tolist() == [1, 0, 2, 0]
    assert decision.tie.tolist() == [False, True, False, True]
    assert decision.no_spike.tolist() == [False, False, True, False]
    assert decision.spike_times[2].tolist() == [math.inf] * 3


@pytest.mark.parametrize("at", ["potential_start", "first_spike"])
def test_readouts_compute_in_the_precision_of_their_weights(at):
    readout = Readout(16, 5, at=at, neuron=Neuron(0.0))
    x = activations(64, 16, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = readout(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, readout(x.float()), rtol=0, atol=0)
    assert torch.equal(readout.decide(x.float()).prediction, low.argmax(1))  # without slope, both decide alike


@pytest.mark.parametrize("options", [{}, {"threshold": 1.0, "initial_potential": 0.0, "at": "first_spike"}])
def test_output_spikes_are_counted_apart(options):
    readout, x = Readout(12, 5, dtype=torch.float64, **options), activations(8, 12, seed=1)
    randomised(readout, seed=2, scale=3.0).statistics = SpikeCounter((5,))
    with record_statistics(readout):
        readout(x)
    [counts] = collect_statistics(readout)
    times = oracles.output_spike_times(x.numpy(), *arrays(readout), threshold=1.0)
    assert (counts.kind, counts.spikes, counts.saturated) == ("readout", np.isfinite(times).sum(), (times == 0).sum())
    assert 0 < counts.saturated < counts.spikes
