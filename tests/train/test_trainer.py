"""A run as a whole: what it leaves behind, what it says of itself, and what it refuses in a line."""

import dataclasses
import json
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch

from tests.train.runs import best, change, last, metrics, run
from ttfs_triton.nn import LayerStatistics, NetworkConfig, TTFSNetwork
from ttfs_triton.run_records import EpochLine
from ttfs_triton.train import ConfigError, RunFolderError, train
from ttfs_triton.train.display import Display, is_blind
from ttfs_triton.train.loop import TrainingLoop


def test_run_learns_and_leaves_the_documented_folder(config):
    summary, folder = train(change(config, epochs=8)), config.output_dir
    names = {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "best"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "summary.json").read_text()) == summary
    documented = (
        "test_accuracy val_accuracy sparsity sparsity_with_outputs counts epochs seconds_per_epoch "
        "images_per_second seed versions device"
    )
    assert set(documented.split()) <= set(summary)
    assert summary["test_accuracy"] > 0.8
    assert summary["test_images"] == 45
    assert 0 < summary["sparsity"] < 1
    assert len(list((folder / "checkpoints").iterdir())) == config.keep_checkpoints
    lines = metrics(folder)
    assert [line["epoch"] for line in lines] == list(range(1, 9))
    assert (summary["val_accuracy"], summary["best_epoch"]) == max((x["val_accuracy"], x["epoch"]) for x in lines)
    network = TTFSNetwork(NetworkConfig.from_dict(json.loads((folder / "best/config.json").read_text())["network"]))
    network.load_state_dict(best(folder))


def test_freed_memory_is_kept_while_training_on_a_cpu(config, monkeypatch):
    calls = []
    real = TrainingLoop.train

    @contextmanager
    def kept():
        calls.append("kept")
        yield
        calls.append("given back")

    monkeypatch.setattr("ttfs_triton.train.run.freed_memory_kept", kept)
    monkeypatch.setattr(TrainingLoop, "train", lambda trainer: calls.append("training") or real(trainer))
    train(change(config, epochs=1))
    assert calls == ["kept", "training", "given back"]


def test_same_seed_same_run_and_another_seed_another(config, tmp_path):
    train(config)
    train(change(config, output_dir=tmp_path / "again"))
    train(change(config, output_dir=tmp_path / "other", seed=1))
    same, other = last(tmp_path / "again"), last(tmp_path / "other")
    for name, value in last(config.output_dir).items():
        assert torch.equal(value, same[name])
    assert metrics(config.output_dir) == metrics(tmp_path / "again")
    assert metrics(config.output_dir) != metrics(tmp_path / "other")
    assert other.keys() == same.keys()


def test_accumulation_and_compilation_give_the_same_weights(config, tmp_path, monkeypatch):
    # aot_eager traces forward and backward as the default backend does, and needs no C++ compiler.
    compile_network = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_network(model, backend="aot_eager"))
    plain = change(config, dropout=0.0, epochs=1)
    train(plain)
    for name, values in (("accumulated", {"gradient_accumulation": 4}), ("compiled", {"compile": True})):
        train(change(plain, output_dir=tmp_path / name, **values))
        found = best(tmp_path / name)
        for key, value in best(config.output_dir).items():
            torch.testing.assert_close(value, found[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "sgd", "lr": 0.1, "schedule": "milestones", "milestones": (1, 2), "gradient_clip": 1.0},
        {"optimizer": "adam", "schedule": "cosine", "label_smoothing": 0.1, "readout": "first_spike"},
        {"psp_persistence": 0.0, "batch_norm": True, "encoder": "analog"},
        {"schedule": "constant", "validation_fraction": 0.0, "ema_decay": 0.0, "mixed_precision": "bf16"},
        {"num_workers": 1, "streaming": True, "readout": "potential_end", "psp_persistence": 0.25},
        {"mixup": 0.2, "cutmix": 0.2, "cutout": 2, "label_smoothing": 0.1},
    ],
    ids=lambda values: "-".join(values),
)
def test_options_train(config, values, device):
    summary = train(change(config, epochs=2, cpu=device.type == "cpu", **values))
    assert 0.25 < summary["test_accuracy"] <= 1
    assert metrics(config.output_dir)[1]["train_loss"] < metrics(config.output_dir)[0]["train_loss"]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_start_from_weights_of_a_run(config, tmp_path, batch_norm):
    first = change(config, psp_persistence=0.0, batch_norm=batch_norm, ema_decay=0.0, epochs=4)
    train(first)
    weights = config.output_dir if batch_norm else config.output_dir / "best/model.safetensors"
    values = {"weight_standardisation": not batch_norm, "lr": 1e-9, "output_dir": tmp_path / "next"}
    summary = train(change(config, psp_persistence=0.0, weights=weights, **values))
    first_summary = json.loads((config.output_dir / "summary.json").read_text())
    assert summary["test_accuracy"] == first_summary["test_accuracy"]


def test_tensorboard_gets_the_figures(config):
    train(change(config, trackers=("tensorboard",), log_steps=2, epochs=1))
    assert list(config.output_dir.rglob("events.out.tfevents*"))


def test_weights_that_do_not_fit_are_refused(config, tmp_path):
    safetensors.torch.save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"weights: .*other\.safetensors does not fit"):
        train(change(config, weights=tmp_path / "other.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="must be a whole safetensors file"):
        train(change(config, weights=tmp_path / "broken.safetensors"))
    assert not config.output_dir.exists()


def test_existing_folder_is_never_overwritten_unasked(config):
    config.output_dir.mkdir()
    (config.output_dir / "thesis.txt").write_text("precious")
    for values, message in (
        ({}, "is not a run's folder"),
        ({"overwrite": True}, r"--overwrite: .* is not a run's folder"),
        ({"resume": True}, "must hold a run"),
    ):
        with pytest.raises(RunFolderError, match=message):
            train(change(config, **values))
    assert (config.output_dir / "thesis.txt").read_text() == "precious"
    (config.output_dir / "thesis.txt").unlink()
    train(change(config, epochs=2))
    train(change(config, epochs=1, overwrite=True))
    assert len(metrics(config.output_dir)) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 100_000}, "batch_size must be at most the number of training images; got 100000 for 128"),
        ({"max_train_samples": 12}, "batch_size must be at most the number of training images; got 16 for 10"),
        ({"model": "4X3"}, "specification"),
        ({"data_dir": "/nowhere"}, "nowhere"),
    ],
)
def test_run_that_cannot_begin_is_told_and_leaves_nothing(config, values, message):
    with pytest.raises(ConfigError, match=message):
        train(change(config, **values))
    assert not config.output_dir.exists()


def test_command_line_reports_mistakes_without_a_traceback(tmp_path, data):
    result = run(tmp_path, data, tmp_path / "run", settings="\nlearning_rate: 3\n")
    assert result.returncode == 1
    assert "learning_rate: there is no such key" in result.stderr
    assert "Traceback" not in result.stderr


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
    real = TrainingLoop.train

    def train_and_lose(trainer):
        real(trainer)
        trainer.folder.best_weights.unlink()

    monkeypatch.setattr(TrainingLoop, "train", train_and_lose)
    with pytest.raises(RunFolderError, match=r"load: .*model\.safetensors must be"):
        train(change(config, epochs=1))


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_run_without_validation_images_says_what_its_epochs_tell(config, capsys, fraction):
    train(change(config, epochs=1, validation_fraction=fraction))
    assert ("no validation images: epochs tell" in capsys.readouterr().out) == (fraction == 0)


def test_average_of_few_steps_is_not_of_the_start(config):
    """An average of 0.999 over 24 steps was the start's; it is about as good as the last weights are."""
    assert train(change(config, ema_decay=0.999))["test_accuracy"] > 0.8


LINE = EpochLine(epoch=1, step=8, lr=0.1, train_loss=2.3, train_accuracy=0.1, images_per_second=1.0, seconds=1.0)
# Of 4 neurons over 10 samples.
ALIVE = LayerStatistics(name="conv1", kind="spiking", samples=10, neurons=4, spikes=20, saturated=5, never_active=1)
SILENT = dataclasses.replace(ALIVE, spikes=0, saturated=0, never_active=4)
SATURATED = dataclasses.replace(ALIVE, spikes=40, saturated=40, never_active=0)
MIXED = dataclasses.replace(ALIVE, spikes=30, saturated=30, never_active=1)


def test_layer_is_blind_if_each_neuron_does_the_same_for_all_samples():
    assert all(map(is_blind, (SILENT, SATURATED, MIXED)))
    for values in (
        {"saturated": 29},  # a spike has a time
        {"spikes": 29, "saturated": 29},  # a neuron was silent once
        {"never_active": 0},  # so it was another one, which was silent more often
        {"kind": "readout"},
        {"samples": 1, "spikes": 3, "saturated": 3},  # one image tells nothing
    ):
        assert not is_blind(dataclasses.replace(MIXED, **values)), values
    assert not is_blind(ALIVE)


def test_blind_layer_is_told_once_until_it_recovers(capsys):
    display = Display(True)
    counts = []
    for layers in ([ALIVE], [ALIVE, SILENT], [SILENT], [ALIVE], [SATURATED], []):
        display.epoch(LINE, 9, False, layers)
        counts.append(capsys.readouterr().out.count("warning: conv1 does the same for every image"))
    assert counts == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("rate", [0.02, 100.0])
def test_run_that_has_died_says_so_with_a_remedy(config, capsys, rate):
    train(change(config, lr=rate, dropout=0.0, ema_decay=0.0))
    shown = capsys.readouterr().out
    assert shown.count("so no image is told from another. Start again with a lower --lr") == (rate > 1)
