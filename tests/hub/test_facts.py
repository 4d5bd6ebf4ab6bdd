"""Facts that are read from a run, and those that are refused or not published."""

import json
import os
from functools import partial

import pytest
import yaml

from ttfs_triton.hub.facts import PUBLISHED_SETTINGS, read_facts, training_data, without_paths
from ttfs_triton.model import LoadError, find_model
from ttfs_triton.train import TrainConfig

LOCAL = {"data_dir": "/home/alice/m"}
MNIST = {"dataset": "ylecun/mnist"}


def change(path, **values):
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    path.write_text(write(read(path.read_text()) | values))


def test_facts_of_a_run(run):
    kept = {*TrainConfig().model_dump()} - PUBLISHED_SETTINGS
    assert kept >= {"data_dir", "dataset", "output_dir", "weights", "cpu", "trackers", "hub_repo_id", "resume"}
    assert not kept & {"lr", "epochs", "seed", "teacher", "psp_persistence", "spike_jitter", "crop_padding", "network"}
    summary = json.loads((run / "summary.json").read_text())
    facts = read_facts(find_model(run))
    results = facts.results
    assert (results.test_accuracy, results.test_images) == (summary["test_accuracy"], 100)
    assert results.sparsity == facts.counts.sparsity == summary["sparsity"]
    assert [layer.name for layer in facts.counts.layers] == ["conv1", "fc1", "readout"]
    assert (facts.settings["model"], facts.training["epochs"], facts.unrecorded_base) == ("4C5-P4-16", 1, False)
    change(run / "config.yaml", weights="/home/alice/other.safetensors", teacher="/gone/teacher")
    facts = read_facts(find_model(run))
    assert (facts.unrecorded_base, facts.settings["teacher"]) == (True, "teacher")
    alone = read_facts(find_model(run / "best"))
    assert (alone.results, alone.counts, alone.settings, alone.dataset) == (None, None, {}, "sample")


def with_spikes(path, spikes=10**9):
    """Let a layer of summary.json have fired more often than its neurons can."""
    counts = json.loads(path.read_text())["counts"]
    counts["layers"][1]["spikes"] = spikes
    change(path, counts=counts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", os.unlink, r"summary\.json must be a run's final figures, .* continue the run by --resume"),
        ("summary.json", '{"test_accuracy": 0.5}', "test_first_spike_accuracy: Field required"),
        ("summary.json", "[" * 10**5, "recursion limit exceeded"),
        ("summary.json", {"test_accuracy": 1e309}, "test_accuracy: Input should be a finite number"),
        ("summary.json", {"test_accuracy": True}, "test_accuracy: Input should be a valid number"),
        ("summary.json", partial(with_spikes, spikes=-3), r"layers.1.spikes: .*greater than or equal to 0; got -3"),
        ("summary.json", partial(with_spikes, spikes=1e309), r"layers.1.spikes: .*; got inf"),
        ("summary.json", with_spikes, "fc1: spikes must be at most 1 per neuron and image; got 10"),
        ("summary.json", {"ties": 10**400}, "ties: Input should be less than"),
        ("summary.json", {"weights_sha256": "0" * 64}, r"that summary\.json describes, SHA-256 0{64}; got [0-9a-f]"),
        ("summary.json", os.mkfifo, "must be a run's final figures, .*no regular file"),
        ("config.yaml", "a: [", "must be the run's configuration"),
    ],
)
def test_damaged_runs_are_refused(run, name, content, message):
    if isinstance(content, str):
        (run / name).write_text(content)
    elif isinstance(content, dict):
        change(run / name, **content)
    else:
        if content is os.mkfifo:
            (run / name).unlink()
        content(run / name)
    with pytest.raises(LoadError, match=message):
        read_facts(find_model(run))


@pytest.mark.parametrize(
    ("settings", "recorded", "stated", "expected"),
    [
        (MNIST, "ylecun/mnist", None, ("ylecun/mnist", False)),
        (MNIST, None, None, (None, False)),  # config.yaml edited
        (MNIST, "some/photos", None, (None, False)),
        (MNIST | LOCAL, "ylecun/mnist", None, (None, True)),
        (LOCAL, "m", "ylecun/mnist", ("ylecun/mnist", True)),
        ({}, "sample", None, ("sample", False)),
        ({}, "alice-secret", None, (None, False)),
    ],
)
def test_only_what_is_recorded_or_stated_is_claimed_of_the_data(settings, recorded, stated, expected):
    assert training_data(settings, recorded, stated) == expected
    with pytest.raises(ValueError, match="dataset must be \"sample\" or owner/name on the Hub; got '/home/alice/m'"):
        training_data(settings, recorded, "/home/alice/m")


def test_paths_in_settings_become_names():
    paths = {"/home/alice/x.yaml": "x.yaml", "~/x.yaml": "x.yaml", "../x": "x", r"C:\Users\alice\x": "x", "a/b/c": "c"}
    paths |= {"alice/net.py:build": "net.py:build", "alice/chip.toml:4": "chip.toml:4"}
    paths |= {value: value for value in ("16C5-P2-128", 0.5, None, "owner/name", "owner/name@v1")}
    assert {value: without_paths(value) for value in paths} == paths
