"""What the user can mend is told in a line, with code 1."""

import pytest

from tests.train.runs import change
from ttfs_triton.train import ConfigError, RunFolderError, train


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 100_000}, "batch_size must be at most the number of training images; got 100000 for 128"),
        ({"max_train_samples": 12}, "batch_size must be at most the number of training images; got 16 for 10"),
        ({"model": "4X3"}, "specification"),
    ],
)
def test_run_that_cannot_be_built_is_told_and_leaves_nothing(config, values, message):
    with pytest.raises(ConfigError, match=message):
        train(change(config, **values))
    assert not config.output_dir.exists()


def test_not_enough_memory_is_told(config, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("ttfs_triton.train.run.load_data", fail)
    with pytest.raises(ConfigError, match="not enough memory for this run; MemoryError"):
        train(config)


@pytest.mark.parametrize("name", ["save_checkpoint", "write_metrics"])
def test_full_disk_is_told_with_the_way_to_go_on(config, monkeypatch, name):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "weights")

    where = {"save_checkpoint": "loop.save_checkpoint", "write_metrics": "run_folder.RunFolder.write_metrics"}[name]
    with monkeypatch.context() as patch:
        patch.setattr(f"ttfs_triton.train.{where}", full)
        with pytest.raises(RunFolderError, match=r"got No space left on device \(weights\)\. Last .* --resume"):
            train(config)
    assert train(change(config, resume=True))["epochs"] == 3


def test_best_weights_that_vanish_in_training_are_told(config, monkeypatch):
    from ttfs_triton.train.loop import TrainingLoop

    real = TrainingLoop.train

    def train_and_lose(trainer):
        real(trainer)
        trainer.folder.best_weights.unlink()

    monkeypatch.setattr(TrainingLoop, "train", train_and_lose)
    with pytest.raises(RunFolderError, match=r"load: .*model\.safetensors must be"):
        train(change(config, epochs=1))
