"""Initial potentials that bring a network closest to the ANN of its weights, or a grid closest to none."""

import json
import re
from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.train.runs import make_images
from ttfs_triton.commands import calibrate as main
from ttfs_triton.convert import ConversionError, calibrate_network
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import DFTConv2d, DFTLinear, Grid, LatencyEncoder, NetworkConfig, Neuron, Readout, TTFSNetwork
from ttfs_triton.nn.graph import network_graph
from ttfs_triton.nn.prepare import put_on_grid

IMAGES = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Skipping(nn.Module):
    """Spikes of the first convolution wait for a window, and reach two of the third's three channels."""

    def __init__(self, sigma: float, **options) -> None:
        super().__init__()
        neuron = Neuron(psp_persistence=sigma)
        self.encoder = LatencyEncoder()
        self.conv1 = DFTConv2d(3, 2, 3, padding=1, neuron=neuron, initial_gain=1.0)
        self.conv2 = DFTConv2d(2, 4, 3, padding=1, neuron=neuron, initial_gain=1.0)
        self.conv3 = DFTConv2d(4, 3, 3, padding=1, skip=2, neuron=neuron, initial_gain=1.0, **options)
        self.hidden = DFTLinear(3 * 12 * 12, 8, neuron=neuron, average=144)
        self.readout = Readout(8, 4, neuron=neuron)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        early = self.conv1(self.encoder(images))
        return self.readout(self.hidden(self.conv3(self.conv2(early), skip=early).flatten(1)))


def skipping(sigma: float = 1.0, **options) -> Skipping:
    torch.manual_seed(3)
    network = Skipping(sigma, **options)
    with torch.no_grad():
        network.conv3.skip_weight.copy_(torch.tensor([0.8, -0.6]))
    return network


def drawn(sigma: float = 1.0, specification: str = "6C3-P2-8C3-16", **options) -> TTFSNetwork:
    torch.manual_seed(1)
    config = NetworkConfig(specification, in_channels=3, image_size=(12, 12), classes=4, neuron=Neuron(sigma))
    return TTFSNetwork(config.replace(**({"initial_gain": 1.0} | options))).eval()


def spikes_of(network: Skipping, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations of the layers up to the skip's."""
    early = network.conv1(network.encoder(x))
    late = network.conv2(early)
    return {"conv1": early, "conv2": late, "conv3": network.conv3(late, skip=early)}


# ---- against the ANN


@torch.no_grad()
def test_layers_of_a_network_with_a_skip_come_closer_to_its_ann():
    network, wanted = skipping(), spikes_of(skipping(sigma=0.0), IMAGES)
    copied = spikes_of(network, IMAGES)
    found = calibrate_network(network, IMAGES)
    calibrated = spikes_of(network, IMAGES)
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "conv3", "hidden"]
    for layer in found.layers[:3]:
        before, after = ((spikes[layer.name] - wanted[layer.name]).square().mean() for spikes in (copied, calibrated))
        assert layer.after == pytest.approx(after.sqrt().item(), rel=1e-5)
        assert layer.after < layer.before
        assert after < before


@torch.no_grad()
def test_initial_potentials_behind_a_skip_are_the_best_of_a_fine_scan():
    """One channel at a time, in float64, from the formulas."""
    network, ann = skipping(), skipping(sigma=0.0)
    calibrate_network(network, IMAGES, samples=10**9)
    spikes, wanted = spikes_of(network, IMAGES), spikes_of(ann, IMAGES)["conv3"].double()
    layer, x, early = network.conv3, spikes["conv2"].double(), spikes["conv1"].double()
    weight, delayed = layer.effective_weight().double(), torch.tensor([0.8, -0.6, 0.0], dtype=torch.float64)
    early = torch.cat([early, torch.zeros_like(early[:, :1])], 1)
    potential = nn.functional.conv2d(x, weight, padding=1) + delayed.view(-1, 1, 1) * early
    slope = nn.functional.conv2d((x > 0).double(), weight, padding=1) + delayed.view(-1, 1, 1) * (early > 0)

    def error(initial: torch.Tensor) -> torch.Tensor:
        A = potential + initial.view(-1, 1, 1)
        fired = torch.where(A >= 1, 1.0, torch.where(A + slope > 0, (A + slope) / (1 + slope), 0.0))
        return (fired - wanted).square().mean((0, 2, 3))

    scan = torch.stack([error(torch.full((3,), each)) for each in torch.linspace(-2, 2, 401, dtype=torch.float64)])
    assert (error(layer.bias.double()) <= scan.min(0).values + 1e-4).all()


@pytest.mark.parametrize("encoder", ["latency", "analog", "signed"])
@pytest.mark.parametrize("standardised", [True, False])
def test_only_initial_potentials_change(encoder, standardised):
    network = drawn(encoder=encoder, weight_standardisation=standardised)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layers = calibrate_network(network, IMAGES).layers
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) or name in [f"features.{layer.name}.bias" for layer in layers]
    for layer in layers:
        name = f"features.{layer.name}.bias"
        assert layer.shift == pytest.approx((network.state_dict()[name] - before[name]).mean().item(), abs=1e-6)


def test_without_a_slope_there_is_nothing_to_calibrate():
    network = skipping(sigma=0.0).train()
    found = calibrate_network(network, IMAGES)
    assert network.training
    for layer in found.layers:
        assert (layer.before, layer.after, layer.shift) == pytest.approx((0, 0, 0), abs=1e-6)


def test_batches_and_devices_do_not_matter(device):
    one, other = drawn(0.5, "8C3-(8C3-8C3)x2-(16C3s2-16C3)-A"), drawn(0.5, "8C3-(8C3-8C3)x2-(16C3s2-16C3)-A").to(device)
    layers = calibrate_network(one, IMAGES, samples=10**9).layers
    there = calibrate_network(other, IMAGES.to(device), samples=10**9, batch_size=7).layers
    assert all(layer.after <= layer.before for layer in layers)
    for ours, theirs in zip(layers, there, strict=True):
        assert theirs.after == pytest.approx(ours.after, abs=1e-3)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert theirs.device == device
        torch.testing.assert_close(mine, theirs.cpu(), atol=2 / 256, rtol=0)


# ---- on a grid


@pytest.mark.parametrize(
    ("network", "grid"),
    [
        (drawn(0.25), Grid(4, 2)),
        (drawn(0.25, encoder="analog", readout="potential_end"), Grid(8, 3, per_channel=False)),
        (drawn(0.25), Grid(4)),
        (drawn(0.25, "6C3-(6C3-6C3)x2-A"), Grid(8, 3)),
        (skipping().eval(), Grid(8, 4)),
    ],
)
@torch.no_grad()
def test_every_layer_comes_closer_to_what_it_is_without_a_grid(network, grid, device):
    network, rounded, images = deepcopy(network).to(device), deepcopy(network).to(device), IMAGES.to(device)
    before = network(images)
    put_on_grid(rounded, grid)
    found, graph = calibrate_grid(network, images, grid, batch_size=7), network_graph(network, images.shape[1:])
    assert all(layer.after <= layer.before + 1e-9 for layer in found.layers)
    assert [layer.name for layer in found.layers] == [stage.name for stage in graph.weighted]
    ours, theirs = ((each(images) - before).square().mean() for each in (network, rounded))
    assert ours < theirs
    assert (network.readout.grid, found.to_dict()["grid"]) == (grid, grid.to_dict())
    assert len(found.table().rows) == len(found.layers)


def test_what_cannot_be_calibrated_is_refused():
    on_grid = skipping()
    put_on_grid(on_grid, Grid(8, 4))
    for calibrate, message in (
        (lambda: calibrate_network(skipping(bias=False), IMAGES), "have initial potentials; got bias=False in conv3"),
        (lambda: calibrate_network(skipping(), IMAGES[:0]), "images must hold at least one; got no images"),
        (lambda: calibrate_network(on_grid, IMAGES), "got a network on a grid"),
    ):
        with pytest.raises(ConversionError, match=message):
            calibrate()
    with pytest.raises(ValueError, match="images must hold at least one image; got none"):
        calibrate_grid(drawn(), IMAGES[:0], Grid(4))
    with pytest.raises(ValueError, match="state_bits must hold every layer's threshold"):
        calibrate_grid(drawn(), IMAGES[:2], Grid(64, 8, state_bits=6))


def test_recipe_writes_a_network_on_its_grid(tmp_path, capsys):
    data = make_images(tmp_path / "images")
    config = NetworkConfig("6C3-P2-16", image_size=(8, 8), classes=4)
    TTFSModel(config, class_names=list("abcd")).save_pretrained(tmp_path / "plain")
    words = [tmp_path / "plain", "--data-dir", data, "--output-dir", tmp_path / "grid", "--cpu"]
    words += ["--time-steps", 4, "--weight-bits", 3, "--weight-units", "tensor", "--images", 40]
    main(None, [str(word) for word in words])
    loaded = TTFSModel.from_pretrained(tmp_path / "grid")
    assert (loaded.config.grid, loaded.class_names) == (Grid(4, 3, per_channel=False), tuple("abcd"))
    assert json.loads((tmp_path / "grid" / "calibration.json").read_text())["images"] == 40
    shown = capsys.readouterr().out
    assert "written: " in shown
    assert re.search(r"accuracy on \d+ other training images: \d+\.\d\d% → \d", shown)
