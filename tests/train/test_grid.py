"""Training on a chip's grid, from the command line to a network that decides as its simulation."""

import json

import pytest
import torch

from tests.train.runs import SETTINGS, change
from ttfs_triton.chip import simulate
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.data.images import draw_images, load_images
from ttfs_triton.data.pixels import to_float
from ttfs_triton.model import BaseModel, TTFSModel
from ttfs_triton.nn import Faults, Grid, NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.train import TrainConfig, train
from ttfs_triton.train.build import Start, build_network, start_on_grid
from ttfs_triton.train.data import RunData

ON_GRID = {"time_steps": 4, "weight_bits": 3, "psp_persistence": 0.25, "readout": "potential_end"}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run on 4 steps and 3 bits, for chips with faults."""
    folder = tmp_path_factory.mktemp("grid") / "run"
    values = SETTINGS | ON_GRID | {"spike_jitter": 0.05, "lost_spikes": 0.02}
    train(TrainConfig(**values, data_dir=data, output_dir=folder))
    return folder


@pytest.fixture(scope="module")
def split(data):
    images = load_images(None, data, split="train", like=None)
    return RunData(images, images, torch.arange(len(images)), torch.arange(0))


def test_validation_and_simulator_decide_alike(trained, data):
    summary, model = json.loads((trained / "summary.json").read_text()), TTFSModel.from_pretrained(trained)
    held_out = load_images(None, data, split="test", like=None)
    images, labels = to_float(held_out.images_at(torch.arange(len(held_out)))), held_out.labels
    with torch.no_grad():
        decided, logits = model.decide(images), model(images)
    found = simulate(model, [(images, labels)])
    assert (found.settings.steps, found.settings.weight_bits) == (4, 3)
    assert torch.equal(logits.argmax(1), found.predictions)
    assert torch.equal(decided.prediction, found.first_spike_predictions)
    keys = ("test_accuracy", "test_first_spike_accuracy", "ties")
    assert [found.accuracy, found.first_spike_accuracy, found.ties] == [summary[key] for key in keys]
    for ours, theirs in zip(found.counts.layers, summary["counts"]["layers"], strict=True):
        assert (ours.spikes, ours.synaptic_operations) == (theirs["spikes"], theirs["synaptic_operations"])


def test_training_continues_on_the_grid_of_the_weights(trained, split, config):
    """Another grid calibrates scales and initial potentials first."""
    same = change(config, weights=str(trained), **ON_GRID)
    trained_units = TTFSModel.from_pretrained(trained).features.conv1.log2_unit
    network, start = build_network(same, split)
    assert start is not None
    assert start.grid == Grid(4, 3)
    assert torch.equal(network.features.conv1.log2_unit, trained_units)
    other = build_network(change(same, time_steps=8, learn_units=False), split)[0]
    assert not other.features.conv1.log2_unit.requires_grad
    calibrated = TTFSModel.from_pretrained(trained).network
    calibrate_grid(calibrated, draw_images(split.train, 256, config.seed, split.train_indices), Grid(8, 3))
    for name, tensor in calibrated.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    fitted = build_network(change(same, time_steps=8, calibration_images=0), split)[0]
    assert torch.equal(fitted.features.conv1.bias, network.features.conv1.bias)
    assert not torch.equal(fitted.features.conv1.bias, other.features.conv1.bias)
    without, _ = build_network(change(same, time_steps=None, weight_bits=None, lost_spikes=0.1), split)
    assert without.config.grid is None
    assert without.features.conv1.faults == Faults(lost_spikes=0.1)


def test_registers_that_are_too_small_are_told_before_training():
    config = NetworkConfig("4C3-P2-8", image_size=(8, 8), classes=4, neuron=Neuron(0.25), readout="potential_end")
    with pytest.raises(ValueError, match=r"Grid: state_bits must hold every layer's threshold, .* Use at least \d+"):
        start_on_grid(TTFSNetwork(config), Grid(64, 8, state_bits=8))
    network, grid = TTFSNetwork(config), Grid(4, 3, state_bits=16)
    learned = Start(BaseModel("here", "0" * 64), None, grid, {"features.conv1.log2_unit": torch.full((4,), -20.0)})
    start_on_grid(network, grid, learned)
    assert network.features.conv1.unit_on_grid(3, True).tolist() == [4 / grid.register] * 4, "they are clamped"
