"""A resumed run is the run of its checkpoint: keys and data that would change its course are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.train.runs import SETTINGS, At, change, make_images, metrics
from ttfs_triton.train import Callback, ConfigError, NonFiniteLossError, RunFolderError, TrainConfig, train
from ttfs_triton.train.checkpoint import Checkpoint, CheckpointError, checkpoint_bytes, latest_checkpoint

CONSTANT = SETTINGS | {"epochs": 2, "schedule": "constant", "checkpoint_steps": 3}


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


def newest(run: Path) -> Checkpoint:
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None
    return found


def test_other_keys_than_the_checkpoints_are_refused_before_data_are_loaded(run, monkeypatch):
    monkeypatch.setattr("ttfs_triton.train.run.load_data", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"these differ:\n  batch_size: 16 → 8\n  lr: 0\.02 → 0\.1"):
        resumed(run, lr=0.1, batch_size=8)


def test_other_images_and_another_precision_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch` says it
    other = make_images(tmp_path / "other", train=164, test=164)
    named = r"differ:\n  precision: 'no' → 'bf16'\n  data: .*\n  test_data: .*\nLeave"
    with pytest.raises(ConfigError, match=named):
        resumed(run, data_dir=other)


def rewrite(run: Path, tensors: dict | None = None, **values) -> None:
    """Other content in the newest checkpoint, under a checksum that fits; None takes tensors away."""
    checkpoint = newest(run)
    found = {group: named for group, named in (checkpoint.tensors | (tensors or {})).items() if named is not None}
    state = json.dumps(checkpoint.state.model_dump() | values)
    checkpoint.path.write_bytes(checkpoint_bytes(state, found))


WRONG = [
    {"position": {"step": 16, "epoch": 1, "step_in_epoch": 8, "metrics": []}},
    {"optimizer": torch.float64},
    {"tensors": {"optimizer": {}}},
    {"tensors": {"optimizer": None}},
    {"tensors": {"average": {"n_averaged": torch.tensor(float("nan"))}}},
]


@pytest.mark.parametrize("values", WRONG, ids=lambda values: str(values)[:60])
def test_checkpoint_with_wrong_content_is_refused(run, values):
    """A dtype stands for all tensors of a group in that dtype."""
    (group, dtype), *_ = values.items()
    if isinstance(dtype, torch.dtype):
        values = {"tensors": {group: {name: x.to(dtype) for name, x in newest(run).tensors[group].items()}}}
    rewrite(run, **values)
    with pytest.raises(CheckpointError, match=r"load_checkpoint: .*step-00000016\S* must hold this run's state"):
        resumed(run)


def test_ended_run_made_longer_equals_a_long_one(ended, run, tmp_path, data):
    """With other data of the same content, and keys that change no course."""
    shutil.copy(ended / "summary.json", run)
    moved = shutil.copytree(data, tmp_path / "moved")
    resumed(run, epochs=3, log_steps=7, data_dir=moved)
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 3
    train(TrainConfig(**CONSTANT | {"epochs": 3}, data_dir=data, output_dir=tmp_path / "long"))
    assert metrics(run) == metrics(tmp_path / "long")


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: [path.write_bytes(content) for path in list(run.glob(name)) or [run / name]]


DAMAGES = [
    (write("checkpoints/*", b"damaged"), CheckpointError, "at least one checkpoint must be intact and of this version"),
    (lambda run: shutil.rmtree(run / "checkpoints"), RunFolderError, r"hold a checkpoint, since metrics\.jsonl lists"),
    (lambda run: (run / "best/model.safetensors").unlink(), RunFolderError, "best must hold the best weights so far"),
    (write("best/model.safetensors", b"damaged"), RunFolderError, r"best must hold the best weights so far\. load: "),
    (write("summary.json", b'{"test_accuracy": 0.'), RunFolderError, "must be a run's final figures; it is damaged"),
]


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_damage_is_reported_before_training(run, monkeypatch, damage, error, message):
    """Above all, no run starts anew over its best weights."""
    monkeypatch.setattr("ttfs_triton.train.loop.TrainingLoop.train", lambda *_: pytest.fail("trained"))
    damage(run)
    with pytest.raises(error, match=message):
        resumed(run)


def test_run_whose_folder_vanishes_says_so(config, tmp_path):
    message = r"must stay where it is while a run writes; it was moved or deleted\. Last .*step-00000008\S* Move"
    with pytest.raises(RunFolderError, match=message):
        train(change(config, epochs=2), callbacks=[At(11, lambda loop: loop.folder.path.rename(tmp_path / "moved"))])
    assert not config.output_dir.exists()


def test_best_weights_that_vanish_in_training_are_told(config, monkeypatch):
    monkeypatch.setattr(Callback, "on_epoch", lambda _, loop, line: loop.folder.best_weights.unlink())
    with pytest.raises(RunFolderError, match=r"load: .*model\.safetensors must be"):
        train(change(config, epochs=1), callbacks=[Callback()])


def test_average_that_is_not_a_number_stops_a_run_before_it_is_saved(config):
    def spoil(loop):
        next(loop.learner.average.module.parameters()).data.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match=r"epoch 2: the scored weights must be finite; got .* values of"):
        train(change(config, epochs=2), callbacks=[At(11, spoil)])
    assert [path.stem for path in (config.output_dir / "checkpoints").iterdir()] == ["step-00000008"]
