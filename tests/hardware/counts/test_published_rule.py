"""Signed pixels and neurons without input, as the paper's published code has and counts them, by brute force."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from tests.hardware.counts.common import counted
from ttfs_triton.hardware import Counts
from ttfs_triton.hardware.counts.counter import count
from ttfs_triton.nn import DFTConv2d, NetworkConfig, TTFSNetwork


def test_signed_encoder_multiplies_and_adds_bright_pixels_to_a_slope():
    config = NetworkConfig("5C3-P2-4", image_size=(6, 6), classes=3, encoder="signed", mean=(0.5,), std=(0.25,))
    images = torch.rand(4, 1, 6, 6)
    first = (counts := count(TTFSNetwork(config), [images])).layers[0]
    ones = torch.ones(5, 1, 3, 3)
    bright = F.conv2d((images > 0.5).float(), ones, padding=1).sum()
    assert (first.kind, first.synaptic_operations, first.analog_macs) == ("analog", bright, first.dense_macs)
    assert first.nonzero_macs == first.dense_macs
    later = sum(layer.synaptic_operations for layer in counts.layers[1:])
    assert sum(counts.synaptic_operations_by_sample) == bright + later


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([1, 2]),
    st.sampled_from([None, 0, 1]),
    st.integers(0, 99),
)
def test_neurons_without_input_match_a_potential_of_zero_at_the_end(kernel, stride, padding, groups, still, seed):
    """`still` channels without an initial potential; None: a layer without any."""
    torch.manual_seed(seed)
    sizes = dict(stride=stride, padding=padding, groups=groups)
    layer = DFTConv2d(2 * groups, 3 * groups, kernel, weight_standardisation=False, bias=still is not None, **sizes)
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.fill_(-0.1)[: still or 0] = 0
    x = torch.rand(3, 2 * groups, 8, 9) * (torch.rand(3, 2 * groups, 8, 9) > 0.9)
    (counts,) = counted([layer], [x[:2], x[2:]])
    potential, slope = (F.conv2d(v, layer.weight, b, **sizes) for v, b in ((x, layer.bias), ((x > 0).float(), None)))
    assert counts.without_input == ((potential == 0) & (slope == 0)).sum()


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
    older = counts.to_dict() | {"format": 2}
    for layer in older["layers"]:
        del layer["without_input"]
    assert Counts.from_dict(older).sparsity_as_published is None
