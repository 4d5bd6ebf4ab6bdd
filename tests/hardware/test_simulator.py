import dataclasses
import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.hardware.clocked_oracle import Neurons, Work, conv2d, earliest, linear
from tests.nn.common import activations, randomised
from ttfs_triton.hardware.counter import count
from ttfs_triton.hardware.quantise import quantise_weight
from ttfs_triton.hardware.simulator import simulate
from ttfs_triton.hardware.tally import LayerActivity
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTConv2d,
    DFTLinear,
    EarliestSpikePool2d,
    FirstSpikeReadout,
    LatencyEncoder,
    PotentialReadout,
    cnn1,
    vgg11,
)

WORK = tuple(field.name for field in dataclasses.fields(Work))


def linear_network(weight, readout=None, *, bias=0.0, sigma=1.0):
    """A latency encoder, one hidden layer with these weights, a readout."""
    weight = torch.tensor(weight)
    layer = DFTLinear(*weight.shape[::-1], weight_standardisation=False, psp_persistence=sigma)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.fill_(bias)
    return nn.Sequential(LatencyEncoder(), layer, readout or PotentialReadout(len(weight), 2))


def readout_with(weight, kind=FirstSpikeReadout, **options):
    """A readout with these weights and no bias."""
    weight = torch.tensor(weight)
    readout = kind(*weight.shape[::-1], bias=False, weight_standardisation=False, **options)
    with torch.no_grad():
        readout.weight.copy_(weight)
    return readout


def small_network(seed, sigma=1.0, readout=None):
    """Padding, stride, groups, pooling and both kinds of layers, in few neurons."""
    network = nn.Sequential(
        LatencyEncoder(max_value=2.0),
        DFTConv2d(2, 4, 3, padding=1, groups=2, psp_persistence=sigma),
        EarliestSpikePool2d(2, 1),
        nn.Dropout(),
        DFTConv2d(4, 3, (2, 3), stride=2, padding=(0, 1), psp_persistence=sigma),
        nn.Flatten(),
        DFTLinear(12, 5, psp_persistence=sigma),
        readout or PotentialReadout(5, 3, psp_persistence=sigma),
    )
    return randomised(network, seed)


def neurons_of(layer, *, steps, bits, compare_at, gating, **ramp):
    quantised = quantise_weight(layer.effective_weight(), bits)
    initial = np.zeros(len(quantised.unit)) if layer.bias is None else layer.bias.detach().double().numpy()
    return Neurons(
        quantised.integers.long().numpy(),
        quantised.unit.numpy(),
        initial + ramp.pop("initial_potential", 0.0),
        steps,
        middle=compare_at == "middle",
        gating=gating,
        psp_persistence=layer.psp_persistence,
        **ramp,
    )


def read_out(readout, stamps, options):
    """Instants of output spikes, and the work until the decision."""
    ramp = dict(threshold=readout.threshold, window=readout.window, initial_potential=readout.initial_potential)
    work = neurons_of(readout, **options, **ramp)
    instants, *_ = linear(neurons_of(readout, **options | {"gating": False}, **ramp), stamps)
    if isinstance(readout, FirstSpikeReadout):
        linear(work, stamps, instants.min(1) if options["gating"] else None)
        return work.stamps(instants), work.work
    linear(work, stamps, np.full(len(stamps), -1))
    if readout.at == "end" and readout.psp_persistence:
        moving = (stamps < options["steps"]).any(1).sum() if options["gating"] else len(stamps)
        updates = int(moving) * instants.shape[1] * options["steps"]
        work.work += Work(firing_updates=updates, state_reads=2 * updates, state_writes=updates)
    return work.stamps(instants), work.work


def by_loops(network, images, options):
    """Stamps of each stage of `small_network`, work of each layer, and spikes delivered."""
    _, conv1, _, _, conv2, _, fc, readout = network
    steps = options["steps"]
    late = (1 - (images / 2).clamp(0, 1).double()).numpy() * steps
    stamp = np.ceil(late - 0.5) if options["compare_at"] == "middle" else np.ceil(late)
    stamps = [np.where(images.numpy() > 0, stamp.clip(0, steps), steps).astype(np.int64)]
    layers = [neurons_of(layer, **options) for layer in (conv1, conv2, fc)]
    stamps.append(layers[0].stamps(conv2d(layers[0], stamps[0], (1, 1), (1, 1), (1, 1), 2)))
    pooled = earliest(stamps[1], 2, 1)
    stamps.append(layers[1].stamps(conv2d(layers[1], pooled, (2, 2), (0, 1), (1, 1), 1)))
    stamps.append(layers[2].stamps(linear(layers[2], stamps[2].reshape(len(images), -1))[0]))
    last, work = read_out(readout, stamps[3], options)
    delivered = [int((values < steps).sum()) for values in (pooled, stamps[2], stamps[3])]
    return [*stamps, last], [*(layer.work for layer in layers), work], [*delivered, 0]


READOUTS = {
    "start": lambda sigma: PotentialReadout(5, 3, psp_persistence=sigma),
    "end": lambda sigma: PotentialReadout(5, 3, at="end", psp_persistence=sigma),
    "first_spike": lambda sigma: FirstSpikeReadout(5, 3, psp_persistence=sigma, threshold=4.0, initial_potential=1.0),
    "wide": lambda sigma: FirstSpikeReadout(
        5, 3, psp_persistence=sigma, threshold=2.0, window=1.3, initial_potential=0
    ),
}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(READOUTS)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["middle", "start"]),
    st.booleans(),
    st.integers(1, 7),
    st.sampled_from([2, 5, 8]),
    st.integers(0, 10**6),
)
def test_simulation_equals_loops_over_steps_and_synapses(readout, sigma, compare_at, gating, steps, bits, seed):
    network = small_network(seed, sigma, READOUTS[readout](sigma))
    images = 2 * activations(2, 2, 5, 4, seed=seed).float()
    options = dict(steps=steps, bits=bits, compare_at=compare_at, gating=gating)
    stamps, work, delivered = by_loops(network, images, options)
    options["weight_bits"] = options.pop("bits")
    found = simulate(network, [images], **options, keep_spike_times=True)
    assert found.spike_steps is not None
    for expected, kept in zip(stamps, found.spike_steps.values(), strict=True):
        np.testing.assert_array_equal(kept.numpy(), expected)
    for layer, activity, expected in zip(found.counts.layers, found.activity, work, strict=True):
        assert layer.synaptic_operations == expected.synaptic_operations
        assert [getattr(activity, name) for name in WORK[1:]] == [getattr(expected, name) for name in WORK[1:]]
    assert [layer.spikes_delivered for layer in found.counts.layers] == delivered
    for layer, expected in zip(found.counts.layers[:-1], stamps[1:], strict=False):
        assert layer.spikes == (expected < steps).sum()
        assert layer.saturated == (expected == 0).sum()
        assert layer.histogram == tuple((expected == step).sum() for step in range(steps))
        assert layer.summed_spike_time == pytest.approx(expected[expected < steps].sum() / steps)
        assert layer.never_active_per_sample == (expected == steps).all(0).sum()
    assert found.counts.input.spikes == (stamps[0] < steps).sum()
    assert found.counts.input.saturated == (stamps[0] == 0).sum()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(sorted(READOUTS)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["middle", "start"]),
    st.sampled_from([1, 4, 16, 33]),
    st.sampled_from([2, 8, 16, None]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_engines_are_equal(readout, sigma, compare_at, steps, bits, per_channel, seed):
    network = small_network(seed, sigma, READOUTS[readout](sigma))
    batch = (2 * activations(6, 2, 5, 4, seed=seed).float(), torch.arange(6) % 3)
    options = dict(steps=steps, weight_bits=bits, per_channel=per_channel, compare_at=compare_at, keep_spike_times=True)
    summed, stepped = (simulate(network, [batch], **options, engine=engine) for engine in ("summed", "stepped"))
    assert_same(summed, stepped)


def assert_same(one, other):
    for name in ("samples", "correct", "first_spike_correct", "ties", "no_spike", "counts", "activity"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("predictions", "first_spike_predictions", "latency_steps"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name, stamps in one.spike_steps.items():
        assert torch.equal(stamps, other.spike_steps[name])


def test_engines_are_equal_on_a_network_with_an_analog_encoder():
    network = vgg11(width=1 / 16, batch_norm=False)
    images = torch.rand(3, 3, 32, 32)
    assert_same(*(simulate(network, [images], steps=8, engine=e, keep_spike_times=True) for e in ("summed", "stepped")))


def test_counts_equal_those_of_the_closed_form_where_stamps_lose_nothing():
    # σ = 0 and binary activations: every spike is at a window's start, every potential a sum of weights.
    network = small_network(3, 0.0)
    for layer in network:
        if isinstance(layer, DFTConv2d | DFTLinear):
            nn.init.constant_(layer.bias, 0.0)
            layer.weight_gain = None
            with torch.no_grad():
                layer.weight.copy_(2 * layer.weight.sign())
    images = 2 * (torch.rand(7, 2, 5, 4) > 0.5).float()
    expected = count(network, [images], histogram_bins=8)
    found = simulate(network, [images[:3], images[3:]], steps=8, weight_bits=None).counts
    for one, other in zip(expected.layers[:-1], found.layers[:-1], strict=True):
        assert dataclasses.replace(one, summed_spike_time=0.0) == dataclasses.replace(other, summed_spike_time=0.0)
        assert one.summed_spike_time == pytest.approx(other.summed_spike_time, abs=1e-4)
    assert found.input == expected.input
    assert found.synaptic_operations_by_sample == expected.synaptic_operations_by_sample
    last = (found.layers[-1], expected.layers[-1])
    for name in ("name", "kind", "neurons_per_sample", "inputs_per_sample", "synapses", "weights", "biases"):
        assert getattr(last[0], name) == getattr(last[1], name)
    for name in ("inputs_active", "synaptic_operations", "dense_macs", "spikes", "spikes_delivered"):
        assert getattr(last[0], name) == getattr(last[1], name)


def test_counts_approach_those_of_the_closed_form():
    network = small_network(5, 0.25)
    images = 2 * torch.rand(50, 2, 5, 4)
    expected, found = count(network, [images]), simulate(network, [images], steps=4096, weight_bits=None).counts
    for one, other in zip(expected.layers, found.layers, strict=True):
        assert other.spikes == pytest.approx(one.spikes, abs=0.01 * one.neurons)
        assert other.synaptic_operations == pytest.approx(one.synaptic_operations, rel=0.01)
        assert other.summed_spike_time == pytest.approx(one.summed_spike_time, rel=0.02, abs=0.2)


def test_analog_encoder_counts_and_stamps():
    layer = randomised(AnalogEncoder(1, 2, 2, mean=[0.5], std=[0.25], batch_norm=True), 0).eval()
    network = nn.Sequential(layer, nn.Flatten(), PotentialReadout(8, 2))
    images = torch.rand(4, 1, 3, 3)
    images[0, 0, 0, 0] = 0.5  # the mean: its products are with zero
    found = simulate(network, [images], steps=1024, weight_bits=None, keep_spike_times=True)
    first = found.counts.layers[0]
    assert (first.kind, first.analog_macs, first.dense_macs, first.synaptic_operations) == ("analog", 128, 128, 0)
    assert (first.nonzero_macs, first.inputs_active) == (126, 35)
    expected = layer(images)
    assert found.spike_steps is not None
    error = expected - (1 - found.spike_steps["0"] / 1024)
    assert error.abs().max() <= 0.5 / 1024 + 1e-5
    active = found.activity[0]
    assert (active.integration_updates, active.firing_updates, active.state_writes) == (0, 0, 0)
    assert active.state_reads == active.compares > 0
    coarse = simulate(network, [images], steps=1024, weight_bits=2, keep_spike_times=True)
    assert coarse.spike_steps is not None
    assert not torch.equal(coarse.spike_steps["0"], found.spike_steps["0"])  # its weights are quantised too


def test_hand_count_of_one_neuron():
    # Weight 1 is 127 units of 1/127. The input fires at step 1 of 4; 3/4 of the potential is there when the window
    # starts, and it meets the ramp at s = (1 − 3/4)/(1 + 1) = 1/8: in the middle of step 0.
    network = linear_network([[1.0]], readout_with([[0.5], [-0.5]], PotentialReadout))
    found = simulate(network, [torch.tensor([[0.75]])], steps=4, keep_spike_times=True)
    assert found.spike_steps is not None
    assert {name: stamps.flatten().tolist() for name, stamps in found.spike_steps.items()}["1"] == [0]
    # Slope at step 1: updates in steps 1, 2, 3; compares at the start and in the middle of step 0, an update between.
    assert found.activity[0] == LayerActivity("1", 3, 1, 2, 1 + 2 * 3 + 1 + 2, 1 + 3 + 1)
    assert found.activity[0].neuron_updates == 4
    # By comparing at the start of a step: at 1/4 the potential is above the ramp for the first time.
    late = simulate(network, [torch.tensor([[0.75]])], steps=4, compare_at="start", keep_spike_times=True)
    assert late.spike_steps is not None
    assert late.spike_steps["1"].item() == 1
    assert late.activity[0] == LayerActivity("1", 3, 1, 2, 1 + 2 * 3 + 1 + 2, 1 + 3 + 1)
    always = simulate(network, [torch.tensor([[0.75]])], steps=4, gating=False)
    assert always.activity[0] == LayerActivity("1", 4, 4, 5, 1 + 2 * 4 + 4 + 5, 1 + 4 + 4)
    assert always.counts == found.counts


@pytest.mark.parametrize("compare_at", ["middle", "start"])
def test_all_silent(compare_at):
    network = linear_network([[-1.0, -1.0], [0.5, -2.0]], bias=-0.1)
    found = simulate(network, [torch.ones(3, 2)], steps=4, compare_at=compare_at)
    layer, readout = found.counts.layers
    assert (layer.spikes, layer.spikes_delivered, layer.never_active_per_sample) == (0, 0, 2)
    assert (layer.synaptic_operations, readout.synaptic_operations, readout.inputs_active) == (12, 0, 0)
    instants = 5 if compare_at == "middle" else 4
    assert found.activity[0].compares == 6 * instants
    assert found.activity[0].firing_updates == 6 * (instants - 1)
    assert found.activity[1] == LayerActivity("2", 0, 0, 0, 0, 0)  # nothing arrives
    dark = simulate(network, [torch.zeros(3, 2)], steps=4, compare_at=compare_at)
    assert dark.counts.input.spikes == dark.counts.layers[0].synaptic_operations == 0
    assert dark.activity[0].neuron_updates == 0  # without a slope there is nothing to add, but thresholds fall
    assert dark.activity[0].compares == 6 * instants


def test_all_saturated():
    network = linear_network([[1.0, 1.0], [2.0, 0.0]])
    found = simulate(network, [torch.ones(3, 2)], steps=4)
    layer, readout = found.counts.layers
    assert layer.spikes == layer.saturated == 6
    assert (layer.summed_spike_time, layer.histogram) == (0.0, (6, 0, 0, 0))
    assert (found.counts.input.spikes, found.counts.input.saturated) == (6, 6)
    assert found.activity[0] == LayerActivity("1", 24, 0, 6, 12 + 48 + 6, 12 + 24)
    assert readout.synaptic_operations == 12


def test_neuron_at_the_threshold_fires_at_step_0_although_its_potential_falls():
    # Weights are −127 units of 1/64. Ten inputs fire in the last step of 4; the initial potential makes up for it, so
    # that A = 1 exactly, and W = −19.8: half a step later the potential is far below the ramp.
    weight = -127 / 64
    network = linear_network([[weight] * 10, [weight] * 10], bias=1 - 10 * weight / 4)
    for compare_at in ("middle", "start"):
        found = simulate(network, [torch.full((1, 10), 0.25)], steps=4, compare_at=compare_at, keep_spike_times=1)
        assert found.spike_steps is not None
        assert found.spike_steps["1"].tolist() == [[0, 0]]
        assert (found.counts.layers[0].saturated, found.activity[0].firing_updates) == (2, 0)
    network[1].bias.data.sub_(1 / 64 / 4)  # one unit less
    assert simulate(network, [torch.full((1, 10), 0.25)], steps=4).counts.layers[0].spikes == 0


def test_first_spike_decides_early_and_ties_go_to_the_lowest_class():
    readout = readout_with([[1.0, 0.0], [0.0, 1.0]], threshold=2.0, initial_potential=0.0)
    network = linear_network([[1.0, 0.0], [0.0, 1.0]], readout)
    # Hidden neurons repeat their inputs or do better; outputs cross 2·(1 − s) with potential a + s.
    images = torch.tensor([[1.0, 0.25], [0.25, 1.0], [1.0, 1.0], [0.0, 0.0], [0.25, 0.25]])
    found = simulate(network, [(images, torch.tensor([0, 1, 1, 0, 0]))], steps=12, keep_spike_times=True)
    assert found.first_spike_predictions.tolist() == [0, 1, 0, 0, 0]
    assert (found.ties, found.no_spike, found.first_spike_correct, found.correct) == (2, 1, 4, 4)
    assert (found.accuracy, found.first_spike_accuracy) == (0.8, 0.8)
    stamps = found.spike_steps["2"]
    assert stamps[3].tolist() == [12, 12]
    assert found.latency_steps.tolist() == (24 + stamps.amin(1)).tolist()
    assert found.latency_steps[0] == 24 + 4  # 2 − 2·s = 1 + s at s = 1/3
    assert found.latency_steps[3] == 36  # the window's end
    assert found.mean_latency_steps == pytest.approx(found.latency_steps.double().mean().item())
    assert sum(found.latency_histogram.values()) == 5
    assert list(found.latency_histogram) == sorted(found.latency_histogram)
    assert found.latency_histogram[28] == 3
    # Both output neurons stop when the first has fired: in the middle of step 4, behind that at the start.
    alone = simulate(network, [images[:1]], steps=12)
    assert (alone.activity[1].compares, alone.correct, alone.accuracy, alone.first_spike_accuracy) == (
        2 * 6,
        *[None] * 3,
    )
    assert alone.spike_steps is None


def test_without_an_output_spike_the_highest_potential_decides():
    readout = readout_with([[-2.0], [-1.0], [-3.0]], threshold=1.0, initial_potential=0.0)
    found = simulate(linear_network([[1.0]], readout), [torch.ones(2, 1)], steps=8)
    assert found.no_spike == 2
    assert found.ties == 0
    assert found.first_spike_predictions.tolist() == [1, 1]
    assert found.latency_steps.tolist() == [24, 24]


def test_potentials_are_read_at_the_start_or_end():
    # One early input, two late ones: A is larger for class 0, the slope for class 1.
    weight = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    images = torch.tensor([[0.75, 0.25, 0.25]])
    network = linear_network(torch.eye(3).tolist(), readout_with(weight, PotentialReadout, at="start"), sigma=0.0)
    found = simulate(network, [images], steps=8)
    assert (found.predictions.tolist(), found.potential_latency_steps) == ([0], 16)
    assert found.activity[1].compares == found.activity[1].firing_updates == 0
    network[-1].at = "end"
    found = simulate(network, [images], steps=8)
    assert (found.predictions.tolist(), found.potential_latency_steps) == ([1], 24)
    assert (found.activity[1].compares, found.activity[1].firing_updates) == (0, 2 * 8)


def test_predictions_approach_the_closed_form():
    network = cnn1(width=0.5, psp_persistence=0.0).eval()
    images = torch.rand(100, 1, 28, 28)
    with torch.no_grad():
        potential, decided = network(images), network.decide(images)
    found = simulate(network, [images], steps=2048, weight_bits=None)
    for decision, by, margin in (
        (found.predictions, potential, 0.01),
        (found.first_spike_predictions, -decided.spike_times, 2 / 2048),
    ):
        best, second = by.topk(2).values.unbind(1)
        clear = best - second > margin
        assert clear.sum() > 10
        assert torch.equal(decision[clear], by.argmax(1)[clear])


def test_batches_parts_and_kept_samples_do_not_matter():
    network = small_network(0)
    images, labels = 2 * torch.rand(120, 2, 5, 4), torch.arange(120) % 3
    options = dict(steps=8, keep_spike_times=True)
    whole = simulate(network, [(images, labels)], **options)
    split = simulate(network, zip(images.split(7), labels.split(7), strict=True), **options)
    assert_same(whole, split)
    some = simulate(network, [images[:2], images[2:]], steps=8, keep_spike_times=3)
    assert some.spike_steps is not None
    assert {len(stamps) for stamps in some.spike_steps.values()} == {3}
    assert torch.equal(some.spike_steps["1"], whole.spike_steps["1"][:3])
    assert [len(whole.counts.spikes_by_sample), sum(whole.counts.spikes_by_sample)] == [
        120,
        whole.counts.total()["spikes"],
    ]
    assert sum(whole.counts.synaptic_operations_by_sample) == whole.counts.total()["synaptic_operations"]


def test_model_and_images_stay_as_they_are():
    network = small_network(0).train()
    images = 2 * torch.rand(3, 2, 5, 4)
    before, copy = {key: value.clone() for key, value in network.state_dict().items()}, images.clone()
    training = simulate(network, [images], keep_spike_times=True)
    assert network.training
    assert_same(training, simulate(network.eval(), [images], keep_spike_times=True))
    assert torch.equal(images, copy)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_gating_changes_activity_alone():
    network, images = small_network(0), 2 * torch.rand(3, 2, 5, 4)
    gated, free = (simulate(network, [images], gating=gating, keep_spike_times=True) for gating in (True, False))
    assert_same(dataclasses.replace(gated, activity=()), dataclasses.replace(free, activity=()))
    for one, other in zip(gated.activity, free.activity, strict=True):
        assert one.neuron_updates < other.neuron_updates


def test_double_precision_and_standardisation_make_no_difference():
    network, images = small_network(1), 2 * torch.rand(3, 2, 5, 4)
    single = simulate(network, [images], keep_spike_times=True)
    for layer in network:
        if hasattr(layer, "fold_standardisation"):
            layer.fold_standardisation()
    assert_same(single, simulate(network, [images], keep_spike_times=True))
    assert simulate(network.double(), [images.double()]).samples == 3


def test_simulation_as_json():
    found = simulate(small_network(0), [(torch.rand(4, 2, 5, 4), torch.zeros(4, dtype=torch.int64))], steps=8)
    values = json.loads(json.dumps(found.to_dict()))
    assert (values["steps"], values["weight_bits"], values["samples"]) == (8, 8, 4)
    assert values["accuracy"] == found.accuracy
    assert values["activity"][0]["neuron_updates"] == found.activity[0].neuron_updates
    assert not any(math.isnan(value) for value in (values["mean_latency_steps"], values["accuracy"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be 1 to 4096; got 0"),
        ({"steps": 5000}, "steps must be 1 to 4096; got 5000"),
        ({"weight_bits": 1}, "weight_bits must be 2 to 16, or None; got 1"),
        ({"compare_at": "end"}, r"compare_at must be one of \('middle', 'start'\); got 'end'"),
        ({"engine": "fast"}, r"engine must be one of \('summed', 'stepped'\); got 'fast'"),
        ({"keep_spike_times": -1}, "keep_spike_times must be a bool or at least 0; got -1"),
    ],
)
def test_simulate_rejects_options(options, message):
    with pytest.raises(ValueError, match=f"simulate: {message}"):
        simulate(small_network(0), [torch.rand(1, 2, 5, 4)], **options)


def test_simulate_rejects_batches():
    images, labels = torch.rand(2, 2, 5, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="simulate: batches must not be empty; got none"):
        simulate(small_network(0), [])
    for batches in ([(images, labels), images], [images, (images, labels)]):
        with pytest.raises(ValueError, match="simulate: batches must all have labels, or none; got both"):
            simulate(small_network(0), batches)
