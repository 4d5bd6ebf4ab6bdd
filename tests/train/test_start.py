"""Weights that a run starts from: exact, converted, or refused before anything is written."""

import json

import pytest
import torch

from tests.convert import sources
from tests.convert.sources import randomised
from tests.convert.test_calibrate_network import skipping
from ttfs_triton.convert import convert
from ttfs_triton.model import BaseModel, ModelDescription
from ttfs_triton.model.files import read_model, write_model
from ttfs_triton.model.weights import read_weights, weight_bytes
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.train import ConfigError
from ttfs_triton.train.start import load_own_weights, load_weights

ANN = NetworkConfig(
    "6C3-P2-8C3-P2-12",
    in_channels=3,
    image_size=(8, 8),
    classes=4,
    encoder="analog",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    analog=True,
)


def trained(config: NetworkConfig) -> TTFSNetwork:
    """A network with batch norms, gains and biases that do something."""
    network = TTFSNetwork(config).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.1 if name.endswith("bias") else 0.5, 1.5)
    return network


def save(network: TTFSNetwork, folder, config: bool = True):
    """As the trainer keeps its best weights."""
    (folder / "best").mkdir(parents=True)
    write_model(folder / "best", network.state_dict(), ModelDescription.of(network.config))
    if not config:
        (folder / "best" / "config.json").unlink()
    return folder


def target(config: NetworkConfig = ANN, **changes) -> TTFSNetwork:
    """A spiking network as a training configuration asks for, whose images have another mean."""
    values = {"analog": False, "batch_norm": False, "neuron": Neuron(0.0), "mean": (0.1, 0.1, 0.1)}
    return TTFSNetwork(config.replace(**(values | changes))).eval()


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("config", [False, True], ids=["bare", "configured"])
def test_run_of_an_ann_starts_the_spiking_network(tmp_path, batch_norm, standardised, kept, config):
    ann = trained(ANN.replace(batch_norm=batch_norm, weight_standardisation=standardised))
    source = save(ann, tmp_path / "run", config)
    network = target(weight_standardisation=kept and standardised, mean=ANN.mean)
    base = load_weights(network, str(source if config else source / "best" / "model.safetensors")).base_model
    assert base.file == "model.safetensors"
    images = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(images), ann(images), atol=1e-5, rtol=1e-5)


def test_images_are_normalised_as_the_weights_are_used_to(tmp_path):
    for batch_norm in (False, True):
        ann = trained(ANN.replace(batch_norm=batch_norm))
        network = target(neuron=Neuron(0.0), dropout=0.5)
        load_weights(network, str(save(ann, tmp_path / str(batch_norm))))
        assert (network.config.mean, network.config.std) == (ANN.mean, ANN.std)
        assert network.config.dropout == 0.5
        images = torch.rand(5, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(network(images), ann(images), atol=1e-5, rtol=1e-5)


def test_normalisation_without_a_configuration_stays(tmp_path):
    network = target()
    load_weights(network, str(save(trained(ANN), tmp_path / "run", config=False) / "best" / "model.safetensors"))
    assert network.config.mean == (0.1, 0.1, 0.1)


def test_network_of_another_project_starts_a_run(tmp_path):
    source = randomised(sources.one_layer_head())
    torch.save({"net": source.state_dict()}, tmp_path / "vgg.pth")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    converted = convert(tmp_path / "vgg.pth", mean=mean, std=std)
    network = target(converted.network.config, mean=mean, readout="potential_end", neuron=Neuron(0.25))
    base = load_weights(network, str(tmp_path / "vgg.pth")).base_model
    assert base == BaseModel("vgg.pth", converted.weights.sha256)
    for name, value in converted.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
    assert network.config == converted.network.config.replace(readout="potential_end", neuron=Neuron(0.25))
    torch.testing.assert_close(network.features.conv1.mean.flatten(), torch.tensor(mean))
    (tmp_path / "config.json").write_text(json.dumps(sources.TIMM_CONFIG))
    load_weights(network, str(tmp_path / "vgg.pth"))
    torch.testing.assert_close(network.features.conv1.mean.flatten(), torch.tensor(sources.TIMM_CONFIG["mean"]))


def test_converted_folder_starts_a_run_and_hands_its_origin_on(tmp_path):
    base = BaseModel("vgg.pth", "1" * 64)
    folder = save(trained(ANN), tmp_path / "run")
    description, tensors = read_model(folder / "best" / "config.json", folder / "best" / "model.safetensors")
    write_model(folder / "best", tensors, description.replace(base_model=base))
    assert load_weights(target(), str(folder)).base_model == base


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"specification": "6C3-8C3-P2-P2-12"}, r"specification must be 6C3-P2-8C3-P2-12, .*--model 6C3-P2-8C3-P2-12"),
        ({"width": 2.0}, "specification must be"),
        ({"encoder": "latency", "mean": None, "std": None}, "encoder must be analog, .*--encoder analog"),
        ({"analog": True, "batch_norm": True, "weight_standardisation": False}, "batch_norm must be False"),
        ({"classes": 5}, "classes must be 4"),
        ({"image_size": (12, 12)}, r"image_size must be \(8, 8\)"),
        ({"bias": False}, "bias must be True"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_weights_of_another_network_are_refused(tmp_path, changes, problem):
    source = save(trained(ANN.replace(batch_norm=True)), tmp_path / "run")
    network = target(**changes)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match=f"weights: .*run does not fit .*{problem}"):
        load_weights(network, str(source))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_plain_weights_cannot_be_standardised(tmp_path):
    source = save(trained(ANN.replace(batch_norm=True, weight_standardisation=False)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"weight_standardisation must be False, .*--no-weight-standardisation"):
        load_weights(target(weight_standardisation=True), str(source))


def test_bare_weights_of_other_shapes_are_named(tmp_path):
    tensors = trained(ANN).state_dict()
    tensors["features.conv2.weight"] = tensors["features.conv2.weight"][:, :3]
    (tmp_path / "w.safetensors").write_bytes(weight_bytes(tensors))
    problem = r"features\.conv2\.weight: \[8, 3, 3, 3\], conv2 needs \[8, 6, 3, 3\]"
    with pytest.raises(ConfigError, match=problem):
        load_weights(target(), str(tmp_path / "w.safetensors"))


def test_unreadable_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="weights: open_weights: load: source must be a file"):
        load_weights(target(), str(tmp_path / "nothing"))
    source = save(trained(ANN), tmp_path / "run")
    values = json.loads((source / "best" / "config.json").read_text())
    (source / "best" / "config.json").write_text(json.dumps(values | {"format_version": 99}))
    with pytest.raises(ConfigError, match=r"weights: .*config\.json must be as it was written with the weights"):
        load_weights(target(), str(source))


def test_settings_of_training_are_kept(tmp_path):
    neuron = Neuron(0.5, 3.0, 0.1)
    network = target(neuron=neuron, readout="first_spike")
    load_weights(network, str(save(trained(ANN.replace(batch_norm=True)), tmp_path / "run")))
    assert (network.config.neuron, network.config.readout) == (neuron, "first_spike")


def test_network_with_an_anns_weights_is_calibrated(tmp_path):
    ann = trained(ANN)
    source = str(save(ann, tmp_path / "run"))
    images = torch.rand(16, 3, 8, 8)
    copied, calibrated = target(neuron=Neuron(1.0)), target(neuron=Neuron(1.0))
    assert load_weights(copied, source).calibration is None
    found = load_weights(calibrated, source, images).calibration
    assert found is not None
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "fc1"]
    assert found.layers[-1].after > found.layers[-1].before
    with torch.no_grad():
        errors = [(network(images) - ann(images)).square().mean().item() for network in (copied, calibrated)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("analog", [False, True])
def test_weights_of_its_own_kind_are_not_calibrated(tmp_path, analog):
    config = ANN.replace(analog=analog, neuron=Neuron())
    source = save(trained(config), tmp_path / "run")
    network = TTFSNetwork(config)
    assert load_weights(network, str(source), torch.rand(4, 3, 8, 8)).calibration is None
    for name, tensor in read_weights(source / "best" / "model.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[name])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_bare_weights_are_calibrated_if_they_must_be_an_anns(tmp_path, batch_norm):
    source = save(trained(ANN.replace(batch_norm=batch_norm)), tmp_path / "run", config=False)
    network = target(weight_standardisation=False, neuron=Neuron(1.0))
    found = load_weights(network, str(source / "best" / "model.safetensors"), torch.rand(8, 3, 8, 8))
    assert (found.calibration is not None) == batch_norm


def test_exact_conversion_is_not_calibrated(tmp_path):
    source = save(trained(ANN), tmp_path / "run")
    assert load_weights(target(neuron=Neuron(0.0)), str(source), torch.rand(4, 3, 8, 8)).calibration is None


def test_plain_relu_is_scaled_into_range(tmp_path):
    source = randomised(sources.one_layer_head())
    torch.save(source.state_dict(), tmp_path / "vgg.pth")
    (tmp_path / "config.json").write_text(json.dumps(sources.TIMM_CONFIG))
    config = convert(tmp_path / "vgg.pth").network.config.replace(neuron=Neuron(0.0))
    images = torch.rand(16, 3, 32, 32)
    network = TTFSNetwork(config)
    found = load_weights(network, str(tmp_path / "vgg.pth"), images).calibration
    assert found is not None
    assert all(layer.after is not None and layer.after > 0.999 for layer in found.layers)


def test_calibration_needs_initial_potentials(tmp_path):
    source = save(trained(ANN.replace(bias=False)), tmp_path / "run")
    with pytest.raises(ConfigError, match="bias must be True to calibrate"):
        load_weights(target(bias=False, neuron=Neuron(1.0)), str(source), torch.rand(4, 3, 8, 8))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_residual_network_is_calibrated_where_the_weights_are_an_anns(tmp_path, batch_norm):
    config = ANN.replace(specification="6C3-(6C3-6C3)-A", encoder="latency", mean=None, std=None)
    ann = config.replace(batch_norm=batch_norm)
    run, images = save(trained(ann), tmp_path / "ann"), torch.rand(12, 3, 8, 8)
    network = TTFSNetwork(config.replace(analog=False, neuron=Neuron(psp_persistence=0.5)))
    start = load_weights(network, str(run), images)
    assert [layer.name for layer in start.calibration.layers] == ["conv1", "conv2", "conv3"]
    assert start.calibration.images == 12
    assert load_weights(network, str(run)).calibration is None
    again = save(network, tmp_path / "spiking")
    assert load_weights(network, str(again), images).calibration is None  # what spikes already stays as it is
    unbiased = save(TTFSNetwork(config.replace(bias=False)), tmp_path / "unbiased")
    with pytest.raises(ConfigError, match="bias must be True to calibrate"):
        load_weights(TTFSNetwork(network.config.replace(bias=False)), str(unbiased), images)


def test_own_network_is_calibrated_if_its_weights_are_said_to_be_an_anns(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(weight_bytes(skipping(sigma=0.0).state_dict()))
    path, images = str(tmp_path / "model.safetensors"), torch.rand(12, 3, 12, 12)
    network = skipping()
    assert load_own_weights(network, path).calibration is None
    before = network.conv3.bias.clone()
    start = load_own_weights(network, path, images)
    assert [layer.name for layer in start.calibration.layers] == ["conv1", "conv2", "conv3", "hidden"]
    assert not torch.equal(network.conv3.bias, before)


@pytest.mark.parametrize("analog", [False, True])
def test_a_network_with_batch_norm_starts_where_plain_weights_are(tmp_path, analog):
    source = trained(ANN.replace(analog=analog, neuron=Neuron(0.0)))
    network, images = target(batch_norm=True, weight_standardisation=False), torch.rand(64, 3, 8, 8)
    load_weights(network, str(save(source, tmp_path / "plain")), images)
    torch.testing.assert_close(network(images), source(images), rtol=1e-3, atol=1e-4)
    assert network.config.mean == ANN.mean


def test_batch_norm_is_copied_where_the_weights_have_it(tmp_path):
    source = trained(ANN.replace(analog=False, batch_norm=True, neuron=Neuron(0.0)))
    network = target(batch_norm=True, neuron=Neuron(1.0))
    load_weights(network, str(save(source, tmp_path / "normalised")), torch.rand(8, 3, 8, 8))
    for name, tensor in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_statistics_of_plain_weights_need_images(tmp_path):
    source = trained(ANN.replace(analog=False))
    with pytest.raises(ConfigError, match="statistics are then taken from calibration images; got none"):
        load_weights(target(batch_norm=True), str(save(source, tmp_path / "plain")), None)


def test_a_plain_network_starts_from_one_whose_batch_norm_is_folded(tmp_path):
    source = trained(ANN.replace(analog=False, batch_norm=True, neuron=Neuron(0.5)))
    network = target(neuron=Neuron(0.5), weight_standardisation=False)
    load_weights(network, str(save(source, tmp_path / "normalised")))
    images = torch.rand(8, 3, 8, 8)
    source.fold_batch_norm()
    assert torch.equal(network(images), source(images))
    with pytest.raises(ConfigError, match="batch norm folded, does not fit: its converted tensors must be"):
        load_weights(target(weight_standardisation=True), str(tmp_path / "normalised"))
