"""A run on recordings of an event camera, from their files to counts, energy and simulation."""

import json
from pathlib import Path

import pytest
import torch

from tests.data.synthetic_events import write_recordings
from ttfs_triton.commands import calibrate, evaluate
from ttfs_triton.data.events import first_spikes
from ttfs_triton.data.recordings import read_bin
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.hub.card import render_card
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model import ModelDescription, TTFSModel, find_model
from ttfs_triton.train import main as train
from ttfs_triton.train.config import make_config, read_yaml

RECIPE = Path(__file__).parents[2] / "ttfs_triton" / "recipes" / "events.yaml"
COMMON = "--cpu --epochs 1 --batch-size 11 --model 4C5-P4-16 --lr 2e-2 --validation-fraction 0".split()


@pytest.fixture(scope="module", params=["nmnist", "dvs_gesture"])
def run(request, tmp_path_factory):
    """Folder of a run by the recipe on synthetic recordings in the published files."""
    folder = tmp_path_factory.mktemp(request.param)
    write_recordings(request.param, folder / "data", train=22, test=11)
    data = ["--data-dir", str(folder / "data"), "--output-dir", str(folder / "run")]
    train(RECIPE, None, ["--preset", request.param, *data, *COMMON])
    return folder / "run"


def test_a_run_on_events_is_scored_counted_priced_and_simulated(run, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    evaluate(None, [str(run), "--cpu", "--steps", "8", "--deadlines", "--output-dir", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["accuracy"] == summary["test_accuracy"]
    assert found["images"] == found["counts"]["samples"] == summary["test_images"]
    assert found["counts"]["layers"][0]["spikes"] == summary["counts"]["layers"][0]["spikes"] > 0
    assert found["simulation"]["steps"] == 8
    assert all(chip["chip"]["name"] for chip in found["energy"])


def test_event_windows_are_part_of_the_network(run):
    """A folder of config.json and weights alone is scored on the same images, and takes recordings."""
    description = ModelDescription.from_dict(json.loads((run / "best" / "config.json").read_text()))
    config = make_config(read_yaml(run / "config.yaml"), "")
    assert description.preprocessing.events == config.events
    assert config.events is not None
    assert description.network.in_channels == 2 * config.events.count
    loaded = load_network(run / "best")
    data = load_test_images(loaded, data_dir=config.data_dir)
    assert data.fingerprint == load_test_images(load_network(run)).fingerprint
    card = render_card(read_facts(find_model(run)), "org/name")
    assert f"becomes {config.events.count} windows of " in card
    assert "Images are converted" not in card
    if config.event_pool > 1:
        return
    path = next((config.data_dir / "Test").glob("*/*.bin"))
    model = TTFSModel.from_pretrained(run / "best")
    expected = model.classify(torch.from_numpy(first_spikes(read_bin(path), (34, 34), config.events, start=0)))
    levels = first_spikes(read_bin(path), (34, 34), config.events, start=0, levels=True)
    assert model.classify(torch.from_numpy(levels)).top == model.classify(path).top == model.classify(str(path)).top
    assert model.classify(path).top[0].probability == pytest.approx(expected.top[0].probability, abs=0.05)
    with pytest.raises(ValueError, match=r"classify: image 0 .*must be a recording, .bin, .aedat, .npz; got config"):
        model.classify(run / "config.yaml")


def test_recordings_calibrate_a_network_on_a_grid(run, tmp_path):
    """As the network's own config.json says of recordings."""
    config = make_config(read_yaml(run / "config.yaml"), "")
    images = ["--data-dir", str(config.data_dir), "--cpu"]
    flags = ["--time-steps", "8", "--weight-bits", "4", "--images", "12"]
    calibrate(None, [str(run), "--output-dir", str(tmp_path / "grid"), *flags, *images])
    loaded = load_network(tmp_path / "grid")
    assert loaded.description.preprocessing.events == config.events
    assert len(load_test_images(loaded, data_dir=config.data_dir)) == 11
    assert json.loads((tmp_path / "grid" / "calibration.json").read_text())["images"] == 12
