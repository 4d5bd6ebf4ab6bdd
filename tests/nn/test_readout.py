import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from tests.nn.common import activations, assert_finite_differences, randomised
from ttfs_triton.nn import (
    FirstSpikeReadout,
    Neuron,
    PotentialReadout,
    SpikeCounter,
    collect_statistics,
    first_spike_decision,
    first_spike_times,
    record_statistics,
)

sigmas = st.sampled_from([0.0, 0.25, 1.0])


def arrays(readout):
    bias = None if readout.bias is None else readout.bias.detach().numpy()
    return readout.effective_weight().detach().numpy(), bias


@settings(deadline=None, max_examples=30)
@given(
    samples=st.integers(1, 4),
    in_features=st.integers(2, 8),
    classes=st.integers(1, 5),
    at=st.sampled_from(["start", "end"]),
    bias=st.booleans(),
    standardise=st.booleans(),
    sigma=sigmas,
    seed=st.integers(0, 2**20),
)
def test_potential_matches_spike_by_spike_sum(samples, in_features, classes, at, bias, standardise, sigma, seed):
    readout = PotentialReadout(
        in_features,
        classes,
        at=at,
        bias=bias,
        weight_standardisation=standardise,
        neuron=Neuron(sigma),
        dtype=torch.float64,
    )
    randomised(readout, seed, scale=3.0)
    x = activations(samples, in_features, seed=seed)
    expected = oracles.membrane_potential(
        x.numpy(), *arrays(readout), at=1.0 if at == "end" else 0.0, psp_persistence=sigma
    )
    np.testing.assert_allclose(readout(x).detach().numpy(), expected, rtol=0, atol=1e-9)


ramps = st.sampled_from([(20.0, 1.0, 10.0), (1.0, 1.0, 0.0), (2.0, 4.0, 0.5), (5.0, 0.5, -1.0)])


@settings(deadline=None, max_examples=60)
@given(
    samples=st.integers(1, 4),
    in_features=st.integers(2, 8),
    classes=st.integers(1, 5),
    bias=st.booleans(),
    sigma=sigmas,
    ramp=ramps,
    seed=st.integers(0, 2**20),
)
def test_first_spikes_match_event_driven_neurons(samples, in_features, classes, bias, sigma, ramp, seed):
    threshold, window, initial_potential = ramp
    readout = FirstSpikeReadout(
        in_features,
        classes,
        bias=bias,
        neuron=Neuron(sigma),
        threshold=threshold,
        window=window,
        initial_potential=initial_potential,
        dtype=torch.float64,
    )
    randomised(readout, seed, scale=3.0)
    x = activations(samples, in_features, seed=seed)
    options = {"threshold": threshold, "ramp_end": window, "psp_persistence": sigma}
    times = oracles.output_spike_times(x.numpy(), *arrays(readout), initial_potential=initial_potential, **options)
    decision = readout.decide(x)
    np.testing.assert_allclose(decision.spike_times.detach().numpy(), times, rtol=0, atol=1e-9)
    logits = -np.minimum(times, window) * threshold / window
    np.testing.assert_allclose(readout(x).detach().numpy(), logits, rtol=0, atol=1e-8)
    for n in range(samples):
        assert decision.no_spike[n].item() == bool(np.isinf(times[n]).all())
        if not decision.no_spike[n]:
            assert times[n, decision.prediction[n]] == pytest.approx(times[n].min())


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_first_spikes_are_within_a_tick_of_clock_driven_neurons(sigma):
    readout = FirstSpikeReadout(10, 6, neuron=Neuron(sigma), threshold=4.0, window=2.0, initial_potential=1.0)
    randomised(readout.double(), seed=1, scale=3.0)
    x = activations(5, 10, seed=2)
    ticked = oracles.output_spike_times(
        x.numpy(),
        *arrays(readout),
        threshold=4.0,
        ramp_end=2.0,
        initial_potential=1.0,
        psp_persistence=sigma,
        neuron=oracles.clock_driven,
        dt=0.01,
    )
    delay = np.minimum(ticked, 2.0) - np.minimum(readout.decide(x).spike_times.detach().numpy(), 2.0)
    assert delay.min() >= -1e-9
    assert delay.max() <= 0.01 + 1e-9


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_first_spike_gradients_match_numeric_ones(sigma):
    readout = FirstSpikeReadout(6, 4, neuron=Neuron(sigma), threshold=2.0, initial_potential=0.5, dtype=torch.float64)
    randomised(readout, seed=3, scale=2.0)
    x = activations(5, 6, seed=4, silent=0.0, saturated=0.0).requires_grad_()
    times = readout.decide(x).spike_times
    assert (times == math.inf).any()
    assert ((times > 0) & (times < 1)).any()
    assert torch.autograd.gradcheck(lambda x, *_: readout(x), (x, *readout.parameters()), atol=1e-7)


@pytest.mark.parametrize("at", ["start", "end"])
def test_potential_gradients_match_numeric_ones(at):
    readout = randomised(PotentialReadout(6, 4, at=at, neuron=Neuron(0.5), dtype=torch.float64), seed=5)
    x = activations(5, 6, seed=6)
    assert_finite_differences(lambda: readout(x).square().sum(), list(readout.parameters()))


def test_first_spike_times_cover_every_case():
    potential = torch.tensor([2.0, 3.0, 1.0, 0.0, -1.0, 1.9, 0.0], requires_grad=True)
    slope = torch.tensor([-9.0, 0.0, 0.0, 2.0, 0.5, -5.0, -1.0], requires_grad=True)
    # θ = 2, S = 2: at or above the threshold, on the ramp, crossing by slope, too slow, falling.
    times = first_spike_times(potential, slope, threshold=2.0, window=2.0)
    torch.testing.assert_close(
        times.detach(), torch.tensor([0.0, 0.0, 1.0, 2 / 3, math.inf, math.inf, math.inf]), rtol=1e-6, atol=0
    )
    times.clamp(max=2.0).sum().backward()
    for gradient in (potential.grad, slope.grad):
        assert gradient is not None
        assert (gradient != 0).tolist() == [False, False, True, True, False, False, False]


def test_decision_reports_ties_and_missing_spikes(device):
    potential = torch.tensor([[0.1, 0.5, 0.2], [20.0, 25.0, 0.0], [-5.0, -4.0, -6.0], [1.0, 1.0, 0.0]])
    slope = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 3.0], [0.0, 0.0, 0.0]])
    potential, slope = potential.to(device), slope.to(device)
    decision = first_spike_decision(potential, slope)
    # Clear; tied at the start although the potentials differ; no spike: -4, -5, -3 at the end; tied inside.
    assert decision.prediction.tolist() == [1, 0, 2, 0]
    assert decision.tie.tolist() == [False, True, False, True]
    assert decision.no_spike.tolist() == [False, False, True, False]
    assert decision.spike_times[2].tolist() == [math.inf] * 3
    # A taller ramp separates the tie at the start.
    taller = first_spike_decision(potential, slope, threshold=30.0)
    assert taller.prediction.tolist() == [1, 1, 2, 0]
    assert taller.tie.tolist() == [False, False, False, True]


def test_potential_readout_decides_like_its_logits_without_slope():
    torch.manual_seed(0)
    readout = PotentialReadout(32, 10, neuron=Neuron(0.0))
    x = activations(64, 32, seed=1).float()
    decision = readout.decide(x)
    assert torch.equal(decision.prediction, readout(x).argmax(1))
    assert not decision.tie.any()
    assert not decision.no_spike.any()


@pytest.mark.parametrize("readout_type", [PotentialReadout, FirstSpikeReadout])
def test_readouts_compute_in_the_precision_of_their_weights(readout_type):
    readout = readout_type(16, 5)
    x = activations(4, 16, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = readout(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, readout(x.float()), rtol=0, atol=0)


def test_output_spikes_are_counted_apart():
    x = activations(8, 12, seed=1)
    for readout in (
        PotentialReadout(12, 5, dtype=torch.float64),
        FirstSpikeReadout(12, 5, threshold=1.0, initial_potential=0.0, dtype=torch.float64),
    ):
        randomised(readout, seed=2, scale=3.0)
        readout.statistics = SpikeCounter((5,))
        with record_statistics(readout):
            readout(x)
        [counts] = collect_statistics(readout)
        times = oracles.output_spike_times(x.numpy(), *arrays(readout), threshold=1.0, ramp_end=1.0)
        assert counts.kind == "readout"
        assert counts.spikes == np.isfinite(times).sum() > 0
        assert counts.saturated == (times == 0).sum() > 0
        expected = np.where(np.isfinite(times), 1 - times, 0)
        np.testing.assert_allclose(readout.output_activations(x).detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PotentialReadout(4, 2, at="middle"), 'at must be "start" or "end"; got \'middle\''),
        (lambda: FirstSpikeReadout(4, 0), "FirstSpikeReadout: sizes must be positive"),
        (lambda: FirstSpikeReadout(4, 2, threshold=0.0), "FirstSpikeReadout: threshold must be positive; got 0.0"),
        (lambda: FirstSpikeReadout(4, 2, window=-1.0), "window must be positive; got -1.0"),
        (
            lambda: FirstSpikeReadout(4, 2, initial_potential=20.0),
            r"initial_potential must be below threshold \(20.0\); got 20.0",
        ),
    ],
)
def test_readouts_reject_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
