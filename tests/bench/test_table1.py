"""Rows of collected runs, and the README's main table."""

import hashlib
import json

import pytest
import yaml

from tests.bench.modules import modules

bench, table1 = modules("_bench", "table1")


@pytest.fixture
def options(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n{}\nold\n{}\nafter\n".format(*table1.MARKERS))
    return table1.Options(results=tmp_path / "results", readme=readme, guides=tmp_path, commit="abc1234")


def make_run(folder, *, accuracy=0.5, seed=0, **changes):
    """A run's folder."""
    config = {"dataset": "ylecun/mnist", "data_dir": "/somewhere/mnist", "model": "cnn1", "epochs": 3, "seed": seed}
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "model.safetensors").write_bytes(b"weights")
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"psp_persistence": 1.0} | changes))
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "train_accuracy": 0.5}\n')
    summary = {"test_accuracy": accuracy, "test_first_spike_accuracy": 0.5, "ties": 0, "sparsity": 0.25}
    summary |= {"sparsity_as_published": 0.5, "counts": {"total": {"synaptic_operations": 20}, "samples": 10}}
    summary |= {"val_accuracy": None, "best_epoch": 1, "seconds_per_epoch": 2.0, "device": "CPU"}
    summary |= {"mixed_precision": "no", "versions": {"torch": "2.13.0"}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_collected_run_of_the_main_table_keeps_its_folder_and_names_no_path(options, tmp_path):
    run = make_run(tmp_path / "runs" / "mnist-s1")
    folder = table1.collect(run, options)
    assert len(list(folder.iterdir())) == 4
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert "somewhere" not in (folder / "config.yaml").read_text()
    assert folder.name == table1.name_of(run) == "mnist-s1"
    with pytest.raises(ValueError, match="runs must be folders of runs that have ended; got"):
        table1.collect(tmp_path / "nothing", options)
    about = {"weights_sha256": hashlib.sha256(b"weights").hexdigest(), "commit": "abc1234"}
    assert json.loads((folder / "run.json").read_text()) == about


def test_runs_that_no_page_names_are_rows_only(options, tmp_path):
    guide = options.guides / "guides" / "guide.md"
    guide.parent.mkdir(parents=True)
    guide.write_text("The rows are in `bench/results/runs/b-2`.")
    for name in ("a", "b", "b-2"):
        table1.collect(make_run(tmp_path / "runs" / name, psp_persistence=0.25, lr=0.5, pretrain=False), options)
    assert len(table1.collected_rows(options)) == 3
    assert [folder.name for folder in (options.results / "runs").iterdir()] == ["b-2"]
    table1.collect(make_run(tmp_path / "new" / "runs" / "a", accuracy=0.75, neuron="ann"), options)
    first, second, _ = table1.collected_rows(options)
    assert (first["test_accuracy"], first["sigma"], first["settings"]) == ("0.75", "", "{neuron: ann}")
    assert (second["test_accuracy"], second["sigma"], second["settings"]) == ("0.5", "0.25", "{lr: 0.5}")


def test_seeds_share_a_row_of_the_main_table(options, tmp_path):
    small = {"dataset": "uoft-cs/cifar10", "model": "cifarnet"}
    for name, changes in {
        "mnist-s1-0": {"accuracy": 0.75},
        "mnist-s1-1": {"accuracy": 0.77, "seed": 1},
        "mnist-s1-margin": {},
        "wide-s1-e22": small | {"width": 2},
        "wide-s0-e32": small | {"psp_persistence": 0, "channels": [8, 16]},
    }.items():
        table1.collect(make_run(tmp_path / "runs" / name, **changes), options)
    assert table1.main_table(table1.collected_rows(options)).splitlines()[2:] == [
        "| MNIST | CNN1, σ = 1 | 76.00 ± 1.41 % | 0.250 ± 0.000 | 3 | 99.4 % | 0.3913 | 150 |",
        "| CIFAR-10 | cifarnet (8, 16 channels), σ = 0 | 50.00 % | 0.250 | 3 | – | – | – |",
        "| CIFAR-10 | cifarnet × 2, σ = 1 | 50.00 % | 0.250 | 3 | 93.05 % (VGG16) | 0.2561 | 300 |",
    ]


def test_committed_table_is_that_of_the_committed_rows():
    rows, _ = bench.read(bench.RESULTS / "runs.csv")
    assert table1.main_table(rows) in (bench.ROOT / "README.md").read_text(encoding="utf-8")
    by_name = {row["run"]: row for row in rows}
    for row in map(table1.row_of, (bench.RESULTS / "runs").iterdir()):
        assert table1.is_named(row["run"], table1.Options())
        assert by_name[row["run"]]["weights_sha256"] == row["weights_sha256"]
        assert float(by_name[row["run"]]["test_accuracy"]) == row["test_accuracy"]
