"""Training on photographs of any sizes, read by worker processes, also where images are damaged or vanish."""

import json
import os
import signal
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from tests.data.test_decode import jpeg, photograph
from tests.train.runs import SETTINGS, At, assert_same_run, change
from ttfs_triton.data.decode import DataLostError
from ttfs_triton.data.images import load_images
from ttfs_triton.evaluate.load import load_network, load_test_images
from ttfs_triton.model import TTFSModel
from ttfs_triton.train import DeviceLostError, TrainConfig, run_data, train
from ttfs_triton.train.data import EpochBatches, train_loader

CROPPED = {"image_size": 16, "random_resized_crop": True, "flip": True, "epochs": 2, "batch_size": 12, "num_workers": 1}
CROPPED |= {"dropout": 0.0, "ema_decay": 0.0, "encoder": "analog"}

# Python 3.12 warns of every fork of a process with threads; the loader's workers are forked.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")


def make_photographs(folder: Path) -> Path:
    """Class folders: bright and dark photographs of five sizes, one of them damaged."""
    for split, count in (("train", 50), ("test", 11)):
        for i in range(count):
            path = folder / split / ("bright", "dark")[i % 2] / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = [value // 2 + 127 * (1 - i % 2) for value in range(256)] * 3
            path.write_bytes(jpeg(photograph(i).point(table)))
    damaged = folder / "train" / "dark" / "21.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("photographs"))


def test_workers_end_with_what_fails(folder, monkeypatch):
    """At once, though a traceback refers to their loader until Python ends."""
    data = load_images(None, folder, image_size=16, cropped=True)
    batches = EpochBatches(run_data(data, data, TrainConfig(batch_size=12)), 1, TrainConfig(batch_size=12))
    loader = train_loader(batches, num_workers=2)
    next(loader)
    assert len(active_children()) == 2
    loader.close()
    assert active_children() == []
    monkeypatch.setattr(EpochBatches, "gather", lambda batches, index: batches.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing") as failed:
        next(train_loader(batches, num_workers=2))
    assert active_children() == []
    assert failed.traceback


def configuration(folder: Path, output: Path, **values) -> TrainConfig:
    return TrainConfig(**SETTINGS | CROPPED | values, data_dir=folder, output_dir=output)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    train(configuration(folder, output))
    return output


def test_weights_classify_photographs_as_they_were_scored(trained, folder):
    network = TTFSModel.from_pretrained(str(trained / "best"))
    assert network.description.preprocessing.fit == "crop"
    for path in (trained, trained / "best"):
        scored = load_test_images(load_network(path), data_dir=folder)
        expected = load_images(None, folder, split="test", image_size=16, cropped=True)
        assert torch.equal(scored.images, expected.images)
    right = [network.classify(file).class_name == file.parent.name for file in (folder / "test").glob("*/*.jpg")]
    summary = json.loads((trained / "summary.json").read_text())
    assert sum(right) / 11 == pytest.approx(summary["test_accuracy"])


def test_killed_worker_is_told(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(EpochBatches, "gather", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DeviceLostError, match=r"worker processes must live .*; got DataLoader worker .*\. Last check"):
        train(configuration(folder, tmp_path / "run"))


def test_data_that_vanish_lose_nothing(tmp_path, trained):
    photographs = make_photographs(tmp_path / "photographs")
    config = configuration(photographs, tmp_path / "run", checkpoint_steps=1)
    message = r"all but 10 images must be readable to the end; got .*jpg.*Last checkpoint: .*step-.*run --resume$"
    # After the first of six steps; a worker may have read the next ones already.
    vanish = At(1, lambda _: (photographs / "train").rename(photographs / "away"))
    with pytest.raises(DataLostError, match=message):
        train(config, callbacks=[vanish])
    (photographs / "away").rename(photographs / "train")
    train(change(config, resume=True))
    assert_same_run(config.output_dir, trained)
