"""`ttfs evaluate` from start to finish."""

import json
import re

import pytest
import torch

from ttfs_triton.commands import evaluate as main
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.evaluate import command
from ttfs_triton.evaluate.machine import command_line
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import Grid


def evaluate(run, *flags):
    main("Evaluate.", [str(run), "--cpu", "--max-test-samples", "100", *map(str, flags)])


@pytest.fixture(scope="module")
def summary(trained):
    return json.loads((trained / "summary.json").read_text())


def test_figures_are_those_of_training_and_files_are_not_overwritten(trained, summary, tmp_path, capsys, monkeypatch):
    words = (trained, "--chip", "anp_i", "lemaire45:int8", "--steps", "8", "--output-dir", tmp_path / "out")
    evaluate(*words)
    shown = capsys.readouterr().out.replace("-", " ")
    for part in ("100 images", "activity  ", "synaptic operations", "weakest classes", "clock driven"):
        assert part in shown
    (file,) = (tmp_path / "out").iterdir()
    found = json.loads(file.read_text())
    assert found["images"] == found["counts"]["samples"] == summary["test_images"]
    for key in ("accuracy", "first_spike_accuracy"):
        assert found[key] == summary[f"test_{key}"]
    assert [len(found["class_accuracy"]), found["top5_accuracy"] >= found["accuracy"]] == [10, True]
    assert found["sparsity"] == found["counts"]["sparsity"] == summary["sparsity"]
    ours, theirs = ([layer["spikes"] for layer in each["counts"]["layers"]] for each in (found, summary))
    assert ours == theirs
    assert (found["simulation"]["steps"], found["simulation"]["weight_bits"]) == (8, 8)
    assert [report["chip"]["name"] for report in found["energy"]] == ["anp_i", "lemaire45:int8"]
    terms = [term for each in found["energy"] for term in each["terms"]]
    assert {term["price_pj"] for term in terms if term["status"] == "unpublished"} == {None}
    assert str(trained.parent) not in file.read_text()
    with pytest.raises(SystemExit, match="1"):
        evaluate(*words)
    assert "Replace it by --overwrite" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["ttfs evaluate", "/home/me/run/", "--data-dir=/home/me/data"])
    assert command_line("evaluate") == "ttfs evaluate run --data-dir=data"


def test_command_takes_the_gpu_where_there_is_one(trained, summary, tmp_path, device):
    words = [trained, "--chip", "all", "--no-simulation", "--max-test-samples", 100, "--report", tmp_path / "a.html"]
    main("Evaluate.", [str(word) for word in (*words, *(["--cpu"] if device.type == "cpu" else []))])
    page = (tmp_path / "a.html").read_text()
    assert f"{summary['test_accuracy']:.2%}" in page
    # Of all chips, one that prices the dense ANN with memory leads.
    assert re.search(r'<dt>energy of an image</dt><dd class="value">[^<]*</dd><dd class="small">lemaire45:', page)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output-dir", __file__], "File exists"),
        (["--report", f"{__file__}/page.html"], "File exists"),
        (["--sample", "400", "--report", "page.html"], "sample must be below 100"),
        (["--report", "page.txt"], "must end in .html"),
        (["--chip", "all", "nowhere"], "got nowhere"),
        (["--lost-spikes", "0.1", "--no-simulation"], "faults must be simulated; got 10% of spikes lost"),
    ],
)
def test_bad_options_are_refused_before_the_network_runs(trained, flags, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("evaluates"))
    with pytest.raises(SystemExit) as found:
        evaluate(trained, *flags)
    assert message in f"{found.value}{capsys.readouterr().err}"


def test_network_on_a_grid_is_evaluated_and_simulated_on_it(trained, tmp_path, capsys):
    model = TTFSModel.from_pretrained(trained)
    calibrate_grid(model, torch.rand(16, 1, 28, 28), Grid(4, 4))
    model.save_pretrained(tmp_path / "grid")
    evaluate(tmp_path / "grid", "--chip", "anp_i", "--output-dir", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    simulation, grid = found["simulation"], found["network"]["grid"]
    assert simulation["steps"] == grid["time_steps"] == simulation["weight_bits"] == grid["weight_bits"] == 4
    assert [simulation[key] == found[key] for key in ("accuracy", "first_spike_accuracy")] == [True, True]
    assert "grid                     4 time steps a window, 4-bit weights" in capsys.readouterr().out


def test_faults_and_deadlines_are_measured(trained, tmp_path, capsys):
    flags = ["--spike-jitter", 0.1, "--dead-neurons", 0.3, "--deadlines"]
    evaluate(trained, *flags, "--chip", "anp_i", "--steps", 8, "--output-dir", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["simulation"]["faults"]["dead_neurons"] == 0.3
    assert len(found["deadlines"]["rows"]) == 20
    assert found["deadlines"]["rows"][-1]["accuracy"] == pytest.approx(found["first_spike_accuracy"])
    assert "on a chip with spike jitter 0.1 windows, 30% of neurons dead" in capsys.readouterr().out
