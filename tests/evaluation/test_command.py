"""`recipes/evaluate.py` from start to finish."""

import csv
import json

import pytest

from ttfs_triton.evaluation.command import main


def evaluate(run, *flags):
    main("Evaluate.", [str(run), "--cpu", *map(str, flags)])


@pytest.fixture(scope="module")
def output(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output") / "out"
    evaluate(trained[0], "--chip", "anp_i", "lemaire45:int8", "--steps", "8", "--output-dir", folder)
    return folder


def test_figures_are_those_of_training(output, summary):
    found = json.loads((output / "evaluation.json").read_text())
    assert found["images"] == found["counts"]["samples"] == summary["test_images"]
    for key in ("accuracy", "first_spike_accuracy"):
        assert found[key] == summary[f"test_{key}"]
    for key in ("sparsity", "sparsity_with_outputs"):
        assert found[key] == found["counts"][key] == summary[key]
    assert [layer["spikes"] for layer in found["counts"]["layers"]] == [
        layer["spikes"] for layer in summary["counts"]["layers"]
    ]
    assert (found["simulation"]["steps"], found["simulation"]["weight_bits"]) == (8, 8)
    assert [report["chip"]["name"] for report in found["energy"]] == ["anp_i", "lemaire45:int8"]


def test_command_takes_the_gpu_where_there_is_one(trained, summary, tmp_path, device):
    flags = ["--chip", "all", "--steps", "8", "--output-dir", tmp_path / "out", "--report", tmp_path / "page.html"]
    main("Evaluate.", [str(trained[0]), *map(str, flags), *(["--cpu"] if device.type == "cpu" else [])])
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["accuracy"] == pytest.approx(summary["test_accuracy"], abs=1 / summary["test_images"])
    assert found["sparsity"] == pytest.approx(summary["sparsity"], rel=1e-3)
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_unpublished_prices_stay_empty(output):
    with (output / "energy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    unpublished = [row for row in rows if row["status"] == "unpublished"]
    assert unpublished
    assert all(row["price_pj"] == "" for row in unpublished)


def test_nothing_is_overwritten_unasked(trained, output, capsys):
    with pytest.raises(SystemExit, match="1"):
        evaluate(trained[0], "--output-dir", output)
    assert "Replace it by --overwrite" in capsys.readouterr().err


def test_no_local_paths_in_the_files(trained, output):
    text = (output / "evaluation.json").read_text()
    assert str(trained[0].parent) not in text


def test_prints_what_it_found(trained, capsys):
    evaluate(trained[0], "--no-simulation", "--max-test-samples", "20", "--implementation", "closed_form")
    shown = capsys.readouterr().out
    assert "20 images" in shown
    assert "synaptic operations" in shown
    assert "closed form" in shown.replace("-", " ")


def test_sweep(trained, tmp_path):
    evaluate(trained[0], "--sweep", "--max-test-samples", "9", "--output-dir", tmp_path / "out")
    assert len((tmp_path / "out" / "sweep.csv").read_text().splitlines()) == 37


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--chip", "loihi2"], "No public per-operation figure"),
        (["--chip", "nowhere"], "must be"),
        (["--sample", "400"], "sample must be below 45"),
        (["--report", "page.txt"], "must end in .html"),
        (["--steps", "0"], "steps"),
    ],
)
def test_bad_options_are_refused(trained, flags, message, capsys):
    with pytest.raises(SystemExit, match="1"):
        evaluate(trained[0], *flags)
    assert message in capsys.readouterr().err


def test_missing_network(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        evaluate(tmp_path / "nowhere")
    assert "there is nothing at" in capsys.readouterr().err
