"""A run that is stopped and goes on is the run that was never stopped, bit for bit, whatever it does."""

import random
import shutil
import signal

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.convert.sources import randomised, vgg
from tests.train.recorded import RecordedGraphs
from tests.train.runs import AUGMENTATION, TARGET, At, assert_same_run, best, change, last, metrics
from ttfs_triton import TTFSModel
from ttfs_triton.hub.card import render_card
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model.files import find_model
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.train import Callback, ConfigError, Interrupted, RunFolderError, learner, train

RISE = {"batch_norm": True, "encoder": "analog", "lookahead": 3, "ema_decay": 0.0, "schedule": "linear"}
RISE |= {"optimizer": "muon", "psp_persistence_rise": (0.2, 0.8), "surrogate_width": 0.5}
BFLOAT16 = {"gradient_accumulation": 2, "mixed_precision": "bf16", "momentum": 0.0, **AUGMENTATION}


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ({"checkpoint_steps": 3}, 13),
        ({"optimizer": "sgd", "lr": 0.2, "weight_decay": 0.01}, 11),
        (RISE, 16),
        (RISE, 17),
        (TARGET | {"ema_decay": 0.99}, 22),
        ({"teacher": True} | BFLOAT16, 9),
        ({"captured": True, "statistics_steps": 5, "teacher": True}, 14),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_stopped_run_goes_on_bit_for_bit(config, tmp_path, monkeypatch, teacher, values, step):
    values = values | ({"teacher": teacher} if "teacher" in values else {})
    if values.pop("captured", False):
        monkeypatch.setattr(learner, "choose_graphs", lambda *_: RecordedGraphs())
    whole, parts = (change(config, output_dir=tmp_path / name, **values) for name in ("whole", "parts"))
    train(whole)
    message = rf"stopped after step {step} .*checkpoint .*{step:08}\S+\nGo on with: the same command$"
    with pytest.raises(Interrupted, match=message):
        train(parts, callbacks=[At(step)], again="the same command")
    AcceleratorState._reset_state(reset_partial_state=True)
    random.seed(5)  # whatever states generators are in
    np.random.seed(5)
    torch.manual_seed(5)
    train(change(parts, resume=True))
    assert_same_run(parts.output_dir, whole.output_dir)
    assert any(name.startswith("dial.") for name in last(whole.output_dir)) == ("target_sparsity" in values)


def test_run_with_a_teacher_resumes_with_the_same_teacher_only(config, teacher, tmp_path):
    config, other = change(config, epochs=1, teacher=teacher), tmp_path / "other"
    with pytest.raises(Interrupted):
        train(config, callbacks=[At(3)])
    TTFSModel(NetworkConfig("6C3", image_size=(8, 8), classes=4)).save_pretrained(other)
    with pytest.raises(ConfigError, match=r"must be the one of .*step-00000003.*; these differ:\n  teacher's weights"):
        train(change(config, resume=True, teacher=other))
    assert train(change(config, resume=True, teacher=shutil.copytree(teacher, tmp_path / "moved")))["epochs"] == 1


def test_calibrated_run_goes_on_from_its_checkpoint(config, tmp_path, capsys):
    network = randomised(vgg(6 * 2 * 2, 4, plan=(4, "M", 6, "M"), channels=1))
    torch.save(network.state_dict(), tmp_path / "vgg.pth")
    values = {"model": "4C3-P2-6C3-P2", "encoder": "analog", "weight_standardisation": False, "epochs": 2}
    spiking = change(config, weights=tmp_path / "vgg.pth", **values)
    train(spiking)
    assert "Calibrated on 128 images" in capsys.readouterr().out
    parts = change(spiking, output_dir=tmp_path / "parts")
    with pytest.raises(Interrupted):
        train(parts, callbacks=[At(11)])
    (tmp_path / "vgg.pth").unlink()
    train(change(parts, resume=True))
    assert "resumed after step" in capsys.readouterr().out
    assert_same_run(spiking.output_dir, parts.output_dir)


@pytest.mark.parametrize("values", [{"batch_norm": True}, {"time_steps": 8, "weight_bits": 4}, TARGET])
def test_run_goes_on_without_the_weights_that_it_began_with(config, tmp_path, values):
    plain = change(config, epochs=1, encoder="analog", max_train_samples=64)  # other images: another mean
    train(plain)
    values = values | {"weights": plain.output_dir, "max_train_samples": None}
    whole, parts = (change(plain, output_dir=tmp_path / name, **values) for name in ("whole", "parts"))
    held, channels = [], lambda loop: loop.learner.target and loop.learner.target.silent_channels
    # These images have no empty background, so that no layer would be held.
    before = At(1, lambda loop: loop.learner.target and setattr(channels(loop), "layers", ["conv1"]))
    after = At(4, lambda loop: held.append(loop.learner.target and channels(loop).layers))
    train(whole, callbacks=[before, after])
    with pytest.raises(Interrupted):
        train(parts, callbacks=[before, At(3)])
    shutil.rmtree(plain.output_dir)
    train(change(parts, resume=True), callbacks=[after])
    assert held[0] == held[1]
    assert_same_run(parts.output_dir, whole.output_dir)


class AtOnce(Callback):
    """Asks the run to stop while it scores its start."""

    def on_start(self, loop) -> None:
        loop.stop.received = signal.SIGTERM


@pytest.mark.parametrize(("stop", "step"), [(AtOnce(), 0), (At(3), 3), (At(9), 9)])
def test_start_that_no_epoch_betters_is_kept_also_by_a_run_that_goes_on(config, tmp_path, capsys, stop, step):
    source = change(config, batch_norm=True, output_dir=tmp_path / "source")
    accuracy = train(source)["val_accuracy"]
    values = {"weights": source.output_dir, "optimizer": "sgd", "lr": 50.0, "ema_decay": 0.0, "epochs": 2}
    whole, parts = (change(source, output_dir=tmp_path / name, **values) for name in ("whole", "parts"))
    summary, kept = train(whole), best(whole.output_dir)
    assert (summary["best_epoch"], summary["val_accuracy"]) == (0, accuracy)
    assert all(line["val_accuracy"] < accuracy for line in metrics(whole.output_dir))
    assert all(torch.equal(value, kept[name]) for name, value in best(source.output_dir).items())
    said = capsys.readouterr().out
    assert f"start: val {accuracy:.2%}, sparsity 0." in said
    assert f"validation accuracy      {accuracy:.2%}  (the start: no epoch was better)" in said
    card = render_card(read_facts(find_model(whole.output_dir)), "org/name")
    assert "the start, which no epoch bettered, was chosen" in card
    with pytest.raises(Interrupted, match=f"stopped after step {step} "):
        train(parts, callbacks=[stop])
    shutil.rmtree(source.output_dir)
    if step:
        shutil.move(parts.output_dir / "best", tmp_path / "best")
        with pytest.raises(RunFolderError, match="must hold the best weights so far"):
            train(change(parts, resume=True))
        shutil.move(tmp_path / "best", parts.output_dir)
    assert train(change(parts, resume=True))["best_epoch"] == 0
    assert_same_run(parts.output_dir, whole.output_dir)


def test_start_is_not_kept_where_an_epoch_is_better_or_accuracy_does_not_decide(config, tmp_path, capsys):
    source = change(config, epochs=1, lr=1e-4, output_dir=tmp_path / "source")
    before = train(source)["val_accuracy"]
    started = change(config, weights=source.output_dir)
    summary, lines = train(started), metrics(config.output_dir)
    assert summary["val_accuracy"] == lines[summary["best_epoch"] - 1]["val_accuracy"] > before
    assert capsys.readouterr().out.count("start: val") == 1
    for name, values in {"rise": {"psp_persistence_rise": (0.2, 0.5)}, "target": TARGET}.items():
        assert train(change(started, output_dir=tmp_path / name, epochs=2, **values))["best_epoch"] > 0
    assert "start: val" not in capsys.readouterr().out
