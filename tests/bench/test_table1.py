"""The README's main table, from folders of runs."""

import hashlib
import json
import shutil

import pytest
import yaml

from tests.bench.modules import published, table1
from tests.trained import _own_cache, trained  # noqa: F401

PAGE = "before\n{}\nold\n{}\nafter\n"


@pytest.fixture
def options(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(PAGE.format(*table1.MARKERS))
    return table1.Options(results=tmp_path / "results", readme=readme, commit="abc1234", count=False)


def make_run(folder, *, accuracy=None, seed=0, **changes):
    """A run's folder, finished if it has an accuracy."""
    config = {"dataset": "ylecun/mnist", "data_dir": "/somewhere/mnist", "model": "cnn1", "epochs": 3, "seed": seed}
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "model.safetensors").write_bytes(b"weights")
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"psp_persistence": 1.0} | changes))
    lines = [{"epoch": epoch, "val_accuracy": value} for epoch, value in ((1, 0.25), (2, 0.5))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if accuracy is not None:
        summary = {"test_accuracy": accuracy, "sparsity": 0.25, "sparsity_as_published": 0.5}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def collected(options, *runs):
    for run in runs:
        table1.collect(run, options)
    return [table1.read(folder) for folder in sorted(options.results.glob("*"))]


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_collected_run_holds_what_is_committed_and_names_no_folder(options, tmp_path):
    run = make_run(tmp_path / "runs" / "one", accuracy=0.75)
    make_run(run / "ann", accuracy=0.5, neuron="ann")
    folder = table1.collect(run, options)
    assert sorted(path.name for path in folder.iterdir()) == [
        "ann",
        "config.yaml",
        "metrics.jsonl",
        "run.json",
        "summary.json",
    ]
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert "somewhere" not in (folder / "config.yaml").read_text()
    about = json.loads((folder / "run.json").read_text())
    checksum = hashlib.sha256(b"weights").hexdigest()
    assert about == {"weights_sha256": checksum, "commit": "abc1234", "sparsity_as_published": 0.5}
    assert "sparsity_as_published" not in json.loads((folder / "ann" / "run.json").read_text())


def test_seeds_share_a_row_and_settings_do_not(options, tmp_path):
    runs = collected(
        options,
        make_run(tmp_path / "runs" / "a", accuracy=0.75, seed=0),
        make_run(tmp_path / "runs" / "b", accuracy=0.77, seed=1, data_dir="/elsewhere"),
        make_run(tmp_path / "runs" / "c", accuracy=0.9, psp_persistence=0.25),
    )
    found = [row for row in rows(table1.table(runs)) if row[0] == "MNIST"]
    assert [row[1] for row in found] == ["CNN1, σ = 0.25, 3 epochs", "CNN1, σ = 1, 3 epochs"]
    assert found[0][2:8] == ["90.00", "–", "99.51", "0.250", "0.500", "–"]
    assert found[1][2:8] == [
        "**76.00 ± 1.41** (75.00, 77.00)",
        "99.4",
        "99.51",
        "**0.250 ± 0.000** (0.250, 0.250)",
        "**0.500 ± 0.000** (0.500, 0.500)",
        "0.3913",
    ]
    assert found[1][8] == "[a](bench/results/runs/a), [b](bench/results/runs/b)"


def test_unfinished_runs_stand_there_with_what_they_reached(options, tmp_path):
    text = table1.table(collected(options, make_run(tmp_path / "runs" / "a")))
    (row,) = [row for row in rows(text) if row[0] == "MNIST"]
    assert row[1:4] == [
        "CNN1, σ = 1, 3 epochs",
        "not finished: 50.00% of validation images after 2 of 3 epochs",
        "99.4",
    ]


def test_narrower_networks_have_no_row(options, tmp_path):
    runs = collected(
        options,
        make_run(tmp_path / "runs" / "a", accuracy=0.5, width=0.5),
        make_run(tmp_path / "runs" / "b", accuracy=0.5, dataset="uoft-cs/cifar10", model="8C3", width=0.375),
    )
    text = table1.table(runs)
    assert len(runs) == 2
    assert {row[2] for row in rows(text)} == {"not run yet"}


def test_every_target_has_a_row(options, tmp_path):
    text = table1.table(collected(options, make_run(tmp_path / "runs" / "a", accuracy=0.5, max_train_samples=100)))
    assert [row[0] for row in rows(text)] == [target.title for target in published.TARGETS]
    assert {row[2] for row in rows(text)} == {"not run yet"}


def test_other_networks_stand_behind_those_of_their_data(options, tmp_path):
    runs = collected(
        options,
        make_run(tmp_path / "runs" / "a", accuracy=0.5, dataset="uoft-cs/cifar10", model="8C3-P2"),
        make_run(tmp_path / "runs" / "b", accuracy=0.5, model="8C3", max_train_samples=100),
        make_run(tmp_path / "runs" / "c", accuracy=0.5, dataset="uoft-cs/cifar10", model="resnet20"),
    )
    found = [row for row in rows(table1.table(runs)) if row[2] != "not run yet"]
    assert [row[1] for row in found] == ["8C3-P2, σ = 1, 3 epochs", "ResNet-20, σ = 1, 3 epochs"]
    assert {(row[0], row[3], row[4], row[7]) for row in found} == {("CIFAR-10", "–", "95.06", "–")}
    titles = [row[0] for row in rows(table1.table(runs))]
    assert titles == ["MNIST", "Fashion-MNIST", "CIFAR-10", "CIFAR-10", "CIFAR-10", "CIFAR-10", "CIFAR-100"]


def test_analog_network_comes_first_and_stands_against_no_spiking_one(options, tmp_path):
    runs = collected(
        options,
        make_run(tmp_path / "runs" / "a", accuracy=0.5, psp_persistence=0.25),
        make_run(tmp_path / "runs" / "b", accuracy=0.5, neuron="ann"),
    )
    found = [row for row in rows(table1.table(runs)) if row[0] == "MNIST"]
    assert [row[1:5] for row in found] == [
        ["CNN1, ANN, 3 epochs", "50.00", "–", "–"],
        ["CNN1, σ = 0.25, 3 epochs", "50.00", "–", "99.51"],
    ]


def test_table_is_written_between_its_markers_only(options, tmp_path):
    collected(options, make_run(tmp_path / "runs" / "a", accuracy=0.75))
    table1.replace_table(options.readme, "| new |\n")
    text = options.readme.read_text()
    assert text.startswith(f"before\n{table1.MARKERS[0]}\n| new |\n\nThe paper: ")
    assert text.endswith(f"{table1.MARKERS[1]}\nafter\n")
    table1.replace_table(options.readme, "| newer |\n")
    assert "| new |" not in options.readme.read_text()
    options.readme.write_text("nothing")
    with pytest.raises(ValueError, match="readme must have the markers"):
        table1.replace_table(options.readme, "")


def test_runs_in_folders_of_their_own_are_named_after_both(tmp_path):
    assert table1.name_of(tmp_path / "runs" / "a") == "a"
    assert table1.name_of(tmp_path / "runs" / "mnist" / "a") == "mnist-a"


def test_what_is_no_run_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match="runs must be folders of runs with an epoch behind them; got"):
        table1.collect(tmp_path / "nothing", options)
    folder = table1.collect(make_run(tmp_path / "runs" / "a"), options)
    (folder / "metrics.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"must hold a collected run; .* Collect it again"):
        table1.read(folder)


def test_neurons_without_input_are_counted_where_the_run_did_not(trained, options, tmp_path):  # noqa: F811
    run = shutil.copytree(trained, tmp_path / "runs" / "old")
    summary = json.loads((run / "summary.json").read_text())
    expected = summary.pop("sparsity_as_published")
    (run / "summary.json").write_text(json.dumps(summary))
    assert table1.counted_again(run, None) != pytest.approx(expected)  # of all test images, not the run's first hundred
    options.count = True
    about = json.loads((table1.collect(run, options) / "run.json").read_text())
    assert 0 < about["sparsity_as_published"] < 1


def test_committed_table_is_that_of_the_committed_runs():
    runs = [table1.read(folder) for folder in sorted(table1.RESULTS.glob("*")) if folder.is_dir()]
    assert table1.table(runs) in (table1.ROOT / "README.md").read_text(encoding="utf-8")
