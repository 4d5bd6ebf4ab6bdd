"""`ttfs sweep` from start to finish, and again."""

import csv
import json
import re
import shutil
from dataclasses import replace
from unittest.mock import Mock

import pytest

from tests.sweep.conftest import EVALUATED, FLAGS, SWEEP, sweep
from ttfs_triton.chip import simulate
from ttfs_triton.commands.evaluate import main as evaluate
from ttfs_triton.commands.sweep import FrontierOptions
from ttfs_triton.evaluate import EvaluationBatches
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.nn.faults import Faults
from ttfs_triton.sweep import command, measure
from ttfs_triton.sweep.command import line
from ttfs_triton.sweep.figures import label
from ttfs_triton.sweep.table import FrontierRow
from ttfs_triton.train import NonFiniteLossError
from ttfs_triton.wording import energy as in_words
from ttfs_triton.wording import ratio

ON_GRID = "time_steps=4+weight_bits=4+spike_jitter=0.1"


def written(folder):
    """Rows of the table in a sweep's folder."""
    return [FrontierRow(**row) for row in json.loads((folder / "frontier.json").read_text())["rows"]]


@pytest.fixture(scope="module")
def rows(swept):
    return written(swept)


def of(rows, point, kind="network"):
    return [row for row in rows if (row.point, row.kind) == (point, kind)]


def test_all_points_are_there(rows, swept):
    assert [(row.point, row.trained) for row in rows if row.kind == "network"] == [
        ("free", True),
        ("time_steps=2+weight_bits=4", False),
        ("time_steps=4+weight_bits=4", False),
        ("target_sparsity=0.4", True),
        (ON_GRID, True),
    ]
    assert len(of(rows, "free", "faults")) == len(of(rows, ON_GRID, "faults")) == 3
    assert not of(rows, "target_sparsity=0.4", "faults")
    assert {len(of(rows, point, "deadline")) for point in ("free", "target_sparsity=0.4", ON_GRID)} == {20}
    assert {row.images for row in rows} == {100}
    for row in rows:
        assert (row.folder is not None) == (row.point in ("target_sparsity=0.4", ON_GRID))
        assert row.folder is None or (swept / row.folder / "summary.json").is_file()


def test_figures_of_a_point_are_those_of_its_run(rows, swept, trained):
    (row,) = of(rows, "target_sparsity=0.4")
    summary = json.loads((swept / "points" / "run" / "target_sparsity=0.4" / "summary.json").read_text())
    assert (row.accuracy, row.sparsity) == (summary["test_accuracy"], pytest.approx(summary["sparsity"]))
    assert (row.target, row.goal, row.cost) == ("sparsity", 0.4, summary["target"]["test"]["network"])
    assert row.reached == summary["target"]["reached"]
    (free,), given = of(rows, "free"), json.loads((trained / "summary.json").read_text())
    assert (free.accuracy, free.first_spike_accuracy) == (given["test_accuracy"], given["test_first_spike_accuracy"])
    assert free.sparsity == pytest.approx(given["sparsity"])
    assert row.synaptic_operations == summary["counts"]["total"]["synaptic_operations"] / 100
    assert line(free).startswith("run, as given, accuracy ")
    assert line(row).count("activity") == line(free).count("activity") == 1
    (energy,) = row.energy
    assert energy.chip == "lemaire45:int8"
    assert 0 < energy.arithmetic < energy.with_memory <= energy.total
    assert 0 < energy.dense_arithmetic < energy.dense_with_memory


@pytest.mark.parametrize("point", ["free", ON_GRID])
def test_evaluation_and_its_page_have_the_price_of_the_sweep(rows, swept, trained, tmp_path, point):
    (row,) = of(rows, point)
    steps = ["--steps", "8"] if row.time_steps is None else []
    flags = ["--chip", "lemaire45:int8", *steps, "--cpu", "--max-test-samples", "100"]
    flags += ["--output-dir", tmp_path, "--report", tmp_path / "page.html"]
    evaluate("Evaluate.", [str(word) for word in (trained if row.folder is None else swept / row.folder, *flags)])
    found = json.loads((tmp_path / "evaluation.json").read_text())["energy"][0]["energy_pj"]
    (energy,) = row.energy
    assert [found[key]["nominal"] * 1e-6 for key in ("total", "memory_included", "compute_only")] == pytest.approx(
        [energy.total, energy.with_memory, energy.arithmetic], rel=1e-12
    )
    page = (tmp_path / "page.html").read_text()
    assert f'<dd class="value">{in_words(energy.with_memory * 1e6)}</dd>' in page
    ratios = [row.over_dense("lemaire45:int8", "with_memory"), energy.least_ratio, energy.most_ratio]
    own, least, most = (f"{ratio(value)}×" for value in ratios)
    span = "" if row.time_steps else f", {least} to {most} at 4 to 128"
    steps = f"{row.steps} steps a window{span}."
    assert f"With memory, inference costs {own} the dense ANN on lemaire45:int8 at {steps}" in page
    assert "upper bound" not in page
    assert "upper bound" not in (swept / "frontier.html").read_text()


def test_grids_decide_as_their_simulation(rows):
    on_grid = [row for row in rows if row.kind == "network" and row.time_steps is not None]
    assert {row.same_decisions for row in on_grid} == {100}
    assert [row.steps for row in on_grid] == [row.time_steps for row in on_grid] == [2, 4, 4]


def test_faults_are_those_of_the_simulator(rows, trained):
    loaded = load_network(trained)
    batches = EvaluationBatches(load_test_images(loaded, max_samples=100), None, 250)
    for row in of(rows, "free", "faults"):
        faults = Faults(spike_jitter=row.spike_jitter)
        found = simulate(loaded.network, batches, steps=8, weight_bits=8, faults=faults)
        assert (row.accuracy, row.first_spike_accuracy) == (found.accuracy, found.first_spike_accuracy)
    assert sorted(row.spike_jitter for row in of(rows, "free", "faults")) == [0, 0.1, 0.3]


def test_faults_that_read_alike_are_measured_apart(tmp_path):
    bench = Mock(**{"data.fingerprint": "", "with_faults": lambda _, row, faults: replace(row, **vars(faults))})
    sweep = command.Sweep(FrontierOptions(runs=("a",), output_dir=tmp_path, dead_neurons=(0.1234, 0.1232)), None, print)
    sweep._measure(None, FrontierRow.of("a", "free", None), bench, ("dead_neurons",))
    assert [row.dead_neurons for row in sweep.rows] == [0, 0.1234, 0.1232]


def test_grids_are_calibrated_anew_on_other_training_images(tmp_path, monkeypatch):
    bench = Mock(**{"data.fingerprint": "", "price": lambda found: found.rows[0]})
    bench.score.side_effect = lambda _, row: measure.Found((row,))
    monkeypatch.setattr(command, "Bench", lambda *_: bench)
    monkeypatch.setattr(command.Sweep, "_calibrated", lambda *_: None)
    network = Mock(points=(), **{"config.seed": 0, "loaded.network.graph.grid": None, "loaded.files.sha256": ""})
    network.configure_mock(name="a")
    for images in ("few", "all", "all"):
        options = FrontierOptions(runs=("a",), output_dir=tmp_path, time_steps=(4,))
        command.Sweep(options, None, print).run(network, Mock(**{"train.fingerprint": images, "train_indices": [0]}))
    assert bench.score.call_count == 1 + 2, "the network once, its grid for few and for all images"


def test_table_for_people_has_the_same_rows(rows, swept):
    with (swept / "frontier.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == len(rows)
    assert [float(cell["accuracy"]) for cell in cells] == [row.accuracy for row in rows]
    assert float(cells[0]["lemaire45:int8: with_memory_uj"]) == rows[0].energy[0].with_memory


def test_same_command_does_nothing_twice(swept, trained, rows, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("points/**/*") if path.is_file()}
    for name in ("score", "with_faults", "in_time", "simulated"):
        monkeypatch.setattr(measure.Bench, name, lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(command, "train", lambda *_, **__: pytest.fail("trained again"))
    sweep(trained, "--output-dir", swept, *SWEEP, *EVALUATED)
    assert written(swept) == rows
    assert before == {path: path.stat().st_mtime_ns for path in swept.rglob("points/**/*") if path.is_file()}


@pytest.mark.parametrize(
    ("point", "reached", "name"),
    [
        ("target_sparsity=0.1+epochs=2", False, "target activity 0.1, reached 0.27"),
        ("target_sparsity=0.1", True, "activity 0.1"),
        ("target_energy=odin:0.2+time_steps=4", False, "target odin:0.2, reached 0.27, 4 steps"),
    ],
)
def test_label_of_a_missed_target_says_what_was_reached(point, reached, name):
    assert label(FrontierRow.of("net", point, None, cost=0.266, goal=0.1, reached=reached)) == name


def test_page_shows_curves_and_points(swept):
    page = (swept / "frontier.html").read_text()
    for name in ("operations", "energy", "grid", "faults", "deadline", "points", "made"):
        assert f'<section id="{name}">' in page
    assert page.count("<svg") >= 6
    assert "activity 0.4" in page
    assert "with memory" in page
    assert not re.search(r'(src|href)="(?!https?://|data:|#)', page), "it needs nothing but itself"


def test_diverged_point_does_not_end_the_sweep(trained, tmp_path, monkeypatch, capsys):
    real = command.train

    def train(config, *name, **given):
        if config.target_sparsity == 0.2:
            raise NonFiniteLossError("the loss must be finite; got nan.")
        return real(config, *name, **given)

    monkeypatch.setattr(command, "train", train)
    with pytest.raises(SystemExit, match="1"):
        sweep(trained, "--output-dir", tmp_path / "out", *FLAGS, "--target-sparsity", "0.2", "0.4")
    assert "run, target_sparsity=0.2: the loss must be finite" in capsys.readouterr().err
    assert [row.point for row in written(tmp_path / "out")] == ["free", "target_sparsity=0.4"]


def test_damaged_cache_is_told(swept, trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    for text in ("{", "5"):
        (tmp_path / "out" / "measured.json").write_text(text)
        with pytest.raises(SystemExit, match="1"):
            sweep(trained, "--output-dir", tmp_path / "out", *FLAGS)
        assert "nothing trained again" in capsys.readouterr().err


def test_two_sweeps_do_not_share_a_folder(swept, trained, capsys):
    claim = command.FolderLock(swept)
    try:
        with pytest.raises(SystemExit, match="1"):
            sweep(trained, "--output-dir", swept, *SWEEP)
    finally:
        claim.release()
    assert "must belong to one run" in capsys.readouterr().err


def test_interrupted_point_is_resumed(swept, trained, rows, tmp_path):
    out = shutil.copytree(swept, tmp_path / "out")
    (out / "points" / "run" / "target_sparsity=0.4" / "summary.json").unlink()
    sweep(trained, "--output-dir", out, *SWEEP, *EVALUATED)
    assert [(row.point, row.accuracy, row.cost) for row in written(out)] == [
        (row.point, row.accuracy, row.cost) for row in rows
    ]
