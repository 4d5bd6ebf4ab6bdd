"""`ttfs sweep` from start to finish, and again."""

import json
import re
import shutil
from unittest.mock import Mock

import pandas
import pytest

from tests.sweep.conftest import EVALUATED, FLAGS, SWEEP, sweep
from ttfs_triton.commands import evaluate
from ttfs_triton.sweep import FrontierOptions, command
from ttfs_triton.sweep.page import label
from ttfs_triton.train import NonFiniteLossError

ON_GRID = "time_steps=4+weight_bits=4+spike_jitter=0.1"
TARGET = "target_sparsity=0.4"


def written(folder):
    """Rows of the table in a sweep's folder; empty cells are None."""
    table = pandas.read_csv(folder / "frontier.csv").astype(object)
    return table.where(table.notna(), None).to_dict("records")


@pytest.fixture(scope="module")
def rows(swept):
    return written(swept)


def only(rows, point):
    (row,) = [row for row in rows if row["point"] == point and not row["spike_jitter"]]
    return row


def test_all_points_are_there(rows, swept):
    assert [(row["point"], row["trained"], row["spike_jitter"]) for row in rows] == [
        *(("free", True, jitter) for jitter in (0, 0.1, 0.3)),
        *((f"time_steps={steps}+weight_bits=4", False, 0) for steps in (2, 4)),
        (TARGET, True, 0),
        *((ON_GRID, True, jitter) for jitter in (0, 0.1, 0.3)),
    ]
    assert {row["images"] for row in rows} == {100}
    assert [row["steps"] for row in rows] == [8, 8, 8, 2, 4, 8, 4, 4, 4]
    assert {path.parent.name for path in swept.glob("points/run/*/summary.json")} == {TARGET, ON_GRID}


def test_figures_of_a_point_are_those_of_its_run(rows, swept, trained):
    row, free = only(rows, TARGET), only(rows, "free")
    summary = json.loads((swept / "points" / "run" / TARGET / "summary.json").read_text())
    assert (row["target"], row["goal"], row["cost"]) == ("sparsity", 0.4, summary["target"]["test"]["network"])
    assert row["reached"] == summary["target"]["reached"]
    assert row["synaptic_operations"] == summary["counts"]["total"]["synaptic_operations"] / 100
    with_memory = row["with_memory_uj"]
    assert 0 < row["arithmetic_uj"] < with_memory == row["lemaire45:int8: with_memory_uj"] <= row["total_uj"]
    assert 0 < row["dense_arithmetic_uj"] < row["dense_with_memory_uj"]
    for found, run in ((row, summary), (free, json.loads((trained / "summary.json").read_text()))):
        accuracies = found["accuracy"], found["first_spike_accuracy"]
        assert accuracies == (run["test_accuracy"], run["test_first_spike_accuracy"])
        assert found["sparsity"] == pytest.approx(run["sparsity"])
    for row in rows:
        if row["time_steps"] and not row["spike_jitter"]:
            assert row["simulated_accuracy"] == row["accuracy"], "a network on a grid decides as its simulation"


@pytest.mark.parametrize(
    ("point", "folder", "flags"),
    [
        ("free/spike_jitter=0.3", None, ("--steps", "8", "--spike-jitter", "0.3")),
        (ON_GRID, f"points/run/{ON_GRID}", ("--deadlines",)),
    ],
)
def test_a_row_is_what_evaluate_writes(swept, trained, tmp_path, point, folder, flags):
    network = trained if folder is None else swept / folder
    same = ("--cpu", "--chip", "lemaire45:int8", "--max-test-samples", "100")
    evaluate("Evaluate.", [str(word) for word in (network, "--output-dir", tmp_path, *same, *flags)])
    own, theirs = (
        json.loads((at / "evaluation.json").read_text()) for at in (swept / "evaluations" / "run" / point, tmp_path)
    )
    assert own.pop("about")["command"].startswith("ttfs sweep")
    del theirs["about"], own["key"]
    assert own == theirs


def test_evaluations_of_another_setting_are_made_anew(swept, tmp_path, monkeypatch):
    figures = json.loads(next(swept.rglob("evaluation.json")).read_text())
    measure = Mock(return_value=figures)
    monkeypatch.setattr(command.Sweep, "_measure", measure)
    monkeypatch.setattr(command.Sweep, "_calibrated", lambda *_: None)
    network = Mock(points=(), **{"config.seed": 0, "loaded.network.graph.grid": None, "loaded.files.sha256": ""})
    network.configure_mock(name="a")

    def measured(images="all", **changes):
        before = measure.call_count
        data = Mock(**{"train.fingerprint": images, "test.fingerprint": ""}, train_indices=[0])
        options = FrontierOptions(runs=("a",), output_dir=tmp_path, **{"time_steps": (4,)} | changes)
        command.Sweep(options, None).run(network, data)
        return measure.call_count - before

    assert measured("few") == 2
    assert measured() == 1, "the grid is calibrated on other training images"
    assert measured(chip=("loihi",)) == 2
    assert measured(chip=("loihi",), steps=16) == 1, "a grid has its own steps"
    assert measured(chip=("loihi",), steps=16, dead_neurons=(0.1234, 0.1232)) == 2, "though both read as 12.3 %"


def test_page_shows_curves_and_points(swept):
    page = (swept / "frontier.html").read_text()
    axes = ("synaptic operations", "energy of", "time steps", "spike jitter", "the deadline")
    assert all(f'aria-label="Accuracy against {axis}' in page for axis in axes)
    assert not re.search(r'(src|href)="(?!https?://|data:|#)', page), "it needs nothing but itself"
    row = dict.fromkeys(command.FAULTS, 0) | {"point": TARGET + "+epochs=2", "trained": True, "cost": 0.266}
    assert label(row | {"reached": False}) == "target sparsity=0.4, epochs=2, reached 0.27"
    row |= {"point": "free", "reached": None, "trained": False, "lost_spikes": 0.1}
    assert label(row) == "as given, calibrated, lost spikes 0.1"


def test_points_that_diverge_or_are_impossible_do_not_end_the_sweep(trained, tmp_path, monkeypatch, capsys):
    real, held_out = command.train, []

    def train(config, *name, **given):
        held_out.append(given["data"].validation_indices)
        if config.target_sparsity == 0.2 or config.seed == 5:
            raise NonFiniteLossError("the loss must be finite; got nan.")
        return real(config, *name, **given)

    monkeypatch.setattr(command, "train", train)
    points = "--target-sparsity", "0.2", "0.4", "--target-operations", "0.0001", "--points", "lost_spikes=0.1+seed=5"
    with pytest.raises(SystemExit, match="1"):
        sweep(trained, "--output-dir", tmp_path / "out", *FLAGS, *points)
    said = capsys.readouterr().err
    assert "run, target_sparsity=0.2: the loss must be finite" in said
    assert "run, target_operations=0.0001: target_operations must be above" in said
    assert [row["point"] for row in written(tmp_path / "out")] == ["free", TARGET]
    assert [indices.tolist() for indices in held_out] == 4 * [held_out[0].tolist()], "images that trained the network"


def test_two_sweeps_do_not_share_a_folder(swept, trained, capsys):
    claim = command.FolderLock(swept)
    with pytest.raises(SystemExit, match="1"):
        sweep(trained, "--output-dir", swept, *SWEEP)
    claim.release()
    assert "must belong to one run" in capsys.readouterr().err


def test_interrupted_sweep_goes_on_and_a_whole_one_does_nothing(swept, trained, rows, tmp_path, monkeypatch):
    out = shutil.copytree(swept, tmp_path / "out")
    (out / "points" / "run" / TARGET / "summary.json").unlink()
    damaged = out / "evaluations" / "run" / "free" / "evaluation.json"
    for text in ("{", "5"):
        damaged.write_text(text)
        sweep(trained, "--output-dir", out, *SWEEP, *EVALUATED)
        assert written(out) == rows
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/**/*") if path.is_file()}
    for name in ("measure", "train", "calibrate_grid"):
        monkeypatch.setattr(command, name, lambda *_, **__: pytest.fail("done again"))
    sweep(trained, "--output-dir", out, *SWEEP, *EVALUATED)
    assert (out / "frontier.csv").read_text() == (swept / "frontier.csv").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/*/**/*") if path.is_file()}
