"""Counts against hands and brute force."""

import json
from collections.abc import Sequence
from unittest.mock import Mock

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from tests.energy.energy_cases import counted as charged
from tests.nn.common import randomised
from ttfs_triton.energy import Counts, LayerCounts, counter, estimate
from ttfs_triton.energy.counter import count, counting, spike_histogram
from ttfs_triton.nn import LatencyEncoder, NetworkConfig, Readout, TTFSNetwork, cnn1, sparsity, vgg11, vgg16
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear, EarliestSpikePool2d
from ttfs_triton.nn.statistics import collect_statistics, record_statistics, reset_statistics

PLAIN = {"weight_standardisation": False}


def counted(layers: Sequence[nn.Module], batches: Sequence[Tensor], **options) -> tuple[LayerCounts, ...]:
    """Counts of hidden layers, in a network that begins with an encoder and ends with a readout as it must."""
    layers = [LatencyEncoder(), *layers, nn.Flatten()]
    with torch.no_grad():
        features = nn.Sequential(*layers)(batches[0][:1]).shape[1]
    return count(nn.Sequential(*layers, Readout(features, 2, **PLAIN)), batches, **options).layers[:-1]


def constant(layer, weight):
    """The layer with one weight for all, and no initial potential."""
    nn.init.constant_(layer.weight, weight)
    nn.init.zeros_(layer.bias)
    return layer


def batches_of(*sizes):
    torch.manual_seed(0)
    return [torch.rand(n, 1, 28, 28) * (torch.rand(n, 1, 28, 28) > 0.5) for n in sizes]


# ---- by brute force


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from([1, 2]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([0.6, 0.9]),
    st.integers(0, 99),
)
def test_operations_match_a_convolution_of_ones(kernel, stride, padding, dilation, groups, still, silent, seed):
    """`still` channels have no initial potential; None: a layer without any."""
    torch.manual_seed(seed)
    sizes = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    layer = DFTConv2d(2 * groups, 3 * groups, kernel, bias=still is not None, **PLAIN, **sizes)
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.fill_(-0.1)[: still or 0] = 0
            layer.bias[-1] = 0.25
    x = torch.rand(3, 2 * groups, 8, 9) * (torch.rand(3, 2 * groups, 8, 9) > silent)
    (counts,) = counted([layer], [x[:2], x[2:]])
    spikes, ones = (x > 0).float(), torch.ones_like(layer.weight)
    assert counts.synaptic_operations == F.conv2d(spikes, ones, **sizes).sum()
    assert counts.synapses == F.conv2d(torch.ones_like(x[:1]), ones, **sizes).sum()
    potential, slope = (F.conv2d(v, layer.weight, b, **sizes) for v, b in ((x, layer.bias), (spikes, None)))
    assert counts.without_input == ((potential == 0) & (slope == 0)).sum()
    # Neurons wait for their first input: each field's largest activation is the time from there to the window's end.
    fields = (F.unfold(part, kernel, dilation, padding, stride) for part in x.chunk(groups, 1))
    assert counts.driven_time == pytest.approx(3 * sum(float(field.amax(1).sum()) for field in fields), rel=1e-5)
    unreached = F.conv2d(spikes, ones, **sizes) == 0
    assert counts.undriven_time == pytest.approx(float((1 - layer(x).detach())[unreached].sum()), abs=1e-4)


def test_vgg16_has_266_million_synapses():
    counts = count(vgg16(), [torch.rand(1, 3, 32, 32)])  # by the formula that forgets padding: 25 % more
    assert counts.total()["synapses"] == 266_224_384


def test_operations_beyond_float32_are_exact():
    # Products above 2²⁴, of which the odd ones are not float32 values: 9 · 480 a side, but for those into padding.
    layer, x = constant(DFTConv2d(1, 1, 9, padding=4, **PLAIN), -1.0), torch.ones(2, 1, 480, 480)  # nothing fires
    x[1, 0, 200, 200] = 0
    layers = [layer, EarliestSpikePool2d(480), nn.Flatten(), Readout(1, 2, **PLAIN)]
    first, _ = count(nn.Sequential(LatencyEncoder(), *layers), [x], histogram_bins=0).layers
    whole = (9 * 480 - 2 * (1 + 2 + 3 + 4)) ** 2
    assert first.synaptic_operations == first.nonzero_macs == 2 * whole - 9 * 9


# ---- real values


@pytest.mark.parametrize("encoder", ["analog", "signed"])
def test_real_values_are_multiplied_and_a_signed_encoder_adds_bright_pixels_to_a_slope(encoder):
    config = NetworkConfig("5C3-P2-4", image_size=(6, 6), classes=3, encoder=encoder, mean=(0.5,), std=(0.25,))
    images = torch.rand(4, 1, 6, 6)
    first, second, _ = (counts := count(TTFSNetwork(config), [images])).layers
    bright = (encoder == "signed") * F.conv2d((images > 0.5).float(), torch.ones(5, 1, 3, 3), padding=1).sum()
    assert (first.kind, first.synaptic_operations) == ("analog", bright)
    assert first.analog_macs == first.nonzero_macs == first.dense_macs
    assert (second.kind, second.analog_macs, second.active_inputs) == ("spiking", 0, first.spikes_delivered)
    assert counts.input.spikes == 0
    reads = charged(estimate(counts, "lemaire45:int8", steps=4), "conv1")["weight reads"]
    assert 4 * reads == first.dense_macs + bright + 4 * first.neurons  # a bias for each neuron


# ---- the network around it


@pytest.mark.parametrize("build", [cnn1, vgg11], ids=["latency", "analog"])
def test_counts_do_not_depend_on_the_device(build, device):
    torch.manual_seed(0)
    network = build(width=1 / 16).eval()
    images = torch.rand(5, network.config.in_channels, *network.config.image_size)
    ours = count(network, images.split(3), histogram_bins=4)
    theirs = count(network.to(device), images.split(3), histogram_bins=4)
    # Spikes may fall to the other side of a border where another device sums in another order.
    for key in ("spikes", "synaptic_operations"):
        assert theirs.total()[key] == pytest.approx(ours.total()[key], rel=1e-3)


def test_counts_are_those_of_the_layers_statistics():
    model, batches = randomised(cnn1(width=0.5), seed=1).eval(), batches_of(5, 3)
    counts = count(model, batches)

    def statistics():
        reset_statistics(model)
        with record_statistics(model), torch.no_grad():
            for batch in batches:
                model(batch)
        return collect_statistics(model)

    plain = statistics()
    assert counts.sparsity == sparsity(plain)
    for layer, expected in zip(counts.layers, plain, strict=True):
        assert {key: getattr(layer, key) for key in vars(expected)} == vars(expected)
    # What an evaluation does: the layers' own statistics rest meanwhile, and nothing is counted twice. Each reset
    # forgets what was counted before, the images' spikes too.
    with counting(model) as counter:
        assert statistics() == statistics() == plain
    assert counter.counts() == counts
    assert statistics() == plain
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_process_without_images_adds_nothing():
    network, images, sent = cnn1(width=0.25), torch.rand(2, 1, 28, 28), []
    with counting(network) as counter, torch.no_grad():
        network.eval()(images)
    expected = counter.counts(Mock(num_processes=2, reduce=lambda kept, how: sent.append(kept) or kept))
    with counting(network) as counter:
        pass
    pairs = lambda kept: zip(kept, *sent, strict=True)  # noqa: E731
    both = Mock(num_processes=2, reduce=lambda kept, how: [[*map(torch.add, *two)] for two in pairs(kept)])
    assert counter.counts(both) == expected
    with counting(network.train()), pytest.raises(ValueError, match="must be in evaluation mode; got training mode"):
        network(images)
    for batches, message in (([images[:0]], "must run inside the block"), ([], "batches must not be empty")):
        with pytest.raises(ValueError, match=message):
            count(network, batches)


def test_published_rule_counts_neurons_without_input_and_all_outputs():
    network = TTFSNetwork(NetworkConfig("4C3p0-8", image_size=(8, 8), classes=3, bias=False))
    images = torch.zeros(5, 1, 8, 8)
    images[0, 0, 0, 0] = 1.0
    counts = count(network, [images])
    conv, dense, _ = counts.layers
    assert conv.without_input == 4 * (5 * 36 - 1)
    assert dense.without_input == 8 * (5 - bool(conv.spikes))
    spikes = conv.spikes + dense.spikes + conv.without_input + dense.without_input + 5 * 3
    assert counts.sparsity_as_published == pytest.approx(spikes / (5 * (144 + 8 + 3)))
    alone = nn.Sequential(LatencyEncoder(), nn.Flatten(), Readout(64, 3, at="first_spike"))
    (output,) = count(alone, [0 * images]).layers
    assert output.undriven_time == output.summed_spike_time == 5 * 3 / 2, "its ramp meets half of the threshold"


# ---- histograms


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 70), st.sampled_from([1, 2, 7, 50, 126, 127, 300]), st.integers(0, 99))
def test_histogram_matches_numpy(samples, neurons, bins, seed):
    torch.manual_seed(seed)
    x = torch.rand(samples, neurons) * (torch.rand(samples, neurons) > 0.4)
    x[x > 0.9] = 1.0
    distance = x.double() * bins
    x[((distance - distance.round()).abs() < 1e-4) & (x < 1)] = 0.0  # float32 may put those on either side
    expected, _ = np.histogram(x[x > 0].double().numpy(), bins, (0, 1))
    assert spike_histogram(x, bins).tolist() == expected[::-1].tolist()


def test_histograms_are_of_the_first_samples(monkeypatch):
    monkeypatch.setattr(counter, "HISTOGRAM_SAMPLES", 2)
    # (A + W) / (1 + W) = (x + 1) / 2: activations 1, 0.75, 0.55, so times 0, 0.25, 0.45, of two neurons.
    batches = [torch.tensor([[1.0]]), torch.tensor([[0.5], [0.1]])]
    layer = constant(DFTLinear(1, 2, **PLAIN), 1.0)
    (counts,) = counted([layer], batches, histogram_bins=4)
    assert counts.histogram == (4, 0, 0, 0)  # a spike on a border is in the earlier bin


# ---- files and refusals


def test_counts_survive_json():
    counts = count(cnn1(width=0.25), batches_of(3))
    values = json.loads(json.dumps(counts.to_dict()))
    assert Counts.from_dict(values) == counts
    for wrong, message in (
        (values | {"layers": [values["layers"][0] | {"spikes": "many"}]}, r"got layers\.0\.spikes: .*integer"),
        ({"samples": 1}, r"must be of format 3; got None. Evaluate again"),
    ):
        with pytest.raises(ValueError, match=message):
            Counts.from_dict(wrong)
