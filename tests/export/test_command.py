"""`ttfs export` from start to finish."""

import shutil
import sys

import pytest
import torch

from tests.data.fixtures import random_images, write_parquet
from tests.export.common import small_network
from ttfs_triton.commands import export as main
from ttfs_triton.data.images import load_images
from ttfs_triton.export import Comparison, command
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import Grid, Neuron

nir, onnx = (pytest.importorskip(name, reason="files are read again") for name in ("nir", "onnx"))
pytest.importorskip("onnxruntime", reason="checking ONNX needs onnxruntime")
pytest.importorskip("snntorch", reason="checking NIR needs snnTorch")


@pytest.fixture
def model(tmp_path):
    """A saved network for the bundled images."""
    network = small_network(
        specification="2C5s4-8", in_channels=1, image_size=(28, 28), classes=10, neuron=Neuron(0.25)
    )
    classes = load_images("sample", split="test").class_names
    TTFSModel.from_network(network, dataset="digits", class_names=classes).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def export(model, *flags):
    main("Export.", [str(model), *map(str, flags)])


@pytest.mark.parametrize(
    ("format", "program", "flags"), [("onnx", "onnxruntime", ["--hidden"]), ("nir", "snnTorch", ["--steps", 32])]
)
def test_writes_and_checks_with_random_and_test_images(model, tmp_path, capsys, format, program, flags):
    file = tmp_path / "made" / f"model.{format}"
    export(model, "--format", format, "--output", file, "--check", "--check-images", "6", *flags)
    shown = capsys.readouterr().out
    assert f"written: {file}, {file.stat().st_size:,} bytes, {format.upper()}" in shown
    assert f"{program} " in shown
    assert "6 random images" in shown
    assert ("same decisions                6 of 6" in shown) or format == "nir"  # where output spikes may tie
    assert ("What the format does not hold" in shown) == (format == "nir")
    assert str(tmp_path).encode() not in file.read_bytes()
    if format == "onnx":
        outputs = [output.name for output in onnx.load(file).graph.output]
        assert outputs == ["logits", "spike_times", "encoder", "conv1", "fc1"]
    else:
        metadata = nir.read(file).metadata
        assert (metadata["window_s"], metadata["dataset"]) == ("0.0032", "digits")
    export(model, "--format", format, "--output", file, "--overwrite", "--check", "--dataset", "sample")
    shown = capsys.readouterr().out
    assert "20 test images" in shown
    assert "accuracy" in shown
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(shutil.which("cc") is None, reason="checking C needs a C compiler")
def test_c_is_written_and_checked(model, tmp_path, capsys):
    flags = ("--format", "c", "--time-steps", "16", "--weight-bits", "5", "--check")
    export(model, *flags, "--output", tmp_path / "net.c", "--dataset", "sample")
    shown = capsys.readouterr().out
    assert "same decisions                20 of 20" in shown
    assert "16 time steps a window, 5-bit weights" in (tmp_path / "net.c").read_text()
    write_parquet(tmp_path / "test.parquet", random_images(12, 1, 28, 28), [*range(10), 0, 0], label="digit")
    columns = ("--data-dir", tmp_path, "--image-column", "image", "--label-column", "digit")
    export(model, *flags, "--output", tmp_path / "again.c", *columns)
    assert "same decisions                12 of 12" in capsys.readouterr().out


def test_registers_that_saturate_are_told(model, tmp_path, capsys):
    network = TTFSModel.from_pretrained(model)
    network.network.put_on_grid(Grid(8, 8, state_bits=12))
    TTFSModel.from_network(network.network, dataset="digits").save_pretrained(tmp_path / "narrow")
    export(tmp_path / "narrow", "--format", "onnx", "--output", tmp_path / "a.onnx")
    assert "Registers that saturate: the file's potentials have no bounds." in capsys.readouterr().out


@pytest.mark.parametrize(("labels", "word"), [(None, "Random pixels lie on borders"), (torch.zeros(4), "got 1 of 4")])
def test_a_check_that_fails_has_an_exit_status(model, tmp_path, capsys, monkeypatch, labels, word):
    found = Comparison("onnxruntime", (), 0.5, torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 2]), different=1)
    monkeypatch.setattr(command, "compare_onnx", lambda *_: found)
    monkeypatch.setattr(command, "_images", lambda *_: (torch.zeros(4), labels))
    with pytest.raises(SystemExit, match="1"):
        export(model, "--format", "onnx", "--output", tmp_path / "a.onnx", "--check")
    assert word in capsys.readouterr().err
    assert (tmp_path / "a.onnx").is_file()


def test_files_stay_as_they_were_unless_replaced(model, tmp_path, capsys):
    file = tmp_path / "model.nir"
    file.write_text("mine")
    TTFSModel.from_network(small_network(encoder="signed")).save_pretrained(tmp_path / "signed")
    for source, flags, message in (
        (model, ["--output", file], "Replace it by --overwrite"),
        (tmp_path / "signed", ["--output", file, "--overwrite"], "encoder must be latency or analog"),
        (tmp_path / "nowhere", ["--output", file, "--overwrite"], "there is nothing at"),
    ):
        with pytest.raises(SystemExit, match="1"):
            export(source, "--format", "nir", *flags)
        assert message in capsys.readouterr().err
        assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("format", "package", "flags"),
    [("onnx", "onnx", []), ("onnx", "onnxruntime", ["--check"]), ("nir", "nir", []), ("nir", "snntorch", ["--check"])],
)
def test_missing_packages_are_named(model, tmp_path, capsys, monkeypatch, format, package, flags):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="1"):
        export(model, "--format", format, "--output", tmp_path / "out", *flags)
    shown = capsys.readouterr().err
    assert f"{package} must be installed" in shown
    assert f"pip install 'ttfs-triton[{format}]'" in shown
