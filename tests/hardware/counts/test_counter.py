"""Counts against hands and brute force."""

import dataclasses

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from tests.hardware.counts.common import PLAIN, counted
from ttfs_triton.hardware import Counts
from ttfs_triton.hardware.counts.counter import count, counting
from ttfs_triton.hardware.counts.synapses import fan_out
from ttfs_triton.nn import (
    DFTConv2d,
    DFTLinear,
    EarliestSpikePool2d,
    FirstSpikeReadout,
    LatencyEncoder,
    NetworkError,
    Neuron,
    PotentialReadout,
    cnn1,
    collect_statistics,
    record_statistics,
    reset_statistics,
    sparsity,
    vgg11,
    vgg16,
)


def convolution(channels, outputs, weight, bias=0.0, **options):
    """A convolution with one weight and one initial potential for all."""
    layer = DFTConv2d(channels, outputs, weight_standardisation=False, **options)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)
    return layer


def linear(inputs, outputs, weight, bias=0.0):
    layer = DFTLinear(inputs, outputs, weight_standardisation=False)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)
    return layer


def image(*spikes, channels=1, size=4):
    """One image that is silent but for activations at (channel, row, column)."""
    x = torch.zeros(1, channels, size, size)
    for place, activation in spikes:
        x[(0, *place)] = activation
    return x


def test_padded_border_by_hand():
    network = [convolution(1, 2, 0.5, kernel_size=3, padding=1)]
    # A corner reaches 2·2 neurons of each channel, an edge 2·3, the inside 3·3.
    x = image(((0, 0, 0), 0.5), ((0, 0, 1), 0.25), ((0, 2, 2), 1.0))
    (layer,) = counted(network, [x])
    assert layer.synaptic_operations == 2 * (4 + 6 + 9)
    assert layer.synapses == 2 * (4 * 4 + 8 * 6 + 4 * 9)
    assert (layer.active_inputs, layer.dense_macs, layer.analog_macs) == (3, layer.synapses, 0)
    assert layer.neurons == 32


def test_stride_two_by_hand():
    network = [convolution(1, 3, 0.5, kernel_size=2, stride=2, padding=0)]
    (layer,) = counted(network, [image(((0, 1, 1), 0.5), ((0, 3, 0), 0.5))])
    assert layer.synaptic_operations == 2 * 3  # each place is read once, by three channels
    (layer,) = counted([convolution(1, 1, 0.5, kernel_size=3, stride=2)], [image(((0, 3, 3), 0.5))])
    assert layer.synaptic_operations == 0  # the last row and column are never read
    assert layer.synapses == 9


def test_groups_by_hand():
    network = [convolution(4, 8, 0.5, kernel_size=1, groups=2)]
    (layer,) = counted(network, [image(((0, 0, 0), 0.5), ((3, 1, 1), 0.5), channels=4)])
    assert layer.synaptic_operations == 2 * 4  # four of the eight output channels each
    assert layer.synapses == 16 * 4 * 4


def test_pooling_delivers_one_spike_of_a_patch():
    network = [convolution(1, 1, 1.0, kernel_size=1), EarliestSpikePool2d(2), nn.Flatten(), linear(4, 5, 0.1)]
    x = image(((0, 0, 0), 0.5), ((0, 1, 1), 0.75), ((0, 2, 3), 0.25))
    first, second = counted(network, [x])
    assert (first.spikes, first.spikes_delivered, first.silent) == (3, 2, 13)
    assert (second.active_inputs, second.synaptic_operations, second.spikes_delivered) == (2, 10, second.spikes)


@pytest.mark.parametrize("build", [cnn1, vgg11], ids=["latency", "analog"])
def test_counts_do_not_depend_on_the_device(build, device):
    torch.manual_seed(0)
    network = build(width=1 / 16).eval()
    images = torch.rand(5, network.config.in_channels, *network.config.image_size)
    ours = count(network, images.split(3), histogram_bins=4, by_sample=True)
    theirs = count(network.to(device), images.split(3), histogram_bins=4, by_sample=True)
    # Spikes may fall to the other side of a border where another device sums in another order.
    assert theirs.total()["spikes"] == pytest.approx(ours.total()["spikes"], rel=1e-3)
    assert theirs.total()["synaptic_operations"] == pytest.approx(ours.total()["synaptic_operations"], rel=1e-3)
    assert sum(theirs.spikes_by_sample) == theirs.total()["spikes"]


@pytest.mark.parametrize(("bias", "spikes"), [(-9.0, 0), (2.0, 1)], ids=["all-silent", "all-saturated"])
def test_all_alike(bias, spikes):
    network = [convolution(1, 2, 0.0, bias, kernel_size=3, padding=1), nn.Flatten(), linear(32, 4, 0, bias)]
    layers = counted(network, [torch.ones(3, 1, 4, 4)])
    for layer in layers:
        assert layer.spikes == layer.saturated == spikes * layer.neurons * 3
        assert layer.silent == (1 - spikes) * layer.neurons * 3
        assert layer.never_active == (1 - spikes) * layer.neurons
        assert layer.summed_spike_time == 0
    assert layers[1].synaptic_operations == spikes * 3 * 32 * 4
    assert sparsity(layers) == spikes


def test_spike_exactly_at_the_start_is_saturated():
    network = [linear(2, 2, 0.5), linear(2, 1, 0.0)]
    # Potential at the window's start: 0.5·(1 + 1) = 1, which is the threshold there.
    first, _ = counted(network, [torch.ones(1, 2)])
    assert (first.spikes, first.saturated, first.summed_spike_time) == (2, 2, 0.0)
    first, _ = counted(network, [torch.tensor([[1.0, 0.9]])])
    assert (first.spikes, first.saturated) == (2, 0)
    # A = 0.95, W = 1: the ramp is met at (1 − 0.95) / (1 + 1), by both neurons.
    assert first.summed_spike_time == pytest.approx(2 * 0.025, abs=1e-6)


@pytest.mark.parametrize("model", [vgg16(width=1 / 16), cnn1(width=0.25)], ids=["vgg16", "cnn1"])
def test_all_spiking_input_costs_the_dense_macs(model):
    for layer in model.modules():
        if getattr(layer, "bias", None) is not None:
            nn.init.constant_(layer.bias, 50.0)
    counts = count(model, [torch.ones(2, model.config.in_channels, *model.config.image_size)])
    total = counts.total()
    assert total["synaptic_operations"] + total["analog_macs"] == total["dense_macs"]
    assert counts.sparsity == 1


def test_vgg16_has_266_million_synapses():
    counts = count(vgg16(), [torch.rand(1, 3, 32, 32)])
    assert counts.total()["synapses"] == 266_224_384
    # By the formula that forgets padding: 25 % more.
    assert sum(w * n for w, n in [(27, 65536), (576, 65536)]) > sum(layer.synapses for layer in counts.layers[:2])


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from([1, 2]),
    st.integers(0, 99),
)
def test_synaptic_operations_match_a_convolution_of_ones(kernel, stride, padding, dilation, groups, seed):
    torch.manual_seed(seed)
    sizes = dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    layer = DFTConv2d(2 * groups, 3 * groups, weight_standardisation=False, **sizes)
    x = torch.rand(3, 2 * groups, 8, 9) * (torch.rand(3, 2 * groups, 8, 9) > 0.6)
    (counts,) = counted([layer], [x[:2], x[2:]])
    options = {key: sizes[key] for key in ("stride", "padding", "dilation", "groups")}
    ones = torch.ones_like(layer.weight)
    assert counts.synaptic_operations == F.conv2d((x > 0).float(), ones, **options).sum()
    assert counts.synapses == F.conv2d(torch.ones_like(x[:1]), ones, **options).sum()


def random_network(model):
    """Spikes of all sorts."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight_gain"):
                parameter.mul_(3)
    return model


def batches_of(*sizes, channels=1, size=28):
    torch.manual_seed(0)
    return [torch.rand(n, channels, size, size) * (torch.rand(n, channels, size, size) > 0.5) for n in sizes]


def test_counts_are_those_of_the_layers_statistics():
    model = random_network(cnn1(width=0.5))
    batches = batches_of(5, 3)
    counts = count(model, batches)
    model.eval()
    with record_statistics(model), torch.no_grad():
        for batch in batches:
            model(batch)
    statistics = collect_statistics(model)
    assert counts.sparsity == sparsity(statistics)
    assert counts.sparsity_with_outputs == sparsity(statistics, with_outputs=True)
    for layer, expected in zip(counts.layers, statistics, strict=True):
        assert (layer.name, layer.spikes, layer.saturated) == (expected.name, expected.spikes, expected.saturated)
        assert layer.never_active == expected.never_active
        assert layer.silent == expected.silent


def test_figures_by_sample_and_histograms_add_up():
    model = random_network(cnn1(width=0.5))
    counts = count(model, batches_of(5, 3), histogram_samples=6)
    total = counts.total()
    assert len(counts.spikes_by_sample) == 8
    assert sum(counts.spikes_by_sample) == total["spikes"]
    assert sum(counts.synaptic_operations_by_sample) == total["synaptic_operations"]
    first = count(model, batches_of(5, 3), histogram_bins=7)
    for layer, part in zip(first.layers, counts.layers, strict=True):
        assert sum(layer.histogram) == layer.spikes
        assert (layer.histogram_samples, part.histogram_samples) == (8, 6)
        assert sum(part.histogram) < part.spikes or part.spikes < 50
        # A spike's time from the histogram is off by up to half a bin.
        middles = [(i + 0.5) / 7 for i in range(7)]
        mean = sum(n * t for n, t in zip(layer.histogram, middles, strict=True))
        assert abs(mean - layer.summed_spike_time) <= layer.spikes / 14 + 1e-3


def test_histogram_knows_early_from_late():
    network = [linear(1, 2, 1.0)]
    (layer,) = counted(network, [torch.tensor([[1.0], [0.5], [0.1]])], histogram_bins=4)
    # (A + W) / (1 + W) = (x + 1) / 2: activations 1, 0.75, 0.55, so times 0, 0.25, 0.45, of two neurons.
    assert layer.histogram == (4, 2, 0, 0)


def test_input_spikes_are_counted_apart():
    model = cnn1(width=0.25)
    x = torch.zeros(2, 1, 28, 28)
    x[0, 0, 3, 3], x[1, 0, 4, 5] = 1.0, 0.5
    counts = count(model, [(x, torch.tensor([1, 2]))])
    assert counts.input.neurons == 784
    assert (counts.input.spikes, counts.input.saturated) == (2, 1)
    assert counts.layers[0].active_inputs == 2
    assert counts.layers[0].synaptic_operations == 2 * 25 * 4


def test_analog_layer_is_charged_as_macs():
    counts = count(vgg11(width=1 / 32), batches_of(2, channels=3, size=32))
    first, second = counts.layers[:2]
    assert (first.kind, first.synaptic_operations, first.analog_macs) == ("analog", 0, first.dense_macs)
    assert (second.kind, second.analog_macs) == ("spiking", 0)
    assert first.spikes_delivered == second.active_inputs
    assert counts.input.spikes == 0


@pytest.mark.parametrize("readout", ["potential_start", "potential_end", "first_spike"])
def test_counts_say_what_was_counted(readout):
    counts = count(cnn1(width=0.25, neuron=Neuron(psp_persistence=0.25), readout=readout), batches_of(1))
    assert counts.readout == readout
    assert {layer.neuron.psp_persistence for layer in counts.layers} == {0.25}
    analog = count(vgg11(width=1 / 32), batches_of(1, channels=3, size=32))
    assert [layer.neuron is None for layer in analog.layers[:2]] == [True, False]


def test_counts_without_neuron_or_readout_are_refused():
    counts = count(cnn1(width=0.25), batches_of(1))
    with pytest.raises(ValueError, match="LayerCounts: neuron must be given for a spiking layer; got None"):
        dataclasses.replace(counts.layers[0], neuron=None)
    with pytest.raises(ValueError, match="Counts: readout must say when the decision of a readout is read; got None"):
        dataclasses.replace(counts, readout=None)


def test_first_spike_readout_and_mode():
    network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(16, 8), FirstSpikeReadout(8, 3)).train()
    own = network[2].statistics
    counts = count(network, [torch.rand(4, 1, 4, 4)])
    assert counts.layers[-1].kind == "readout"
    assert counts.layers[-1].synaptic_operations == 3 * counts.layers[0].spikes
    assert network.training
    assert network[2].statistics is own
    assert not network[2]._forward_pre_hooks


def test_counts_survive_json():
    import json

    counts = count(cnn1(width=0.25), batches_of(3))
    values = json.loads(json.dumps(counts.to_dict()))
    assert Counts.from_dict(values) == counts
    assert values["total"]["spikes"] == sum(layer["spikes"] for layer in values["layers"])
    with pytest.raises(ValueError, match="must be what to_dict gives; got layers: Field required"):
        Counts.from_dict({"format": 2, "samples": 1})
    with pytest.raises(ValueError, match=r"must be what to_dict gives; got readout: .*potential_start"):
        Counts.from_dict(values | {"readout": "start"})
    with pytest.raises(ValueError, match=r"must be what to_dict gives; got layers\.0\.spikes: .*integer"):
        Counts.from_dict(values | {"layers": [values["layers"][0] | {"spikes": "many"}]})
    with pytest.raises(ValueError, match=r"must be of format 2 or 3; got None. Evaluate again"):
        Counts.from_dict({"samples": 1})


def test_counting_around_anything():
    model = random_network(cnn1(width=0.25)).eval()
    batches = batches_of(3, 2)
    with counting(model) as counter, torch.no_grad():
        for batch in batches:
            model(batch)
    assert counter.counts() == count(model, batches)


def test_bfloat16_counts_are_exact():
    model = random_network(cnn1()).eval()
    x = batches_of(40)[0]
    outputs = []
    hook = model.features.conv1.register_forward_hook(lambda _, __, y: outputs.append(y))
    with torch.autocast("cpu", torch.bfloat16):
        counts = count(model, [x])
    hook.remove()
    assert counts.layers[0].spikes == int((outputs[0] > 0).sum())
    assert outputs[0].dtype == torch.bfloat16


def test_many_batches_count_as_one():
    # More than wait to be added up together, and an empty one.
    model = random_network(cnn1(width=0.25))
    (images,) = batches_of(40)
    many = count(model, [*images.split(1), images[:0]])
    whole = count(model, [images])
    for one, other in zip(many.layers, whole.layers, strict=True):
        one, other = one.to_dict(), other.to_dict()
        assert one.pop("summed_spike_time") == pytest.approx(other.pop("summed_spike_time"), abs=1e-3)
        assert one == other
    assert many.spikes_by_sample == whole.spikes_by_sample
    assert many.synaptic_operations_by_sample == whole.synaptic_operations_by_sample


def test_operations_beyond_float32_are_exact():
    # 4096 · 4097 products of every sample: the odd ones are not float32 values.
    layer = DFTConv2d(1, 1, 1, bias=False, weight_standardisation=False)
    x = torch.ones(2, 1, 4096, 4097)
    x[1, 0, 0, 0] = 0
    pool = EarliestSpikePool2d((4096, 4097))
    with torch.no_grad():
        layer.weight.fill_(-1)  # nothing fires: all operations are this layer's
    network = nn.Sequential(LatencyEncoder(), layer, pool, nn.Flatten(), PotentialReadout(1, 2, **PLAIN))
    counts = count(network, [x], histogram_bins=0)
    assert counts.synaptic_operations_by_sample == (4096 * 4097, 4096 * 4097 - 1)


def test_statistics_inside_are_those_of_the_counter():
    # What an evaluation does: the layers' own statistics rest, and nothing is counted twice.
    model = random_network(cnn1(width=0.25)).eval()
    batches = batches_of(5, 3)

    def statistics():
        reset_statistics(model)
        with record_statistics(model), torch.no_grad():
            for batch in batches:
                model(batch)
        return collect_statistics(model)

    plain = statistics()
    with counting(model) as counter:
        assert statistics() == plain
    assert [layer.spikes for layer in counter.counts().layers] == [layer.spikes for layer in plain]
    assert counter.counts() == count(model, batches)
    assert statistics() == plain


def test_refuses():
    with pytest.raises(ValueError, match="batches must not be empty"):
        count(cnn1(width=0.25), [])
    with pytest.raises(NetworkError, match=r"got ReLU\. Leave it out"), counting(nn.ReLU(), image_shape=(4,)):
        pass
    with pytest.raises(ValueError, match="the network must run inside the block"), counting(cnn1()) as counter:
        counter.counts()
    with pytest.raises(ValueError, match="histogram_samples must be at least 0"), counting(cnn1(), histogram_bins=-1):
        pass
    with pytest.raises(TypeError, match="must be a convolution or fully connected"):
        fan_out(nn.ReLU(), ())  # pyright: ignore
