"""The margin of an analog encoder: as far as its reader comes closer to the ANN, and only where it can."""

import pytest
import torch

from tests.convert.test_calibrate_network import drawn
from ttfs_triton.convert import calibrate_network
from ttfs_triton.convert.encoder_margin import LARGEST, STEP, choose_margin, reader_of_encoder
from ttfs_triton.nn import AnalogEncoder, NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.nn.trace import network_graph

DRAW = torch.Generator().manual_seed(1)
# Even patches of several colours, with a little noise.
PATCHES = torch.rand(24, 3, 3, 3, generator=DRAW).repeat_interleave(4, 2).repeat_interleave(4, 3)
IMAGES = (PATCHES + 0.02 * torch.randn(24, 3, 12, 12, generator=DRAW)).clamp(0, 1)


def graph(encoder: str = "analog", sigma: float = 1.0, specification: str = "4C3-P2-6C3-8", **options):
    config = NetworkConfig(specification, in_channels=3, image_size=(12, 12), classes=4, encoder=encoder, **options)
    return network_graph(TTFSNetwork(config.replace(neuron=Neuron(psp_persistence=sigma))))


@pytest.mark.parametrize("sigma", [1.0, 0.25])
def test_reader_of_an_encoder_comes_closer_to_the_ann(sigma, monkeypatch):
    def after(with_margin: bool):
        network = drawn(sigma, encoder="analog", initial_gain=0.5)
        with monkeypatch.context() as patch:
            if not with_margin:
                patch.setattr("ttfs_triton.convert.encoder_margin.LARGEST", 0.0)
            first, reader, *_ = calibrate_network(network, IMAGES).layers
        assert reader.after is not None
        return first.shift, reader.after

    margin, closer = after(True)
    none, as_it_was = after(False)
    assert none == 0
    assert -LARGEST <= margin < 0
    assert closer > as_it_was + 0.005


@torch.no_grad()
def test_margin_is_the_last_that_helps_and_readers_keep_their_potentials():
    stages = graph()
    encoder, reader = stages.encoder, reader_of_encoder(stages)
    assert reader is not None
    bias, its_bias = encoder.weighted.bias, reader.weighted.bias
    assert bias is not None
    assert its_bias is not None
    first, its_first = bias.clone(), its_bias.clone()
    tried = []

    def correlation():
        margin = (first - bias).mean().item()
        torch.testing.assert_close(its_bias.detach(), its_first)  # each search starts anew
        its_bias.add_(1.0)
        tried.append(margin)
        return 0.9 - abs(margin - 3 * STEP)

    assert choose_margin(encoder, reader, correlation) == pytest.approx(3 * STEP)
    assert tried == pytest.approx([0, STEP, 2 * STEP, 3 * STEP, 4 * STEP], abs=1e-6)
    torch.testing.assert_close(bias.detach(), first - 3 * STEP)
    torch.testing.assert_close(its_bias.detach(), its_first)


@torch.no_grad()
@pytest.mark.parametrize(
    ("found", "margin"), [([None, None], 0), ([0.5, None], 0), ([0.5, 0.5], 0), (range(99), LARGEST)]
)
def test_margin_ends_where_nothing_is_gained(found, margin):
    stages = graph()
    answers = iter(found)
    reader = reader_of_encoder(stages)
    assert reader is not None
    assert choose_margin(stages.encoder, reader, lambda: next(answers)) == pytest.approx(margin)


def test_reader_is_the_first_spiking_layer():
    stages = graph()
    reader = reader_of_encoder(stages)
    assert reader is not None
    assert isinstance(stages.encoder.layer, AnalogEncoder)
    assert reader.input.source == stages.encoder.name


@pytest.mark.parametrize(
    "without",
    [
        dict(encoder="latency"),
        dict(encoder="signed"),  # it spikes by a rule of its own
        dict(sigma=0.0),  # no layer reads masks
        dict(bias=False),
        dict(specification="4C3"),  # the readout reads it
    ],
)
def test_without_a_reader_of_masks_or_potentials_there_is_no_margin(without):
    assert reader_of_encoder(graph(**without)) is None
