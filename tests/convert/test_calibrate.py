"""Initial potentials that bring a spiking network closest to its ANN, and how close its layers are."""

import copy
import io

import pytest
import torch
from rich.console import Console

from tests.convert import sources
from tests.convert.sources import SHORT, Named, classifier, features, randomised, weights_of
from ttfs_triton.convert import (
    ConversionError,
    Converted,
    calibrate,
    calibrate_converted,
    convert,
    fit_range,
    layer_correlations,
)
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork

IMAGES = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pair(sigma: float = 1.0, **more) -> Converted:
    return fit_range(convert(weights_of(randomised(sources.one_layer_head())), neuron=Neuron(sigma), **more), IMAGES)


def own(standardised: bool, encoder: str = "latency", sigma: float = 1.0) -> Converted:
    torch.manual_seed(1)
    config = NetworkConfig(
        "6C3-P2-8C3-16",
        in_channels=3,
        image_size=(12, 12),
        classes=4,
        encoder=encoder,
        neuron=Neuron(0.0),
        weight_standardisation=standardised,
    )
    return convert(weights_of(TTFSNetwork(config)), config=config, neuron=Neuron(sigma))


def test_calibration_brings_layers_closer():
    both = pair()
    layers = calibrate(both.network, both.ann, IMAGES).layers
    assert [layer.name for layer in layers] == list(both.ann.hidden(IMAGES))
    first, *others = layers
    assert first.before == pytest.approx(1)  # analog in both
    assert first.shift == 0
    assert all(layer.after > layer.before for layer in others)


def test_initial_potential_is_the_best_of_a_fine_scan():
    """First spiking layer, one channel at a time, in float64."""
    both = own(standardised=False)
    images = IMAGES[:, :, :12, :12]
    plain = copy.deepcopy(both.network.features.conv1)
    calibrate(both.network, both.ann, images, samples=10**9)
    x, target = images.double(), both.ann.hidden(images)["conv1"].double()
    weight = plain.weight.double()
    potential = torch.nn.functional.conv2d(x, weight, padding=1)
    slope = torch.nn.functional.conv2d((x > 0).double(), weight, padding=1)

    def error(initial: torch.Tensor) -> torch.Tensor:
        start = potential + initial.view(-1, 1, 1)
        crossing = torch.where(start + slope > 0, (start + slope) / (1 + slope), 0.0)
        activations = torch.where(start >= 1, 1.0, crossing)
        return (activations - target).square().mean((0, 2, 3))

    scan = torch.stack([error(plain.bias.double() + step) for step in torch.linspace(-2, 2, 513, dtype=torch.float64)])
    torch.testing.assert_close(error(both.network.features.conv1.bias.double()), scan.amin(0), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("standardised", [True, False])
def test_only_initial_potentials_change(standardised):
    both = own(standardised, "analog")
    before = {name: tensor.clone() for name, tensor in both.network.state_dict().items()}
    layers = calibrate(both.network, both.ann, IMAGES[:, :, :12, :12]).layers
    changed = {name for name, tensor in both.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"features.conv2.bias", "features.fc1.bias"}
    for layer in layers[1:]:
        name = f"features.{layer.name}.bias"
        change = (both.network.state_dict()[name] - before[name]).mean().item()
        assert layer.shift == pytest.approx(change, abs=1e-6)
        assert change != 0


def test_network_without_persistence_stays_as_it_is():
    both = pair(sigma=0.0)
    before = copy.deepcopy(both.network.state_dict())
    layers = calibrate(both.network, both.ann, IMAGES).layers
    for name, tensor in both.network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=2 / 256, rtol=0)
    assert all(layer.after == pytest.approx(1, abs=1e-3) for layer in layers)


def test_batches_and_mode_do_not_matter():
    one, other = pair(), pair()
    other.network.train()
    calibrate(one.network, one.ann, IMAGES, samples=10**9)
    calibrate(other.network, other.ann, IMAGES, samples=10**9, batch_size=7)
    assert other.network.training
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2 / 256, rtol=0)


def test_calibration_does_not_depend_on_the_device(device):
    one, other = pair(), pair()
    other.network.to(device)
    other.ann.to(device)
    other = fit_range(other, IMAGES.to(device))
    layers = calibrate(one.network, one.ann, IMAGES, samples=10**9).layers
    there = calibrate(other.network, other.ann, IMAGES.to(device), samples=10**9).layers
    for ours, theirs in zip(layers, there, strict=True):
        assert theirs.after == pytest.approx(ours.after, abs=1e-3)
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert theirs.device == device
        torch.testing.assert_close(mine, theirs.cpu(), atol=2 / 256, rtol=0)


def test_progress_names_each_layer():
    both, names = pair(), []
    calibrate(both.network, both.ann, IMAGES, progress=names.append)
    assert names == [f"conv{number}" for number in range(2, 9)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: convert(weights_of(randomised(sources.one_layer_head()))),
            "clamped to .0, 1.; got an upper bound of None",
        ),
        (
            lambda: convert(weights_of(randomised(sources.paper())), trained_as="ann"),
            "potentials; got bias=False in conv2",
        ),
    ],
)
def test_pairs_that_cannot_be_calibrated_are_refused(make, message):
    both = make()
    with pytest.raises(ConversionError, match=message):
        calibrate(both.network, both.ann, IMAGES)


def test_other_networks_and_no_images_are_refused():
    both, others = pair(), own(True)
    with pytest.raises(ConversionError, match="must have the layers of the network"):
        calibrate(both.network, others.ann, IMAGES)
    with pytest.raises(ConversionError, match="at least one image"):
        calibrate(both.network, both.ann, IMAGES[:0])


def test_calibration_is_shown_and_written():
    both = pair()
    found = calibrate(both.network, both.ann, IMAGES)
    written = found.to_dict()
    assert written["images"] == len(IMAGES)
    assert [layer["name"] for layer in written["layers"]] == [layer.name for layer in found.layers]
    console = Console(width=100, file=io.StringIO())
    console.print(found.table())
    shown = console.file.getvalue()
    for layer in found.layers:
        assert f"{layer.after:.3f}" in shown
        assert f"{layer.shift:+.3f}" in shown


def test_calibrating_a_converted_network_fits_its_range_first():
    by_hand = pair()
    expected = calibrate(by_hand.network, by_hand.ann, IMAGES)
    found, calibration = calibrate_converted(convert(weights_of(randomised(sources.one_layer_head()))), IMAGES)
    assert calibration == expected
    assert found.ann.bound == 1
    for mine, theirs in zip(found.network.parameters(), by_hand.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def short(sigma: float):
    source = randomised(
        Named(
            features=torch.nn.Sequential(*features(SHORT)),
            flatten=torch.nn.Flatten(),
            classifier=classifier(6 * 16, 96, 4),
        )
    )
    return convert(weights_of(source), neuron=Neuron(sigma), image_size=16)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_correlation_is_that_of_all_activations(batch_size):
    images = torch.rand(12, 3, 16, 16)
    pair = fit_range(short(1.0), images)
    found = layer_correlations(pair.network, pair.ann, images, batch_size)
    activations = pair.ann.hidden(images)
    assert list(found) == list(activations)
    x = images
    for name, layer in pair.network.features.named_children():
        x = layer(x)
        if name in found:
            both = torch.stack([x.flatten(), activations[name].flatten()]).detach().double()
            value = found[name]
            assert value is not None
            assert value == pytest.approx(torch.corrcoef(both)[0, 1].item(), abs=1e-6)


def test_correlation_without_persistence_is_one():
    images = torch.rand(8, 3, 16, 16)
    pair = fit_range(short(0.0), images)
    values = layer_correlations(pair.network, pair.ann, images).values()
    assert values
    assert all(value == pytest.approx(1, abs=1e-6) for value in values)


def test_correlation_of_a_constant_layer_is_none():
    images = torch.rand(4, 3, 16, 16)
    pair = fit_range(short(1.0), images)
    with torch.no_grad():
        pair.network.features.conv2.bias.fill_(-100.0)
    found = layer_correlations(pair.network, pair.ann, images)
    assert found["conv1"] is not None
    assert found["conv2"] is None
