"""The trainer as a whole: what a run leaves behind, and what it refuses."""

import json
import random
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.convert.sources import Named, features, randomised
from tests.train.runs import assert_same_run, best, change, last, metrics, run
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.train import ConfigError, NonFiniteLossError, RunFolderError, start, train
from ttfs_triton.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from ttfs_triton.train.loop import TrainingLoop


def test_run_learns_and_leaves_the_documented_folder(config):
    summary = train(change(config, epochs=8))
    folder = config.output_dir
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "best",
    }
    assert json.loads((folder / "summary.json").read_text()) == summary
    documented = (
        "test_accuracy val_accuracy sparsity sparsity_with_outputs counts epochs seconds_per_epoch "
        "images_per_second seed versions device"
    )
    assert set(documented.split()) <= set(summary)
    assert summary["test_accuracy"] > 0.8
    assert summary["test_images"] == 45
    assert 0 < summary["sparsity"] < 1
    assert [line["epoch"] for line in metrics(folder)] == list(range(1, 9))
    assert len(list((folder / "checkpoints").iterdir())) == config.keep_checkpoints


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


def test_best_weights_rebuild_the_network_that_was_scored(config, data):
    summary = train(config)
    folder = config.output_dir
    network = TTFSNetwork(NetworkConfig.from_dict(json.loads((folder / "best/config.json").read_text())["network"]))
    network.load_state_dict(best(folder))
    lines = metrics(folder)
    order = [(line["val_accuracy"], -line["val_loss"], line["epoch"]) for line in lines]
    assert summary["best_epoch"] == max(order)[-1]
    assert summary["val_accuracy"] == max(line["val_accuracy"] for line in lines)


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


def test_accumulation_gives_the_same_weights(config, tmp_path):
    plain = change(config, dropout=0.0, epochs=1)
    train(plain)
    train(change(plain, gradient_accumulation=4, output_dir=tmp_path / "accumulated"))
    accumulated = best(tmp_path / "accumulated")
    for name, value in best(config.output_dir).items():
        torch.testing.assert_close(value, accumulated[name], atol=1e-5, rtol=0)


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


def test_compiled_network_trains_like_the_eager_one(config, tmp_path, monkeypatch):
    # aot_eager traces forward and backward as the default backend does, and needs no C++ compiler.
    compile_network = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_network(model, backend="aot_eager"))
    plain = change(config, epochs=1, dropout=0.0)
    train(plain)
    train(change(plain, compile=True, output_dir=tmp_path / "compiled"))
    compiled = best(tmp_path / "compiled")
    for name, value in best(config.output_dir).items():
        torch.testing.assert_close(value, compiled[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_start_from_weights_of_a_run(config, tmp_path, batch_norm):
    first = change(config, psp_persistence=0.0, batch_norm=batch_norm, ema_decay=0.0, epochs=4)
    train(first)
    weights = config.output_dir if batch_norm else config.output_dir / "best/model.safetensors"
    values = {"weight_standardisation": not batch_norm, "lr": 1e-9, "output_dir": tmp_path / "next"}
    summary = train(change(config, psp_persistence=0.0, weights=weights, **values))
    first_summary = json.loads((config.output_dir / "summary.json").read_text())
    assert summary["test_accuracy"] == first_summary["test_accuracy"]


def test_calibrated_run_resumes_from_its_checkpoint(config, tmp_path, monkeypatch, capsys):
    layers = nn.Sequential(*features((4, "M", 6, "M"), channels=1))
    vgg = Named(features=layers, flatten=nn.Flatten(), classifier=nn.Linear(6 * 2 * 2, 4))
    torch.save(randomised(vgg).state_dict(), tmp_path / "vgg.pth")
    values = {"model": "4C3-P2-6C3-P2", "encoder": "analog", "weight_standardisation": False, "keep_checkpoints": 9}
    spiking = change(config, weights=tmp_path / "vgg.pth", **values)
    train(spiking)
    assert "Calibrated on 128 images" in capsys.readouterr().out
    uninterrupted = best(spiking.output_dir)
    (spiking.output_dir / "summary.json").unlink()
    for path in sorted((spiking.output_dir / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)

    def again(*arguments, **options):
        raise AssertionError("the checkpoint holds the weights")

    monkeypatch.setattr(start, "calibrate_converted", again)
    train(change(spiking, resume=True))
    assert "resumed after step" in capsys.readouterr().out
    for name, value in best(spiking.output_dir).items():
        assert torch.equal(value, uninterrupted[name])


@pytest.mark.parametrize("earlier", [False, True], ids=["now", "with_random_states"])
def test_resumed_run_needs_no_random_states(config, tmp_path, earlier):
    """Whatever state the generators are in; earlier versions saved it beside the rest."""
    run = change(config, checkpoint_steps=3, keep_checkpoints=99)
    train(run)
    uninterrupted = shutil.copytree(run.output_dir, tmp_path / "uninterrupted")
    checkpoints = run.output_dir / "checkpoints"
    (run.output_dir / "summary.json").unlink()
    for path in sorted(checkpoints.iterdir())[2:]:  # in the middle of an epoch
        shutil.rmtree(path)
    if earlier:
        whole = load_checkpoint(latest_checkpoint(checkpoints))
        tensors = whole.tensors | {"random": {"torch": torch.get_rng_state(), "python.words": torch.zeros(626)}}
        save_checkpoint(checkpoints, whole.step, tensors=tensors, state=whole.state, keep_last=9)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    train(change(run, resume=True))
    assert_same_run(run.output_dir, uninterrupted)


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
    with pytest.raises(RunFolderError, match="is not a run's folder"):
        train(config)
    with pytest.raises(RunFolderError, match=r"--overwrite: .* is not a run's folder"):
        train(change(config, overwrite=True))
    with pytest.raises(RunFolderError, match="must hold a run"):
        train(change(config, resume=True))
    assert (config.output_dir / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_a_run(config):
    train(change(config, epochs=2))
    train(change(config, epochs=1, overwrite=True))
    assert len(metrics(config.output_dir)) == 1


def test_wrong_data_is_refused_before_anything_is_written(config, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        train(change(config, data_dir=tmp_path / "nowhere"))
    assert not config.output_dir.exists()


def test_non_finite_loss_stops_before_the_update(config, monkeypatch):

    calls = []
    cross_entropy = torch.nn.functional.cross_entropy

    def poisoned(logits, labels, **options):
        calls.append(None)
        loss = cross_entropy(logits, labels, **options)
        return loss * float("nan") if len(calls) == 15 else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", poisoned)
    stopped = change(config, checkpoint_steps=5, validation_fraction=0.0)
    with pytest.raises(NonFiniteLossError, match=r"step 15 \(epoch 2\).*\n.*conv1: active[\s\S]*step-00000010"):
        train(stopped)
    assert all(value.isfinite().all() for value in last(config.output_dir).values())


def test_tensorboard_gets_the_figures(config):
    train(change(config, trackers=("tensorboard",), log_steps=2, epochs=1))
    assert list(config.output_dir.rglob("events.out.tfevents*"))


def test_command_line_reports_mistakes_without_a_traceback(tmp_path, data):
    result = run(tmp_path, data, tmp_path / "run", "--resume", "--overwrite")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    result = run(tmp_path, data, tmp_path / "run", settings="\nlearning_rate: 3\n")
    assert result.returncode == 1
    assert "learning_rate: there is no such key" in result.stderr
    assert "Traceback" not in result.stderr
