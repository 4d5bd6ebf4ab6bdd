"""A run that a request, a kill or a full disk stops goes on as the run that was never stopped, bit for bit."""

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.convert.sources import randomised, vgg
from tests.train.recorded import RecordedGraphs
from tests.train.runs import AUGMENTATION, SETTINGS, TARGET, At, assert_same_run, best, change, environment, last
from ttfs_triton import TTFSModel
from ttfs_triton.hub.card import render_card
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model.files import find_model
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.train import ConfigError, Interrupted, RunFolderError, TrainConfig, learner, train

RISE = {"batch_norm": True, "encoder": "analog", "lookahead": 3, "ema_decay": 0.0, "schedule": "linear"}
RISE |= {"optimizer": "muon", "psp_persistence_rise": (0.2, 0.8), "surrogate_width": 0.5}
CAPTURED = {"gradient_accumulation": 2, "mixed_precision": "bf16", "momentum": 0.0, "teacher": True, **AUGMENTATION}


@pytest.mark.parametrize(
    ("values", "step"),
    [
        (RISE, 16),  # the end of an epoch
        (TARGET | {"ema_decay": 0.99, "checkpoint_steps": 3, "validation_fraction": 0.0}, 22),
        (CAPTURED, 14),
    ],
    ids=["rise", "target", "captured"],
)
def test_stopped_run_goes_on_bit_for_bit(config, tmp_path, monkeypatch, teacher, values, step):
    if "teacher" in values:
        values = values | {"teacher": teacher}
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


def test_start_that_no_epoch_betters_is_kept_also_by_a_run_that_goes_on(config, tmp_path, capsys):
    source = change(config, batch_norm=True, output_dir=tmp_path / "source")
    accuracy = train(source)["val_accuracy"]
    values = {"weights": source.output_dir, "optimizer": "sgd", "lr": 50.0, "ema_decay": 0.0, "epochs": 2}
    whole, parts = (change(source, output_dir=tmp_path / name, **values) for name in ("whole", "parts"))
    summary, kept = train(whole), best(whole.output_dir)
    assert (summary["best_epoch"], summary["val_accuracy"]) == (0, accuracy)
    assert all(torch.equal(value, kept[name]) for name, value in best(source.output_dir).items())
    said = capsys.readouterr().out
    assert f"start: val {accuracy:.2%}, sparsity 0." in said
    assert f"validation accuracy      {accuracy:.2%}  (the start: no epoch was better)" in said
    card = render_card(read_facts(find_model(whole.output_dir)), "org/name")
    assert "the start, which no epoch bettered, was chosen" in card
    with pytest.raises(Interrupted, match="stopped after step 3 "):
        train(parts, callbacks=[At(3)])
    shutil.move(parts.output_dir / "best", tmp_path / "best")
    with pytest.raises(RunFolderError, match="must hold the best weights so far"):
        train(change(parts, resume=True))
    shutil.move(tmp_path / "best", parts.output_dir)
    train(change(parts, resume=True))
    assert_same_run(parts.output_dir, whole.output_dir)


def test_start_is_not_kept_where_an_epoch_is_better_or_accuracy_does_not_decide(config, tmp_path, capsys):
    source = change(config, epochs=1, lr=1e-4, output_dir=tmp_path / "source")
    before = train(source)["val_accuracy"]
    started = change(config, weights=source.output_dir)
    assert train(started)["val_accuracy"] > before
    assert capsys.readouterr().out.count("start: val") == 1
    others = {"rise": {"psp_persistence_rise": (0.2, 0.5)}, "target": TARGET, "faults": {"spike_jitter": 0.1}}
    for name, values in (others | {"seed": {"seed": 5}}).items():
        assert train(change(started, output_dir=tmp_path / name, epochs=2, **values))["best_epoch"] > 0
    said = capsys.readouterr().out
    assert "start: val" not in said
    assert "start: not scored, since its run held out other images (seed 0)" in said


def test_run_with_a_teacher_resumes_with_the_same_teacher_only(config, teacher, tmp_path):
    config, other = change(config, epochs=1, teacher=teacher), tmp_path / "other"
    with pytest.raises(Interrupted):
        train(config, callbacks=[At(3)])
    TTFSModel(NetworkConfig("6C3", image_size=(8, 8), classes=4)).save_pretrained(other)
    with pytest.raises(ConfigError, match=r"must be the one of .*step-00000003.*; these differ:\n  teacher: "):
        train(change(config, resume=True, teacher=other))
    assert train(change(config, resume=True, teacher=shutil.copytree(teacher, tmp_path / "moved")))["epochs"] == 1


ANN = {"model": "4C3-P2-6C3-P2", "weight_standardisation": False, "epochs": 2}


@pytest.mark.parametrize("values", [{"time_steps": 8, "weight_bits": 4}, TARGET, ANN])
def test_run_goes_on_without_the_weights_that_it_began_with(config, tmp_path, capsys, values):
    plain = change(config, epochs=1, encoder="analog", max_train_samples=64)  # other images: another mean
    weights = plain.output_dir if values is not ANN else tmp_path / "vgg.pth"
    if values is ANN:
        network = randomised(vgg(6 * 2 * 2, 4, plan=(4, "M", 6, "M"), channels=1))
        torch.save(network.state_dict(), weights)
    else:
        train(plain)
    values = values | {"weights": weights, "max_train_samples": None}
    whole, parts = (change(plain, output_dir=tmp_path / name, **values) for name in ("whole", "parts"))
    held, channels = [], lambda loop: loop.learner.target and loop.learner.target.silent_channels
    # These images have no empty background, so that no layer would be held.
    before = At(1, lambda loop: loop.learner.target and setattr(channels(loop), "layers", ["conv1"]))
    after = At(4, lambda loop: held.append(loop.learner.target and channels(loop).layers))
    train(whole, callbacks=[before, after])
    assert capsys.readouterr().out.count("Calibrated on 128 images") == (values["weights"].suffix == ".pth")
    with pytest.raises(Interrupted):
        train(parts, callbacks=[before, At(3)])
    weights.rename(tmp_path / "moved")
    train(change(parts, resume=True), callbacks=[after])
    assert held[0] == held[1]
    assert_same_run(parts.output_dir, whole.output_dir)


# A checkpoint after every other step, so that a kill often falls into the writing of one.
KILLED: dict[str, Any] = {"checkpoint_steps": 2, **AUGMENTATION}


def finish(folder: Path, data: Path, **values: Any) -> None:
    """Start a run, or go on with it, in this process, by one thread: results are compared bit by bit."""
    torch.set_num_threads(1)
    values = SETTINGS | {"data_dir": data, "output_dir": folder} | values
    train(TrainConfig(**values, resume=(folder / "config.yaml").exists()))


def wait_for(ready: Callable[[], object], runs: Callable[[], bool]) -> None:
    """Wait until something is ready, while a process runs."""
    deadline = time.monotonic() + 120
    while not ready() and runs() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert ready()


def newest(folder: Path) -> int:
    """Step of a run's newest checkpoint; -1 if there is none."""
    return max((int(path.stem.split("-")[1]) for path in (folder / "checkpoints").glob("step-*")), default=-1)


def test_interrupt_of_all_processes_leaves_workers_to_the_main_one(tmp_path, data):
    """A terminal sends Ctrl-C to all of them; a worker that ended would end the run without a checkpoint."""
    words = [sys.executable, "-m", "ttfs_triton.ttfs", "train", "quickstart", "--cpu", "--streaming"]
    words += ["--model", "4C3-P2-8", "--epochs", "60", "--num-workers", "2"]
    process = subprocess.Popen(
        [*words, "--data-dir", str(data), "--output-dir", str(tmp_path / "run")],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # as a terminal does
    )
    wait_for(lambda: newest(tmp_path / "run") >= 1, lambda: process.poll() is None)
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert "Go on with: " in shown
    assert shown.strip().endswith(f"train quickstart --output-dir {tmp_path / 'run'} --resume")


def test_run_killed_at_random_moments_equals_the_uninterrupted_one(tmp_path, data, capsys):
    chance, folder = random.Random(7), tmp_path / "run"
    server = get_context("forkserver")  # imports PyTorch once
    server.set_forkserver_preload(["torch._dynamo", "ttfs_triton.train.run"])
    for kill in range(5):
        process = server.Process(target=finish, args=(folder, data), kwargs=KILLED)
        process.start()
        step = 4 * kill + chance.randrange(4)
        wait_for(lambda step=step: newest(folder) >= step, process.is_alive)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    threads = torch.get_num_threads()
    finish(folder, data, **KILLED)
    finish(tmp_path / "whole", data, **KILLED)
    assert_same_run(folder, tmp_path / "whole")
    assert not list((folder / "checkpoints").glob(".*"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    finish(folder, data, **KILLED)
    torch.set_num_threads(threads)
    assert "has ended already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(("writes", "advice"), [(2, "Start it again."), (9, "--resume")])
def test_full_disk_is_reported_and_the_run_resumes_when_there_is_room(config, tmp_path, monkeypatch, writes, advice):
    """Before the configuration is written, or within an epoch's files."""
    sync, calls = os.fsync, itertools.count(1)

    def full(descriptor):
        if next(calls) > writes:
            raise OSError(errno.ENOSPC, "No space left on device", "file")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunFolderError, match=r"No space left on device \(file\)") as caught:
            train(config)
    assert str(caught.value).endswith(advice)
    assert not list(config.output_dir.rglob(".*partial*"))
    train(change(config, resume=(config.output_dir / "config.yaml").exists()))
    train(change(config, output_dir=tmp_path / "whole"))
    assert_same_run(config.output_dir, tmp_path / "whole")
