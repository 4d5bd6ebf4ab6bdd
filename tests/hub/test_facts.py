"""Facts that are read from a run, and those that are refused or not published."""

import json
import os

import pytest
import yaml

from ttfs_triton.data.sources import SAMPLE
from ttfs_triton.hub.facts import KNOWN, PUBLISHED_SETTINGS, read_facts, training_data, without_paths
from ttfs_triton.model import LoadError, find_model
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.train import TrainConfig

MNIST = NetworkConfig("4C3-P2-8", image_size=(28, 28), classes=10)
LOCAL = {"data_dir": "/home/alice/m"}
NOTHING = (None, "a data set that is not named", False)


def change(path, **values):
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    path.write_text(write(read(path.read_text()) | values))


def test_settings_that_say_where_a_run_ran_are_kept():
    kept = {*TrainConfig().model_dump()} - PUBLISHED_SETTINGS
    assert kept >= {"data_dir", "dataset", "output_dir", "weights", "cpu", "trackers", "hub_repo_id", "resume"}
    assert not kept & {"lr", "epochs", "seed", "teacher", "psp_persistence", "spike_jitter", "crop_padding", "network"}


def test_facts_of_a_run(run):
    summary = json.loads((run / "summary.json").read_text())
    facts = read_facts(find_model(run))
    results = facts.results
    assert (results.test_accuracy, results.test_images) == (summary["test_accuracy"], 100)
    assert results.sparsity == facts.counts.sparsity == summary["sparsity"]
    assert [layer.name for layer in facts.counts.layers] == ["conv1", "fc1", "readout"]
    assert facts.settings["model"] == "4C5-P4-16"
    assert (facts.training["epochs"], facts.training["best_epoch"], facts.unrecorded_base) == (1, 1, False)
    change(run / "config.yaml", weights="/home/alice/other.safetensors", teacher="gone/teacher", output_dir="gone/run")
    facts = read_facts(find_model(run))
    assert (facts.unrecorded_base, facts.settings["teacher"]) == (True, "teacher")
    alone = read_facts(find_model(run / "best"))
    assert (alone.results, alone.counts, alone.settings, alone.data.recorded) == (None, None, {}, "sample")


# ---- damaged and hostile files


def edited(**values):
    """A JSON file with some values changed."""
    return lambda path: change(path, **values)


def edited_layer(**values):
    """A summary.json in which the counts of the layer fc1 have some values changed."""

    def edit(path):
        counts = json.loads(path.read_text())["counts"]
        counts["layers"][1] |= values
        change(path, counts=counts)

    return edit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, r"summary\.json must be a run's final figures, .* continue the run by --resume"),
        ("summary.json", '{"test_accuracy": 0.5}', "test_first_spike_accuracy: Field required"),
        ("summary.json", edited(test_accuracy=1e309), "test_accuracy: Input should be a finite number"),
        ("summary.json", edited(test_accuracy=-0.1), "test_accuracy: Input should be greater than or equal to 0"),
        ("summary.json", edited(test_accuracy=True), "test_accuracy: Input should be a valid number"),
        ("summary.json", edited(counts={"layers": [{"spikes": -3}]}), "from 0 on; layers.0.spikes is -3"),
        ("summary.json", edited_layer(spikes=10**9), "fc1: spikes must be at most one a neuron and image; got 10"),
        ("summary.json", edited_layer(saturated=10**9), "fc1: spikes must be at most one a neuron and image; got"),
        ("summary.json", edited(ties=10**400), r"numbers must be below 2\*\*63"),
        ("summary.json", edited(weights_sha256="0" * 64), r"that summary\.json describes, SHA-256 0{64}; got [0-9a-f]"),
        ("summary.json", edited(weights_sha256=None), "weights_sha256: Input should be a valid string"),
        ("summary.json", os.mkfifo, "must be a run's final figures, .*no regular file"),
        ("config.yaml", "a: [", "must be the run's configuration"),
        ("config.yaml", os.mkfifo, "must be the run's configuration; .*no regular file"),
    ],
)
def test_damaged_runs_are_refused(run, name, content, message):
    if content in (None, os.mkfifo):
        (run / name).unlink()
    if isinstance(content, str):
        (run / name).write_text(content)
    elif content is not None:
        content(run / name)
    with pytest.raises(LoadError, match=message):
        read_facts(find_model(run))


# ---- what is claimed of the data


@pytest.mark.parametrize(
    ("settings", "recorded", "stated", "expected"),
    [
        ({"dataset": "ylecun/mnist"}, "ylecun/mnist", None, ("ylecun/mnist", "MNIST", False)),
        ({"dataset": "ylecun/mnist"}, None, None, NOTHING),  # config.yaml edited
        ({"dataset": "ylecun/mnist"}, "some/photos", None, NOTHING),
        ({"dataset": "ylecun/mnist", **LOCAL}, "m", None, (None, "a local data set", True)),
        ({"dataset": "sample", **LOCAL}, "sample", None, (None, "a local data set", True)),
        ({"dataset": "uoft-cs/cifar100"}, "uoft-cs/cifar100", None, NOTHING),
        (LOCAL, "m", "ylecun/mnist", ("ylecun/mnist", "MNIST", True)),
        ({"dataset": "some/photos"}, "some/photos", None, ("some/photos", "some/photos", False)),
        ({}, "ylecun/mnist", None, ("ylecun/mnist", "MNIST", False)),
        ({}, "alice-secret", None, NOTHING),
    ],
)
def test_only_what_is_known_is_claimed(settings, recorded, stated, expected):
    found = training_data(settings, recorded, MNIST, stated)
    assert (found.id, found.name, found.local) == expected
    assert (found.licence is not None) == (found.name == "MNIST")
    assert found.recorded == found.seen == (None if found.local else expected[0])


def test_known_data_sets_have_names_licences_and_sources(tmp_path, monkeypatch):
    found = training_data({"dataset": SAMPLE}, SAMPLE, MNIST)
    assert (found.id, found.recorded, found.licence, found.test_images) == (None, SAMPLE, "MIT", 1000)
    assert all(data.licence and data.source and data.test_images and data.classes for data in KNOWN.values())
    with pytest.raises(ValueError, match="dataset must be \"sample\" or owner/name on the Hub; got '/home/alice/m'"):
        training_data({}, None, MNIST, "/home/alice/m")
    paths = {"/home/alice/x.yaml": "x.yaml", "~/x.yaml": "x.yaml", "../x": "x", r"C:\Users\alice\x": "x"}
    (tmp_path / "runs" / "alice").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    paths |= {"runs/alice": "alice", "alice/net.py:build": "net.py:build", "alice/chip.toml": "chip.toml", "a/b/c": "c"}
    assert {value: without_paths(value) for value in paths} == paths
    for value in ("16C5-P2-128", 0.5, None, "owner/name", "owner/name@v1"):
        assert without_paths(value) == value
    assert without_paths("gone/teacher", "gone/student") == "teacher"  # a run made elsewhere
