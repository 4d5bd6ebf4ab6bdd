"""The profile of some steps: where operators are counted, what it writes, and that it changes nothing."""

import json

import pytest
import yaml
from accelerate.state import AcceleratorState

from tests.train.recorded import RecordedGraphs
from tests.train.runs import SETTINGS, assert_same_run, make_images
from ttfs_triton.train import TrainConfig, loop, train
from ttfs_triton.train.profile import SKIPPED


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_parquet):
    return make_images(tmp_path_factory.mktemp("images"), write_parquet, train=400)


@pytest.fixture
def config(data, tmp_path):
    values = yaml.safe_load(SETTINGS) | {"epochs": 1, "statistics_steps": 100, "profile": 2}
    return TrainConfig(**values, data_dir=data, output_dir=tmp_path / "run")


def change(config, **values):
    return TrainConfig(**config.model_dump() | values)


def test_profile_tells_layers_and_stages_apart_and_changes_nothing(config, tmp_path):
    train(change(config, profile=0, output_dir=tmp_path / "plain"))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(config)
    assert_same_run(tmp_path / "plain", config.output_dir)
    table = (config.output_dir / "profile" / "steps.txt").read_text()
    assert table.startswith("2 steps\n")
    for row in ("layer conv1", "layer fc1", "layer readout", "data", "loss", "clipping", "optimiser"):
        assert f" {row} " in table
    trace = json.loads((config.output_dir / "profile" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("layer conv1") == names.count("data") == 2


def test_profile_of_replayed_steps_changes_nothing(config, tmp_path, monkeypatch):
    graphs = RecordedGraphs()
    monkeypatch.setattr(loop, "choose_graphs", lambda *_: graphs)
    train(change(config, profile=0, output_dir=tmp_path / "plain"))
    AcceleratorState._reset_state(reset_partial_state=True)
    replays, graphs.replays = graphs.replays, 0
    train(config)
    assert_same_run(tmp_path / "plain", config.output_dir)
    assert graphs.replays == replays
    assert (config.output_dir / "profile" / "steps.txt").read_text().startswith("2 steps\n")


def test_profile_ends_with_the_epoch(config):
    train(change(config, profile=100))
    assert (config.output_dir / "profile" / "steps.txt").read_text().startswith(f"{20 - SKIPPED} steps\n")
