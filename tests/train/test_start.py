"""A run's network by its name and options, on a chip's grid too, and the weights that it starts from."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from tests.convert import sources
from tests.convert.sources import chain, randomised
from tests.train.runs import SETTINGS, change
from ttfs_triton.chip import simulate
from ttfs_triton.convert import convert, open_weights
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.data.images import draw_images, load_images
from ttfs_triton.data.pixels import to_float
from ttfs_triton.model import BaseModel, TTFSModel
from ttfs_triton.model.files import weight_bytes
from ttfs_triton.nn import Faults, Grid, NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.nn.networks import RESNET18, VGG11, cifarnet_specification
from ttfs_triton.train import ConfigError, TrainConfig, train
from ttfs_triton.train.build import build_network, load_weights
from ttfs_triton.train.data import RunData, load_data
from ttfs_triton.train.optimisation import PersistenceSchedule

OURS = NetworkConfig(
    "6C3-P2-8C3-P2-12",
    in_channels=3,
    image_size=(8, 8),
    classes=4,
    encoder="analog",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    neuron=Neuron(0.0),
)


def trained(config: NetworkConfig) -> TTFSNetwork:
    """A network with batch norms, gains and biases that do something."""
    network = TTFSNetwork(config).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.1 if name.endswith("bias") else 0.5, 1.5)
    return network


def save(network: TTFSNetwork, folder):
    """As the trainer keeps its best weights."""
    TTFSModel.from_network(network).save_pretrained(folder / "best")
    return folder


def target(config: NetworkConfig = OURS, **changes) -> TTFSNetwork:
    """A network as a training configuration asks for, whose images have another mean."""
    return TTFSNetwork(config.replace(**({"batch_norm": False, "mean": (0.1, 0.1, 0.1)} | changes))).eval()


@pytest.mark.parametrize(
    ("source", "kept"), [({}, True), ({}, False), ({"batch_norm": True}, False), ({"bias": False}, True)]
)
def test_images_are_normalised_as_the_weights_are_used_to(tmp_path, source, kept):
    trained_network, images = trained(OURS.replace(**source)), torch.rand(5, 3, 8, 8)
    network = target(dropout=0.5, weight_standardisation=kept, bias=source.get("bias", True))
    load_weights(network, str(save(trained_network, tmp_path / "run")))
    assert (network.config.mean, network.config.std) == (OURS.mean, OURS.std)
    assert network.config.dropout == 0.5
    with torch.no_grad():
        torch.testing.assert_close(network(images), trained_network(images), atol=1e-5, rtol=1e-5)


def test_a_new_readout_takes_other_classes_on_the_trained_layers(tmp_path):
    trained_network = trained(OURS)
    source = str(save(trained_network, tmp_path / "run"))
    with pytest.raises(ConfigError, match="does not fit the network"):
        load_weights(target(classes=7), source)
    for classes in (7, 4):
        network = target(classes=classes)
        drawn = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith("readout.")}
        load_weights(network, source, new_readout=True)
        assert drawn
        for name, value in network.state_dict().items():
            assert torch.equal(value, drawn[name] if name in drawn else trained_network.state_dict()[name])
    plain = save(TTFSNetwork(OURS.replace(weight_standardisation=False)), tmp_path / "plain")
    with pytest.raises(ConfigError, match="Give --no-weight-standardisation"):
        load_weights(target(classes=7), str(plain), new_readout=True)


CHAIN = chain(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))


def test_an_ann_of_another_project_is_taken_as_it_is_or_scaled_into_range(tmp_path):
    vgg = tmp_path / "vgg.pth"  # with plain ReLU, and its images' mean
    torch.save({"net": randomised(sources.one_layer_head()).state_dict()}, vgg)
    (tmp_path / "config.json").write_text(json.dumps(sources.TIMM_CONFIG))
    converted = convert(vgg, config=CHAIN)
    network = target(converted.network.config, readout="potential_end", neuron=Neuron(0.25))
    start = load_weights(network, str(vgg))
    assert (start.base_model, start.calibration) == (BaseModel("vgg.pth", open_weights(vgg).sha256), None)
    for name, value in converted.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
    assert network.config == converted.network.config.replace(readout="potential_end", neuron=Neuron(0.25))
    torch.testing.assert_close(network.features.conv1.mean.flatten(), torch.tensor(sources.TIMM_CONFIG["mean"]))
    for sigma in (1.0, 0.0):
        network = TTFSNetwork(converted.network.config.replace(neuron=Neuron(sigma)))
        layers = load_weights(network, str(vgg), torch.rand(16, 3, 32, 32)).calibration.layers
        assert [layer.name for layer in layers] == [f"conv{number}" for number in range(1, 9)]
        assert all(layer.after < (layer.before if sigma else 1e-6) for layer in layers[1:])


def test_a_network_with_batch_norm_starts_where_weights_are_normalised_or_not(tmp_path, device):
    plain, normalised = trained(OURS), trained(OURS.replace(batch_norm=True))
    network, images = target(batch_norm=True, weight_standardisation=False), torch.rand(64, 3, 8, 8)
    folder = str(save(plain, tmp_path / "plain"))
    with pytest.raises(ConfigError, match="its statistics must come from calibration images; got none"):
        load_weights(network, folder, None)
    load_weights(network, folder, images.to(device))
    torch.testing.assert_close(network(images), plain(images), rtol=1e-3, atol=1e-4)
    assert network.config.mean == OURS.mean
    network = target(batch_norm=True, neuron=Neuron(1.0))
    load_weights(network, str(save(normalised, tmp_path / "normalised")), images)
    for name, tensor in normalised.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    with pytest.raises(ConfigError, match=r"weight_standardisation must be False, .*--no-weight-standardisation"):
        load_weights(target(weight_standardisation=True), str(tmp_path / "normalised"))


def test_statistics_fit_the_first_step_where_persistence_rises(config, tmp_path):
    plain = trained(NetworkConfig("4C3-P2-8", image_size=(8, 8), classes=4, neuron=Neuron(0.0)))
    values = {"weights": str(save(plain, tmp_path / "plain")), "batch_norm": True, "weight_standardisation": False}
    config = change(config, **values, dropout=0.0, validation_fraction=0.0, psp_persistence_rise=(0.2, 0.5))
    data = load_data(config, Accelerator(cpu=True))
    network = build_network(config, data)[0].train()
    assert network.config.neuron.psp_persistence == network.features.conv1.neuron.psp_persistence == 1
    PersistenceSchedule([network], (0.2, 0.5), 10, torch.device("cpu")).set(0)
    images = data.train.images_at(data.train_indices) / 255
    torch.testing.assert_close(network(images), plain(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"specification": "6C3-8C3-P2-P2-12"}, r"specification must be 6C3-P2-8C3-P2-12, .*--model 6C3-P2-8C3-P2-12"),
        ({"width": 2.0}, r"got 6C3-P2-8C3-P2-12 at width 2\. Give --model \S+ --width 1"),
        ({"encoder": "latency", "mean": None, "std": None}, "encoder must be analog, .*--encoder analog"),
        ({"classes": 5}, "classes must be 4"),
        ({"in_channels": 1, "mean": None, "std": None}, "images must have 3 channels, .*; got 1. Convert the images"),
        ({"image_size": (12, 12)}, r"image_size must be \(8, 8\), .*; got \(12, 12\)\. Give --image-size 8\."),
        ({"bias": False}, r"[\s\S]*Unexpected key.*features\.conv1\.bias"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, changes, problem):
    source = save(trained(OURS), tmp_path / "run")
    network = target(**{"weight_standardisation": False, **changes})
    with pytest.raises(ConfigError, match=f"weights: .*run does not fit .*{problem}"):
        load_weights(network, str(source))


def test_files_that_do_not_fit_or_are_damaged_are_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(weight_bytes(trained(OURS).state_dict()))
    with pytest.raises(ConfigError, match=r"safetensors does not fit the network: [\s\S]*Missing key"):
        load_weights(nn.Linear(2, 2), str(tmp_path / "w.safetensors"))
    source = save(trained(OURS), tmp_path / "run")
    (source / "best" / "config.json").write_text('{"format_version": 99}')
    with pytest.raises(ConfigError, match=r"weights: .*config\.json must be as it was written with the weights"):
        load_weights(target(), str(source))


def built(config, **values):
    """The network of a run on images of 32×32 pixels, and its training images in [0, 1]."""
    config = change(config, image_size=32, dropout=0.0, **values)
    data = load_data(config, Accelerator(cpu=True))
    return build_network(config, data)[0], data.train.images_at(data.train_indices) / 255


@pytest.mark.parametrize(
    ("values", "specification", "encoder"),
    [
        ({"model": "vgg11", "head": "none", "encoder": "signed"}, VGG11.removesuffix("-4096-4096"), "signed"),
        ({"model": "vgg11", "head": "512"}, VGG11.replace("4096-4096", "512"), "analog"),
        ({"model": "resnet18"}, RESNET18, "analog"),
    ],
)
def test_named_networks_are_those_of_the_package(config, values, specification, encoder):
    network, images = built(config, width=1 / 32, **values)
    found = network.config
    assert (found.specification, found.encoder, found.width) == (specification, encoder, 1 / 32)
    assert network(images[:2]).shape == (2, 4)


def test_cifarnet_is_whitened_by_the_training_images_and_begins_with_identities(config):
    values = {"model": "cifarnet", "width": 0.25, "block_convolutions": 3, "channels": (64, 128, 192)}
    values |= {"batch_norm": True, "identity_start": True, "weight_standardisation": False}
    network, images = built(config, **values)
    assert network.config.specification == cifarnet_specification(1.0, 3, 1, (16, 32, 48))
    conv1, conv2 = network.features.conv1, network.features.conv2
    outputs = F.conv2d(conv1.normalise(images), conv1.weight[:4]).movedim(1, -1).flatten(0, 2)
    products = outputs.T @ outputs / len(outputs)
    assert (products - products.diag().diag()).abs().max() < 1e-3 * products.diag().min()
    weight = conv1.weight.clone()
    few = load_data(change(config, image_size=32, max_train_samples=60), Accelerator(cpu=True))
    build_network(change(config, weights=None), few, network=network)
    assert torch.equal(conv1.weight, weight), "a given network is whitened already, by other images"
    x = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(F.conv2d(x, conv2.weight, padding=1)[:, :8], x)


ON_GRID = {"time_steps": 4, "weight_bits": 3, "psp_persistence": 0.25, "readout": "potential_end"}


@pytest.fixture(scope="module")
def on_grid(data, tmp_path_factory):
    """A run on 4 steps and 3 bits, for chips with faults."""
    folder = tmp_path_factory.mktemp("grid") / "run"
    values = SETTINGS | ON_GRID | {"spike_jitter": 0.05, "lost_spikes": 0.02}
    train(TrainConfig(**values, data_dir=data, output_dir=folder))
    return folder


@pytest.fixture(scope="module")
def split(data):
    images = load_images(None, data, split="train", like=None)
    return RunData(images, images, torch.arange(len(images)), torch.arange(0))


def test_validation_and_simulator_decide_alike(on_grid, data):
    summary, model = json.loads((on_grid / "summary.json").read_text()), TTFSModel.from_pretrained(on_grid)
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


def test_training_continues_on_the_grid_of_the_weights(on_grid, split, config):
    """Another grid calibrates scales and initial potentials first."""
    same = change(config, weights=str(on_grid), **ON_GRID)
    units = TTFSModel.from_pretrained(on_grid).features.conv1.log2_unit
    network, start = build_network(same, split)
    assert start is not None
    assert start.grid == Grid(4, 3)
    assert torch.equal(network.features.conv1.log2_unit, units)
    other = build_network(change(same, time_steps=8, learn_units=False), split)[0]
    assert not other.features.conv1.log2_unit.requires_grad
    calibrated = TTFSModel.from_pretrained(on_grid).network
    calibrate_grid(calibrated, draw_images(split.train, 256, config.seed, split.train_indices), Grid(8, 3))
    for name, tensor in calibrated.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    fitted = build_network(change(same, time_steps=8, calibration_images=0), split)[0]
    assert torch.equal(fitted.features.conv1.bias, network.features.conv1.bias)
    assert not torch.equal(fitted.features.conv1.bias, other.features.conv1.bias)
    without, _ = build_network(change(same, time_steps=None, weight_bits=None, lost_spikes=0.1), split)
    assert without.config.grid is None
    assert without.features.conv1.faults == Faults(lost_spikes=0.1)
    turned = replace(split, train=replace(split.train, class_names=["b", "a", "c", "d"]))
    with pytest.raises(ConfigError, match=r"the order of those of .*, \['a', 'b', 'c', 'd'\]; got \['b', "):
        build_network(same, turned)
    build_network(change(same, new_readout=True), turned)
