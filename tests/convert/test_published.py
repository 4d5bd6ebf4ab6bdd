"""The paper's published networks, read from their own files: the same logits and the same spikes."""

import pytest
import torch

from tests.convert.published import Direct, ForDigits, Proxy, saved
from tests.convert.sources import hidden, paper_linear, randomised, weights_of
from ttfs_kernels import Neuron
from ttfs_triton.commands import ConvertOptions
from ttfs_triton.convert import ConversionError, convert
from ttfs_triton.convert.ann_file import CIFAR10
from ttfs_triton.convert.command import run
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import NetworkConfig, SignedEncoder, TTFSNetwork
from ttfs_triton.train.build import load_weights

KINDS = {"direct": Direct, "proxy": Proxy}
IMAGES = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def normalised(images):
    mean, std = (torch.tensor(values, dtype=images.dtype).view(-1, 1, 1) for values in CIFAR10)
    return (images - mean) / std


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_published_spiking_networks_compute_the_same(tmp_path, kind, seed, dtype):
    source = randomised(KINDS[kind](), seed)
    converted = convert(saved(source, tmp_path / "cifar10best.pkl"), trained_as=kind)
    assert not converted.needs_calibration
    network, images = converted.network.to(dtype), IMAGES.to(dtype)
    expected = source.to(dtype)(normalised(images))
    logits, fired = network(images), [activations > 0 for activations in hidden(network, images).values()]
    assert expected.std(0).max() > 1e-2
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert len(fired) == len(source.fired)
    for ours, theirs in zip(fired, source.fired, strict=True):
        assert 0.02 < theirs.double().mean() < 0.98
        assert torch.equal(ours, theirs)


def test_published_networks_keep_encoder_readout_and_neuron(tmp_path):
    path = saved(randomised(Direct()), tmp_path / "a.pkl")
    direct, proxy, ann = (convert(path, trained_as=kind) for kind in ("direct", "proxy", "ann"))
    found = [(c.network.config.encoder, c.network.config.readout, c.needs_calibration) for c in (direct, proxy, ann)]
    assert found == [
        ("analog", "potential_end", False),
        ("signed", "potential_start", False),
        ("analog", "potential_start", True),
    ]
    assert direct.network.config.neuron == Neuron(derivative_clip=1e5)
    assert "trained as direct, as stated: the paper's networks share their names" in direct.report.notes
    assert isinstance(proxy.network.features[0], SignedEncoder)
    # The command asks for no images.
    written = run(ConvertOptions(source=str(path), output_dir=tmp_path / "out", trained_as="proxy"))
    assert not written.network.config.bias


@pytest.mark.parametrize(("kernel", "hidden"), [(3, (16,)), (5, (20, 16))])
@pytest.mark.parametrize(("kind", "readout"), [("proxy", "potential_start"), ("direct", "potential_end")])
@torch.no_grad()
def test_published_networks_for_digits_are_not_padded(tmp_path, kernel, hidden, kind, readout):
    source = randomised(ForDigits(kernel, hidden))
    network = convert(saved(source, tmp_path / "mnist.pkl"), trained_as=kind, readout="potential_start").network
    assert (network.config.encoder, network.config.image_size) == ("latency", (28, 28))
    assert network.config.specification.startswith(f"4C{kernel}p0-P2-6C{kernel}p0-P2-")
    images = torch.rand(8, 1, 28, 28).where(torch.rand(8, 1, 28, 28) > 0.5, 0.0)
    torch.testing.assert_close(network(images), source(images), atol=1e-5, rtol=0)
    assert convert(tmp_path / "mnist.pkl", trained_as=kind).network.config.readout == readout


def test_padding_for_digits_and_trained_as_for_other_networks_are_refused(tmp_path):
    padded = ForDigits()
    padded.fc[0] = paper_linear(6 * 7 * 7, 16)
    with pytest.raises(ConversionError, match=r"fc\.0\.linear\.weight must have .* \[16, 150\]; got \[16, 294\]"):
        convert(saved(padded, tmp_path / "a.pkl"), trained_as="ann")
    gap = padded.state_dict()
    gap["conv.9.cnn.weight"] = torch.ones(4, 6, 3, 3)
    with pytest.raises(ConversionError, match=r"behind conv\.3\.cnn there must be .*got 5 places"):
        convert(weights_of(gap), trained_as="ann")
    with pytest.raises(ConversionError, match=r"trained_as must be one of ann, direct, proxy for .* \(--trained-as\)"):
        convert(tmp_path / "a.pkl")
    TTFSModel(NetworkConfig("4C3-P2-8", image_size=(8, 8))).save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="trained_as must be left out for weights not of the paper; got ann"):
        convert(tmp_path, trained_as="ann")


@torch.no_grad()
def test_training_starts_from_published_networks_as_they_are(tmp_path):
    source = randomised(Direct())
    path = saved(source, tmp_path / "a.pkl")
    run(ConvertOptions(source=str(path), output_dir=tmp_path / "out", trained_as="direct"))
    config = convert(path, trained_as="direct").network.config.replace(bias=True, neuron=Neuron())
    network = TTFSNetwork(config).eval()
    start = load_weights(network, str(tmp_path / "out"), torch.rand(16, 3, 32, 32))
    assert start.calibration is None
    images = IMAGES.float()
    torch.testing.assert_close(network(images), source(normalised(images)), atol=1e-5, rtol=0)
