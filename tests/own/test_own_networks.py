"""Networks without a specification: builders, files, grids, the trainer of a program, and the recipe."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from tests.model.test_files import assert_same
from tests.train.runs import At
from ttfs_triton import TTFSModel
from ttfs_triton.commands import calibrate
from ttfs_triton.data.images import images_of_tensors
from ttfs_triton.hub.publish import publish
from ttfs_triton.model import LoadError, ModelDescription
from ttfs_triton.model.own_network import build_network_of
from ttfs_triton.nn import AnalogEncoder, DFTLinear, Grid, LatencyEncoder, NetworkConfig, Readout, cnn1, put_on_grid
from ttfs_triton.train import Callback, ConfigError, Interrupted, TrainConfig, Trainer, run_data
from ttfs_triton.train.config import parse_config

SHAPE = (1, 8, 8)
SOURCE = """
from torch import nn
from helpers_beside import WIDTH
from ttfs_triton.nn import DFTLinear, LatencyEncoder, Readout

def build(classes, image_size):
    return nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(image_size[0] * image_size[1], WIDTH),
                         Readout(WIDTH, classes))

def anything(**data):
    return build(data["classes"], data["image_size"])

def nothing():
    return None

def broken():
    return DFTLinear(4, 4, beta=1)
"""


def network(classes=2, width=6):
    return nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, width), Readout(width, classes))


def tensors(count=40):
    labels, generator = torch.arange(count) % 2, torch.Generator().manual_seed(count)
    images = torch.randint(0, 90, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    return images + 120 * labels.byte()[:, None, None, None], labels


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "helpers_beside.py").write_text("WIDTH = 6")
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "helpers_beside", raising=False)
    return tmp_path / "mine.py"


def settings(**changes):
    return TrainConfig(**{"epochs": 1, "batch_size": 8, "validation_fraction": 0.2, "cpu": True} | changes)


def train(network, callbacks=(), **changes):
    """Summary of a training on `tensors`."""
    return Trainer(network, (tensors(), tensors(12)), settings(**changes), callbacks=callbacks).train()


def test_builder_gets_what_it_takes_or_says_what_to_do(file):
    sizes = {"in_channels": 1, "image_size": (8, 8), "classes": 3}
    (file.parent / "typo.py").write_text("import torch\ndef build(:")
    for function in ("build", "anything"):
        built = build_network_of(f"{file}:{function}", **sizes)
        assert (built[2].in_features, built[2].out_features, built[3].out_features) == (64, 6, 3)
    (file.parent / "hub.py").write_text(
        "import torch\ndef net(num_classes=10):\n    return torch.nn.Linear(2, num_classes)"
    )
    assert build_network_of(f"{file.parent}/hub.py:net", **sizes).out_features == 3
    for source, message in (
        ("mine.py", r"must be FILE\.py:FUNCTION; got mine\.py"),
        ("missing.py:build", r"must name a Python file that exists; got missing\.py"),
        (f"{file}:built", r"must have a function built; got build, anything, nothing, broken"),
        (f"{file}:nothing", r"must build an nn\.Module; got NoneType"),
        (f"{file}:broken", r"got TypeError in line 17 of \S*mine\.py: DFTLinear.*unexpected keyword argument .beta"),
        (f"{file.parent}/typo.py:build", r"got SyntaxError in line 2 of \S*typo\.py: .*\. Correct it"),
    ):
        with pytest.raises(ValueError, match=message):
            build_network_of(source, **sizes)


def test_own_model_survives_a_folder_and_needs_its_network(tmp_path, file):
    mine = network()
    model = TTFSModel(mine, image_shape=SHAPE, class_names=["cat", "dog"], builder="/home/me/mine.py:build")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["format_version"], config["network"]["builder"]) == (4, "mine.py:build")  # no folder of ours
    with pytest.raises(LoadError, match=r"only names mine\.py:build, code that it does not hold\. Pass it: from_pre"):
        TTFSModel.from_pretrained(tmp_path)
    for built in (network, f"{file}:build"):
        loaded = TTFSModel.from_pretrained(tmp_path, network=built)
        assert_same(loaded.state_dict(), mine.state_dict())
        assert (loaded.class_names, loaded.image_shape, loaded.training) == (("cat", "dog"), SHAPE, False)
    loaded.save_pretrained(tmp_path)  # the same again
    with pytest.raises(LoadError, match=r"the one of the weights, built by mine\.py:build; got in layer 1 2 \[7\]"):
        TTFSModel.from_pretrained(tmp_path, network=network(width=7))
    mean = [nn.Sequential(AnalogEncoder(1, 2, 3, mean=[mean]), nn.Flatten(), Readout(72, 2)) for mean in (0.3, 0.0)]
    TTFSModel(mean[0], image_shape=SHAPE).save_pretrained(tmp_path / "mean")
    with pytest.raises(LoadError, match=r"got in layer 0 .*, not .*, mean=\[0\.3\]\) reads images"):
        TTFSModel.from_pretrained(tmp_path / "mean", network=mean[1])
    means = nn.Sequential(AnalogEncoder(1, 2, 3, mean=[0.3]), nn.Flatten(), Readout(72, 2))
    TTFSModel(means.bfloat16(), image_shape=SHAPE).save_pretrained(tmp_path / "half")
    TTFSModel.from_pretrained(tmp_path / "half", network=mean[0])
    with pytest.raises(LoadError, match=r"network\.layers: give at least 1"):
        ModelDescription.from_dict(config | {"network": config["network"] | {"layers": []}})
    copy = TTFSModel.from_network(mine, image_shape=SHAPE)
    assert (copy.description.network.builder, copy.class_names) == ("Sequential", ("0", "1"))
    mine[2].weight.data.zero_()
    assert copy.network[2].weight.any()
    with pytest.raises(AttributeError, match="has no attribute 'features'"):
        copy.features  # noqa: B018
    with pytest.raises(ValueError, match=r"OwnNetwork: image_shape must be \(channels, height, width\); got \(64,\)"):
        TTFSModel(nn.Sequential(LatencyEncoder(), Readout(64, 2)), image_shape=(64,))


def test_a_network_that_files_describe_takes_no_other(tmp_path):
    TTFSModel(NetworkConfig("4C3-P2-8", image_size=(8, 8))).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"network must be None where .*config\.json says how .*; got Sequential"):
        TTFSModel.from_pretrained(tmp_path, network=network())


def test_own_network_is_trained_and_calibrated_on_a_grid_and_loads_on_it(tmp_path, file, capsys):
    grid, builder, run = Grid(8, 4), f"{file}:build", tmp_path / "run"
    train(network(), output_dir=tmp_path / "plain")
    train(network(), output_dir=run, weights=str(tmp_path / "plain"), time_steps=8, weight_bits=4)
    loaded = TTFSModel.from_pretrained(run, network=builder)
    assert (loaded.graph.grid, loaded.description.network.grid) == (grid, grid)
    already = network()
    put_on_grid(already, grid)
    again = TTFSModel.from_pretrained(run, network=already)
    images = tensors()[0] / 255
    assert torch.equal(again(images), loaded(images))
    put_on_grid(already, Grid(4))
    with pytest.raises(LoadError, match=r"network must be on the grid of the weights, Grid\(.*time_steps=8"):
        TTFSModel.from_pretrained(run, network=already)
    words = [tmp_path / "wide", "--network", builder, "--dataset", "sample", "--output-dir", tmp_path / "calibrated"]
    wide = build_network_of(builder, in_channels=1, image_size=(28, 28), classes=10)
    TTFSModel(wide, image_shape=(1, 28, 28)).save_pretrained(tmp_path / "wide")
    calibrate(None, [str(word) for word in [*words, "--cpu", "--time-steps", 8, "--weight-bits", 4, "--images", 20]])
    assert TTFSModel.from_pretrained(tmp_path / "calibrated", network=builder).graph.grid == grid
    assert "written: " in capsys.readouterr().out


def test_trainer_trains_what_it_is_given_and_stops_when_told(tmp_path):
    mine, stop = network(), Callback()
    stop.on_epoch = lambda loop, line: np.int64(line["epoch"]) == 2  # numpy's True is another object than Python's
    options = {"epochs": 5, "ema_decay": 0.5, "output_dir": tmp_path / "run", "lr": 1e-2, "backend": "torch"}
    assert train(mine, [stop], **options)["epochs"] == 2
    assert train(network(), [stop], **options, resume=True)["epochs"] == 2, "it has ended"
    (tmp_path / "run" / "summary.json").unlink()  # as a kill while test images are scored leaves it
    assert train(network(), [stop], **options, resume=True)["epochs"] == 2
    assert mine[2].backend == "torch"
    best = TTFSModel.from_pretrained(tmp_path / "run", network=network)
    assert_same(best.state_dict(), mine.state_dict())
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["network"] == "Sequential"
    assert best.description.dataset is None
    files, _ = publish(tmp_path / "run", "a/b", dry_run=True, network=network())
    assert b"network=Sequential()" in files["README.md"]


def test_trainer_goes_on_with_the_same_network_only(tmp_path):
    options = {"epochs": 2, "schedule": "constant", "output_dir": tmp_path / "run"}
    with pytest.raises(Interrupted, match=r"Go on with: this program, output_dir='.*run' and resume=True in its Train"):
        train(network(), [At(1)], **options)
    with pytest.raises(ConfigError, match=r"--resume: the run must be the one of .*; these differ:\n  layers: "):
        train(network(width=5), resume=True, **options)
    resumed, ended = network(), network()
    assert [train(one, resume=True, **options)["epochs"] for one in (resumed, ended)] == [2, 2]
    assert_same(resumed.state_dict(), ended.state_dict())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (network, {"max_train_samples": 8, "image_size": 8}, "are loaded already; got image_size, max_train_samples"),
        (network, {"model": "vgg11", "psp_persistence": 0.5}, "got model, psp_persistence"),
        (network, {"preset": "paper"}, "must have no preset, which only recipes have; got paper"),
        (lambda: network(3), {}, "one output per class of tensors, 2 in all; got 3. Change its rea"),
        (lambda: network().half(), {}, "network must have weights in float32; got torch.float16. Call"),
        (cnn1, {}, r"images must have shape \[N, 1, 28, 28\]|layers must fit each other"),
    ],
)
def test_trainer_refuses_before_it_begins(make, options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(make(), (tensors(), tensors(12)), settings(**options))


def test_tensors_are_splits_like_any_other():
    images, labels = both = tensors()
    data = images_of_tensors(images, labels)
    assert (data.shape, data.class_names, data.dataset) == ((40, *SHAPE), ["0", "1"], None)
    assert torch.equal(data.images_at(torch.tensor([3])), images[3:4])
    pictures = [(Image.fromarray(image[0].numpy()), int(label)) for image, label in zip(*both, strict=True)]
    for dataset in (TensorDataset(*both), pictures):
        read = run_data(dataset, dataset, settings())
        assert (read.train.fingerprint, read.test.fingerprint) == (data.fingerprint, data.fingerprint)
    for wrong, message in (
        ((images / 255, labels), r"must be uint8, pixels from 0 to 255; got torch\.float32"),
        ((images, labels[:3]), r"labels \[N\] int64; got \[40, 1, 8, 8\] and \[3\]"),
        ((images, labels - 1), "labels must be in 0 to 1; got -1 to 0"),
        ((images[:, :, 1:], labels), "run_data: test images must be like the training images"),
        ((x for x in ()), "have a length and items; got generator"),
        ([], r"one shape; got \[\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            run_data(both, wrong, settings())


def test_typed_network_is_built_and_takes_no_keys_of_another(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("dataset: sample\nnetwork: theirs.py:build\n")
    assert parse_config(recipe, "", ["--network", "mine.py:build"]).network == "mine.py:build"
    with pytest.raises(ConfigError, match='leave out width, psp_persistence, or use the recipe "own"'):
        parse_config(recipe, "", ["--width", "2", "--psp-persistence", "0.5", "--network", "mine.py:build"])
