"""A trained network on a grid without training."""

import json

import pytest
import torch

from tests.convert.test_calibrate_network import skipping
from tests.data.fixtures import _own_cache, write_parquet
from tests.train.runs import make_images
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.convert.grid_command import main
from ttfs_triton.model import TTFSModel, find_model
from ttfs_triton.model.builder import build_network_of
from ttfs_triton.model.load import load_model
from ttfs_triton.nn import Grid, NetworkConfig, Neuron, TTFSNetwork

__all__ = ["_own_cache", "write_parquet"]
CONFIG = NetworkConfig("6C3-P2-16", image_size=(8, 8), classes=4, neuron=Neuron(0.25), readout="potential_end")


def drawn(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    network = TTFSNetwork(config)
    with torch.no_grad():
        for layer in (*network.features, network.readout):
            if hasattr(layer, "weight_gain"):
                layer.weight_gain.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.2, 0.2)
    return network


OWN = """
from torch import nn
from ttfs_triton.nn import DFTLinear, Grid, LatencyEncoder, PotentialReadout, put_on_grid

def build(classes):
    return nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, 16), PotentialReadout(16, classes))

def on_grid(classes):
    network = build(classes)
    put_on_grid(network, Grid(8, 4))
    return network
"""


def test_recipe_puts_an_own_network_on_a_grid(tmp_path, write_parquet, capsys):
    data, code = make_images(tmp_path / "images", write_parquet), tmp_path / "own.py"
    code.write_text(OWN)
    network = build_network_of(f"{code}:build", in_channels=1, image_size=(8, 8), classes=4)
    TTFSModel(network, image_shape=(1, 8, 8), builder="own.py:build").save_pretrained(tmp_path / "plain")
    words = [tmp_path / "plain", "--network", f"{code}:build", "--data-dir", data, "--output-dir", tmp_path / "grid"]
    main(None, [str(word) for word in [*words, "--cpu", "--time-steps", 8, "--weight-bits", 4, "--images", 20]])
    assert "name a function that calls ttfs_triton.nn.put_on_grid" in capsys.readouterr().out
    loaded = load_model(find_model(tmp_path / "grid"), f"{code}:on_grid")
    assert loaded.graph.grid == Grid(8, 4)


def test_network_with_skips_comes_closer(device):
    config = CONFIG.replace(specification="6C3-(6C3-6C3)x2-A")
    network, images = drawn(config).to(device).eval(), torch.rand(20, 1, 8, 8, device=device)
    rounded = drawn(config).to(device).eval()
    rounded.put_on_grid(Grid(8, 3))
    with torch.no_grad():
        before = network(images)
        found = calibrate_grid(network, images, Grid(8, 3), batch_size=7)
        ours, theirs = ((each(images) - before).square().mean() for each in (network, rounded))
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "conv3", "conv4", "conv5", "readout"]
    assert all(layer.after <= layer.before + 1e-9 for layer in found.layers)
    assert ours < theirs


def test_network_of_other_modules_comes_onto_the_grid():
    network = skipping()
    found = calibrate_grid(network, torch.rand(8, 3, 12, 12), Grid(8, 4))
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "conv3", "hidden", "readout"]
    assert network.readout.grid == Grid(8, 4)


@pytest.mark.parametrize("grid", [Grid(4, 2), Grid(8, 3, per_channel=False), Grid(4)])
@pytest.mark.parametrize("encoder", ["latency", "analog"])
def test_calibration_brings_every_layer_closer(grid, encoder, device):
    network, images = drawn(CONFIG.replace(encoder=encoder)).to(device), torch.rand(60, 1, 8, 8, device=device)
    before = network.eval()(images)
    rounded = drawn(CONFIG.replace(encoder=encoder)).to(device).eval()
    rounded.put_on_grid(grid)
    found = calibrate_grid(network, images, grid, batch_size=25)
    assert [layer.name for layer in found.layers] == ["conv1", "fc1", "readout"]
    assert all(layer.after <= layer.before + 1e-9 for layer in found.layers)
    assert network.config.grid == grid
    with torch.no_grad():
        ours, theirs = ((each(images) - before).square().mean() for each in (network, rounded))
    assert ours < theirs
    assert found.to_dict()["grid"] == grid.to_dict()
    assert len(found.table().rows) == 3


def test_many_steps_and_bits_are_as_good_as_none():
    # σ = 0: a late spike that appears or vanishes is no jump there.
    network, images = drawn(CONFIG.replace(neuron=Neuron(0.0))), torch.rand(30, 1, 8, 8)
    with torch.no_grad():
        before = network.eval()(images)
        calibrate_grid(network, images, Grid(256, 12))
        torch.testing.assert_close(network(images), before, atol=0.02, rtol=0)


def test_calibration_needs_images_and_registers():
    with pytest.raises(ValueError, match="images must be some images; got none"):
        calibrate_grid(drawn(), torch.rand(0, 1, 8, 8), Grid(4))
    with pytest.raises(ValueError, match="state_bits must hold every layer's threshold"):
        calibrate_grid(drawn(), torch.rand(2, 1, 8, 8), Grid(64, 8, state_bits=6))


def test_recipe_writes_a_network_on_its_grid(tmp_path, write_parquet, capsys):
    data = make_images(tmp_path / "images", write_parquet)
    model = TTFSModel(CONFIG, class_names=list("abcd"))
    model.save_pretrained(tmp_path / "plain")
    words = [tmp_path / "plain", "--data-dir", data, "--output-dir", tmp_path / "grid", "--cpu"]
    words += ["--time-steps", 4, "--weight-bits", 3, "--weight-units", "tensor", "--images", 40]
    main(None, [str(word) for word in words])
    loaded = TTFSModel.from_pretrained(tmp_path / "grid")
    assert loaded.config.grid == Grid(4, 3, per_channel=False)
    assert loaded.class_names == ("a", "b", "c", "d")
    assert json.loads((tmp_path / "grid" / "calibration.json").read_text())["images"] == 40
    assert "written: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(None, [str(word) for word in words])
    assert "output_dir must not hold anything" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(None, [str(tmp_path / "plain"), "--output-dir", str(tmp_path / "other"), "--time-steps", "4"])
    assert "--data-dir or --dataset must name training images" in capsys.readouterr().err
