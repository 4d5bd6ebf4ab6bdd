"""The README's main table, from folders of runs."""

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
    return table1.Options(results=tmp_path / "results", readme=readme, commit="abc1234")


def make_run(folder, *, accuracy=0.5, seed=0, **changes):
    """A run's folder."""
    config = {"dataset": "ylecun/mnist", "data_dir": "/somewhere/mnist", "model": "cnn1", "epochs": 3, "seed": seed}
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "model.safetensors").write_bytes(b"weights")
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"psp_persistence": 1.0} | changes))
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    summary = {"test_accuracy": accuracy, "sparsity": 0.25, "sparsity_as_published": 0.5}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def rows(options, *runs):
    """Cells of the table of some runs."""
    for run in runs:
        table1.collect(run, options)
    text = table1.table([table1.read(folder) for folder in sorted(options.results.glob("*"))])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_collected_run_holds_what_is_committed_and_names_no_folder(options, tmp_path):
    run = make_run(tmp_path / "runs" / "one")
    folder = table1.collect(run, options)
    names = ["config.yaml", "metrics.jsonl", "run.json", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert "somewhere" not in (folder / "config.yaml").read_text()
    assert folder.name == table1.name_of(run) == "one"
    assert table1.name_of(tmp_path / "runs" / "mnist" / "a") == "mnist-a"
    with pytest.raises(ValueError, match="runs must be folders of runs that have ended; got"):
        table1.collect(tmp_path / "nothing", options)
    checksum = hashlib.sha256(b"weights").hexdigest()
    about = {"weights_sha256": checksum, "commit": "abc1234", "sparsity_as_published": 0.5}
    assert json.loads((folder / "run.json").read_text()) == about


def test_seeds_share_a_row_and_settings_do_not(options, tmp_path):
    found = rows(
        options,
        make_run(tmp_path / "runs" / "a", accuracy=0.75, seed=0),
        make_run(tmp_path / "runs" / "b", accuracy=0.77, seed=1, data_dir="/elsewhere"),
        make_run(tmp_path / "runs" / "c", accuracy=0.9, psp_persistence=0.25),
        make_run(tmp_path / "runs" / "d", neuron="ann"),
    )
    assert [row[1] for row in found] == [f"CNN1, {kind}, 3 epochs" for kind in ("ANN", "σ = 0.25", "σ = 1")]
    assert found[0][2:5] == ["50.00", "–", "–"]  # an ANN stands against no spiking network
    assert found[1][2:8] == ["90.00", "–", "99.51", "0.250", "0.500", "–"]
    both = ["**0.250 ± 0.000** (0.250, 0.250)", "**0.500 ± 0.000** (0.500, 0.500)"]
    assert found[2][2:8] == ["**76.00 ± 1.41** (75.00, 77.00)", "99.4", "99.51", *both, "0.3913"]
    assert found[2][8] == "[a](../bench/results/runs/a/summary.json), [b](../bench/results/runs/b/summary.json)"


def test_rows_are_of_whole_networks_and_data(options, tmp_path):
    """Other networks stand behind those of the paper; narrow ones and those of some images have no row."""
    found = rows(
        options,
        make_run(tmp_path / "runs" / "a", width=0.5),
        make_run(tmp_path / "runs" / "b", max_train_samples=100),
        make_run(tmp_path / "runs" / "c", dataset="uoft-cs/cifar10", model="resnet20"),
        make_run(tmp_path / "runs" / "d", dataset="uoft-cs/cifar10", model="8C3-P2", width=2),
    )
    assert [row[1] for row in found] == ["8C3-P2 × 2, σ = 1, 3 epochs", "ResNet-20, σ = 1, 3 epochs"]
    assert {(row[0], row[3], row[4], row[7]) for row in found} == {("CIFAR-10", "–", "95.06", "–")}


def test_table_is_written_between_its_markers_only(options):
    table1.replace_table(options.readme, "| new |\n")
    table1.replace_table(options.readme, "| newer |\n")
    text = options.readme.read_text()
    assert text.startswith(f"before\n{table1.MARKERS[0]}\n| newer |\n\nThe paper: ")
    assert text.endswith(f"{table1.MARKERS[1]}\nafter\n")
    options.readme.write_text("nothing")
    with pytest.raises(ValueError, match=r"README\.md must have the markers"):
        table1.replace_table(options.readme, "")


def test_committed_tables_are_those_of_the_committed_runs():
    runs = [table1.read(folder) for folder in sorted((bench.RESULTS / "runs").glob("*")) if folder.is_dir()]
    assert table1.main_table(runs) in (bench.ROOT / "README.md").read_text(encoding="utf-8")
    assert table1.table(runs) in (bench.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
