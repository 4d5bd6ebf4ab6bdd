"""The recipe: a folder that training and evaluation read, whole or not at all."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.convert import sources
from tests.convert.sources import randomised
from ttfs_triton.commands import ConvertOptions
from ttfs_triton.commands import convert as main
from ttfs_triton.convert import command, shared
from ttfs_triton.data.images import load_images
from ttfs_triton.evaluate.load import load_network
from ttfs_triton.model import BaseModel, LoadError, TTFSModel
from ttfs_triton.model.own_network import build_network_of
from ttfs_triton.nn import Neuron

PAPER, SPIKING = ["--trained-as", "ann"], ["--psp-persistence", "0.25"]


@pytest.fixture
def paper(tmp_path):
    path = tmp_path / "paper.pth"
    torch.save({"net": {f"module.{k}": v for k, v in randomised(sources.Paper()).state_dict().items()}}, path)
    return path


def test_recipe_calibrates_and_writes_what_evaluation_loads(tmp_path, capsys):
    images, folder, source = Path(command.__file__).parents[1] / "sample", tmp_path / "out", tmp_path / "digits.pth"
    folder.mkdir()  # an empty one is filled
    torch.save(randomised(sources.digits()).state_dict(), source)
    flags = ["--data-dir", images, "--calibration-images", 24, "--cpu", "--psp-persistence", 1, *PAPER]
    main(None, [str(word) for word in (source, "--output-dir", folder, *flags)])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "conversion.json", "model.safetensors"]
    report, digest = json.loads((folder / "conversion.json").read_text()), hashlib.sha256(source.read_bytes())
    assert (report["source"], report["sha256"]) == ("digits.pth", digest.hexdigest())
    layers = report["calibration"]["layers"]
    assert [layer["name"] for layer in layers] == ["conv1", "conv2", "fc1"]
    out = capsys.readouterr().out
    for part in ("trained as ann: 4C3p0-P2-6C3p0-P2-16", "Calibrated on 24 images", f"{layers[-1]['after']:.4f}"):
        assert part in out
    loaded = load_network(folder)
    assert loaded.description.base_model == BaseModel("digits.pth", digest.hexdigest())
    assert loaded.network.config.neuron == Neuron(1.0)
    assert loaded.network.class_names[0] == "T-shirt/top", "the classes of the calibration images"


def test_occupied_folder_is_refused_before_any_work(tmp_path, tmp_path_factory, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    for path in (tmp_path / "out", tmp_path / "out" / "mine", "."):
        with pytest.raises(SystemExit, match="1"):
            main(None, [str(tmp_path / "not even looked for"), "--output-dir", str(path), *PAPER])
        assert "output_dir must be a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "network or trained_as must say what the file holds; got neither"),
        ([*PAPER, "--sha256", "0" * 64], "must have the SHA-256 0000"),
        ([*PAPER, "--mean", "0.1"], "mean must have one entry per channel"),
        ([*PAPER, *SPIKING], "got None. For a local folder use --data-dir"),
        ([*PAPER, *SPIKING, "--dataset", "sample"], "model must run on images"),
        ([*PAPER, *SPIKING, "--data-dir", "images"], "data_dir must hold readable parquet files"),
        ([*PAPER, "--image-size", "64"], "image_size needs network. Give that"),
        (["--network", "no.such:thing", "--dataset", "sample"], "an installed module; got no.such:thing"),
        (["--network", "types:SimpleNamespace", "--dataset", "sample"], "must build an nn.Module; got SimpleNamespace"),
        ([*PAPER, "--network", "a:b", "--dataset", "sample"], "network and trained_as exclude each other"),
    ],
)
def test_mistakes_end_in_a_message_and_leave_nothing(paper, tmp_path, flags, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train.parquet").write_bytes(b"PAR1 and no more")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(None, [str(paper), "--output-dir", str(tmp_path / "out"), *flags])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("failing", ["write_model", "write_json", "sync_folder"])
def test_failed_write_leaves_nothing_half(paper, tmp_path, failing, monkeypatch):
    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(shared, failing, fail)
    values = {"source": str(paper), "calibrate": False, "trained_as": "ann"}
    options = ConvertOptions(output_dir=tmp_path / "out", **values)
    with pytest.raises(OSError, match="no space left"):
        command.run(options)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [*(["out"] if failing == "sync_folder" else []), "paper.pth"]


def test_function_of_an_installed_package_builds_the_ann(tmp_path, capsys):
    ann = randomised(torchvision.models.squeezenet1_1(num_classes=2))
    torch.save(ann.state_dict(), tmp_path / "ann.pth")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    for place, image in enumerate(pixels):
        folder = tmp_path / "images" / "train" / "ab"[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{place}.png")
    flags = ["--network", "torchvision.models:squeezenet1_1", "--data-dir", str(tmp_path / "images"), "--cpu"]
    main(None, [str(tmp_path / "ann.pth"), *flags, "--output-dir", str(tmp_path / "out")])
    out, builder = capsys.readouterr().out, f"{tmp_path}/out/network.py:build"
    assert "same class for 100.0% of 4 images" in out
    assert f"to load it: --network {builder}" in out
    with pytest.raises(LoadError, match=r"network\.py is here; code runs only if you name it: --network .*py"):
        TTFSModel.from_pretrained(tmp_path / "out")
    model = TTFSModel.from_pretrained(tmp_path / "out", network=builder)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        torch.testing.assert_close(model(images), ann((images - 0.5) / 0.25), atol=1e-3, rtol=1e-3)


def test_network_of_the_user_s_code_is_traced(tmp_path, capsys):
    layers = "nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(676, 10)"
    (tmp_path / "mine.py").write_text(f"from torch import nn\n\ndef chain():\n    return nn.Sequential({layers})\n")
    builder, flags = f"{tmp_path}/mine.py:chain", ["--dataset", "sample", "--calibration-images", "16", "--cpu"]
    ann = randomised(build_network_of(builder, in_channels=1, image_size=(28, 28), classes=10))
    torch.save({"model": ann.state_dict()}, tmp_path / "ann.pth")
    words = [str(tmp_path / "ann.pth"), "--network", builder]
    main(None, [*words, "--output-dir", str(tmp_path / "out"), *flags])
    assert "Losses of the conversion" in capsys.readouterr().out
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "ann.pth")
    with pytest.raises(SystemExit):
        main(None, [*words, "--output-dir", str(tmp_path / "no"), *flags])
    assert f"ann.pth must hold the weights of {builder}" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    (tmp_path / "mine.py").unlink()  # the folder is whole: it needs no file of the ANN
    model, images = TTFSModel.from_pretrained(tmp_path / "out"), load_images("sample").images_at(torch.arange(64)) / 255
    with torch.no_grad():
        assert (model(images).argmax(1) == ann(images).argmax(1)).float().mean() > 0.9
    assert (model.description.base_model.file, model.class_names[0]) == ("ann.pth", "T-shirt/top")
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["images"] == 16
