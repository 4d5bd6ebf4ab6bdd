"""A run is what its checkpoint says: another one is refused, and what differs without harm is written down."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.train.runs import SETTINGS, make_images, metrics
from ttfs_triton.train import ConfigError, RunFolderError, TrainConfig, train
from ttfs_triton.train.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from ttfs_triton.train.resume import Change, Position, RunDescription, check_same_run

CONSTANT = yaml.safe_load(SETTINGS) | {"epochs": 2, "schedule": "constant", "checkpoint_steps": 3}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, data) -> Path:
    """A run of two epochs that has ended."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    train(TrainConfig(**CONSTANT, data_dir=data, output_dir=folder))
    return folder


@pytest.fixture
def run(ended, tmp_path) -> Path:
    """A copy of that run, which has not ended yet."""
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    (folder / "summary.json").unlink()
    return folder


def resumed(run: Path, **values) -> dict:
    saved = yaml.safe_load((run / "config.yaml").read_text())
    return train(TrainConfig(**saved | {"output_dir": run, "resume": True} | values))


def newest(run: Path) -> Path:
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None
    return found


def test_edited_configuration_is_noticed_before_data_are_loaded(run, monkeypatch):
    monkeypatch.setattr("ttfs_triton.train.run.load_data", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"config\.yaml was edited since:\n  batch_size: 16 → 8\n  lr: 0\.02 → 0\.1"):
        resumed(run, lr=0.1, batch_size=8)


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_images_are_refused(run, tmp_path, write_parquet, split):
    other = make_images(tmp_path / "other", write_parquet, **{split: 164})
    name = {"train": "training", "test": "test"}[split]
    with pytest.raises(ConfigError, match=f"the {name} images must be those that .* was made with"):
        resumed(run, data_dir=other)


KEYS = {"configuration": TrainConfig().model_dump(mode="json"), "precision": "no", "processes": 2}
DESCRIPTION = RunDescription(**KEYS, data="a", test_data="b")


def test_every_difference_is_named_and_another_number_of_processes_recorded():
    others = {"precision": "bf16", "data": "c", "test_data": "d", "layers": [], "teacher": "e"}
    with pytest.raises(ConfigError) as caught:
        check_same_run(Path("step-1"), DESCRIPTION, DESCRIPTION.model_copy(update=others), 1)
    named = [line.removeprefix("--resume: ").split(" must")[0] for line in str(caught.value).splitlines()]
    assert named == ["the training images", "the test images", "the network", "the teacher", "mixed precision"]
    now = DESCRIPTION.model_copy(update={"processes": 1})
    assert check_same_run(Path("step-1"), DESCRIPTION, now, 7) == [Change(7, "processes", 2, 1)]


def test_a_state_that_is_none_is_told(run):
    found = load_checkpoint(newest(run))
    state = found.state | {"position": {"step": "three"}}
    save_checkpoint(run / "checkpoints", found.step, tensors=found.tensors, state=state, keep_last=1)
    with pytest.raises(CheckpointError, match=r"state\.json of .* must be as it was written:\n  position\.step: "):
        resumed(run)


def test_position_is_best_by_accuracy_then_epoch():
    # The first epoch, whatever it reached; of two that are equal the later one.
    accuracies = ((-1.0, 0.0, True), (0.99, 0.98, False), (0.98, 0.99, True), (0.99, 0.99, True))
    for best, accuracy, expected in accuracies:
        assert Position(best_accuracy=best).is_best(accuracy) is expected


def test_harmless_changes_are_recorded_and_an_ended_run_made_longer_equals_a_long_one(ended, run, tmp_path, data):
    shutil.copy(ended / "summary.json", run)
    moved = shutil.copytree(data, tmp_path / "moved")
    summary = resumed(run, epochs=3, log_steps=7, data_dir=moved)
    changes = [("data_dir", str(moved)), ("epochs", 3), ("log_steps", 7)]
    assert [(change["key"], change["after"]) for change in summary["changes"]] == changes
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 3
    saved = load_checkpoint(newest(run)).state["changes"]
    assert [change["key"] for change in saved] == ["data_dir", "epochs", "log_steps"]
    train(TrainConfig(**CONSTANT | {"epochs": 3}, data_dir=data, output_dir=tmp_path / "long"))
    assert metrics(run) == metrics(tmp_path / "long")


def test_run_never_starts_anew_over_damaged_checkpoints(run):
    before = (run / "best/model.safetensors").read_bytes()
    checkpoints = sorted((run / "checkpoints").iterdir())
    for path in checkpoints:
        (path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="a checkpoint must be whole to go on; all are damaged") as caught:
        resumed(run)
    assert all(path.name in str(caught.value) for path in checkpoints)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunFolderError, match=r"must hold a checkpoint, as metrics\.jsonl tells of epochs"):
        resumed(run)
    assert (run / "best/model.safetensors").read_bytes() == before


def test_damaged_best_weights_are_noticed_before_training(run, monkeypatch):
    weights = run / "best/model.safetensors"
    whole = weights.read_bytes()
    monkeypatch.setattr("ttfs_triton.train.loop.TrainingLoop.train", lambda *_: pytest.fail("trained"))
    for damage in (weights.unlink, lambda: weights.write_bytes(whole[:-9])):
        damage()
        with pytest.raises(RunFolderError, match=r"--resume: .*best must hold the best weights so far\. load: "):
            resumed(run)


def test_damaged_summary_is_told(run):
    for text in ('{"test_accuracy": 0.', "[]", '{"epochs": "2"}'):
        (run / "summary.json").write_text(text)
        with pytest.raises(RunFolderError, match=r"summary\.json must be a run's final figures; it is damaged"):
            resumed(run)
    (run / "summary.json").unlink()
    assert resumed(run)["epochs"] == 2
