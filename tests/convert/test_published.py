"""The paper's published networks, read from their own files: the same logits and the same spikes.

The replicas are written anew from what the paper's scripts compute, narrow, with the names of their files. They share
nothing with the code that they are compared with. `proxy` works with activations and reads images by spiking neurons,
`direct` with spike times behind an analog layer. Both return logits, and which neurons of each layer fired.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.convert.sources import Paper, digits, hidden, named, randomised, weights_of
from ttfs_kernels import Neuron
from ttfs_triton.commands import ConvertOptions
from ttfs_triton.convert import ConversionError, convert
from ttfs_triton.convert.ann_file import CIFAR10, CIFAR100
from ttfs_triton.convert.command import run
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.train.build import load_weights


def layers(source: Paper) -> list[nn.Module]:
    """All that computes something in a spiking network; layers with weights are sequences, of one by its name."""
    return [layer for layer in (*source.conv, nn.Flatten(), *source.fc) if not isinstance(layer, nn.Hardtanh)]


def proxy(source: Paper, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Activations; the first layer reads pixels of either sign, bright ones as spikes. Logits: A of the last."""
    (*hidden, readout), fired = layers(source), []
    for layer in hidden:
        if not isinstance(layer, nn.Sequential):
            x = layer(x)
            continue
        potential, slope = layer(x), layer((x > 0).to(x.dtype))
        inside = torch.where(potential + slope > 0, (potential + slope) / (1 + slope), 0.0)
        x = torch.where(potential >= 1, 1.0, inside)
        fired.append(x > 0)
    return readout(x), fired


def direct(source: Paper, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Times in the layer's own window, inf for none, behind a clamped convolution. Logits: potential at the end."""
    first, *hidden, readout = layers(source)
    analog = first(x).clamp(0, 1)
    times = torch.where(analog > 0, 1 - analog, math.inf)
    fired = [times != math.inf]
    for layer in hidden:
        if not isinstance(layer, nn.Sequential):
            times = -layer(-times)  # the earliest of a pool
            continue
        slope = layer((times != math.inf).to(x.dtype))
        weighted = layer(torch.where(times != math.inf, times, 0.0))
        # From the input's window on: slope · t − weighted = 2 − t, as the threshold falls from 1 at t = 1.
        crossing = (2 + weighted) / (1 + slope)
        crossing = torch.where((crossing < 0) | (crossing > 2), math.inf, crossing)
        crossing = torch.where(slope >= 1 + weighted, 1.0, crossing) - 1
        times = torch.where(crossing < 0, math.inf, crossing)
        fired.append(times != math.inf)
    spiked = times != math.inf
    return readout(spiked.to(x.dtype)) + readout(torch.where(spiked, 1 - times, 0.0)), fired


IMAGES = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def normalised(images):
    mean, std = (torch.tensor(values, dtype=images.dtype).view(-1, 1, 1) for values in CIFAR10)
    return (images - mean) / std


@pytest.mark.parametrize("published", [direct, proxy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_published_spiking_networks_compute_the_same(published, dtype):
    source = randomised(Paper(), 5)
    network = convert(weights_of(source), trained_as=published.__name__).network.to(dtype)
    images = IMAGES.to(dtype)
    expected, theirs_fired = published(source.to(dtype), normalised(images))
    fired = [activations > 0 for activations in hidden(network, images).values()]
    assert expected.std(0).max() > 1e-2
    torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=0)
    for ours, theirs in zip(fired, theirs_fired, strict=True):
        assert 0.02 < theirs.double().mean() < 0.98
        assert torch.equal(ours, theirs)


def test_published_networks_keep_encoder_readout_statistics_and_neuron():
    kinds = {"direct": ("analog", "potential_end"), "proxy": ("signed", "potential_start")}
    for kind, expected in (kinds | {"ann": ("analog", "potential_start")}).items():
        converted = convert(weights_of(Paper()), trained_as=kind, neuron=Neuron())
        config = converted.network.config
        assert (config.encoder, config.readout, (config.mean, config.std)) == (*expected, CIFAR10)
        assert converted.needs_calibration == (kind == "ann")
    assert convert(weights_of(Paper()), trained_as="direct").network.config.neuron == Neuron(derivative_clip=1e5)
    hundred = convert(weights_of(Paper(100)), trained_as="ann").network.config
    assert (hundred.mean, hundred.std) == CIFAR100


@pytest.mark.parametrize(("kernel", "hidden"), [(3, (16,)), (5, (20, 16))])
@pytest.mark.parametrize(("kind", "readout"), [("proxy", "potential_start"), ("direct", "potential_end")])
@torch.no_grad()
def test_published_networks_for_digits_are_not_padded(kernel, hidden, kind, readout):
    source = randomised(digits(kernel, hidden))
    network = convert(weights_of(source), trained_as=kind, readout="potential_start").network
    assert (network.config.encoder, network.config.image_size) == ("latency", (28, 28))
    assert network.config.specification.startswith(f"4C{kernel}p0-P2-6C{kernel}p0-P2-")
    images = torch.rand(8, 1, 28, 28).where(torch.rand(8, 1, 28, 28) > 0.5, 0.0)
    torch.testing.assert_close(network(images), proxy(source, images)[0], atol=1e-5, rtol=0)
    assert convert(weights_of(source), trained_as=kind).network.config.readout == readout


def test_padding_for_digits_gaps_and_trained_as_for_other_networks_are_refused():
    padded, ours = digits(), TTFSNetwork(NetworkConfig("4C3-P2-8", image_size=(8, 8)))
    padded.fc[0] = named(linear=nn.Linear(6 * 7 * 7, 16, bias=False))
    gap = padded.state_dict() | {"conv.9.cnn.weight": torch.ones(4, 6, 3, 3)}
    for tensors, kind, message in (
        (padded, "ann", r"fc\.0\.linear\.weight must have .* \[16, 150\]; got \[16, 294\]"),
        (gap, "ann", r"behind conv\.3\.cnn there must be .*got 5 places"),
        (padded, None, r"trained_as must be one of ann, direct, proxy for .* \(--trained-as\)"),
        (ours, "ann", "trained_as must be left out for weights not of the paper; got ann"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(weights_of(tensors), trained_as=kind)


@torch.no_grad()
def test_training_starts_from_published_networks_as_they_are(tmp_path):
    source = randomised(Paper())
    torch.save(source.state_dict(), tmp_path / "a.pkl")
    # The command asks for no images.
    run(ConvertOptions(source=str(tmp_path / "a.pkl"), output_dir=tmp_path / "out", trained_as="direct"))
    config = convert(tmp_path / "a.pkl", trained_as="direct").network.config.replace(bias=True, neuron=Neuron())
    network = TTFSNetwork(config).eval()
    assert load_weights(network, str(tmp_path / "out"), torch.rand(16, 3, 32, 32)).calibration is None
    images = IMAGES.float()
    torch.testing.assert_close(network(images), direct(source, normalised(images))[0], atol=1e-5, rtol=0)
