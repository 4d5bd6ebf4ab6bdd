"""Training on photographs of any sizes: the same batches however they are shared out, and after what goes wrong."""

import json
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
import yaml

from tests.data.test_checked import jpeg, photograph
from tests.scoring.common import join
from tests.train.runs import ROOT, assert_same_run, metrics, run
from ttfs_triton.augment import Augmentation
from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.evaluation import load_network, load_test_images
from ttfs_triton.model import TTFSModel
from ttfs_triton.train import TrainConfig
from ttfs_triton.train.batches import EpochBatches, train_loader
from ttfs_triton.train.build import RunData, channel_statistics
from ttfs_triton.train.config import read_yaml

SETTINGS = """
image_size: 16
random_resized_crop: true
flip: true
epochs: 2
batch_size: 12
num_workers: 1
dropout: 0.0
ema_decay: 0.0
validation_fraction: 0.2
encoder: analog
"""

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


@pytest.fixture(scope="module")
def data(folder) -> ImageData:
    return load_images(None, folder, image_size=16, cropped=True)


def epoch(data: ImageData, number: int = 1, **options) -> EpochBatches:
    augmentation = Augmentation(flip=True, cutout=5)
    chosen, indices = data.in_epoch(3, number), torch.arange(len(data))
    return EpochBatches(chosen, indices, batch_size=12, seed=3, epoch=number, augmentation=augmentation, **options)


def test_batches_of_all_processes_make_the_batches_of_one_and_differ_by_epoch(data):
    one, shares = epoch(data), [epoch(data, rank=rank, world_size=2, accumulation=3) for rank in range(2)]
    for step in range(one.steps):
        images, labels = join([share[step * 3 + micro] for micro in range(3) for share in shares])
        assert torch.equal(images, one[step][0])
        assert torch.equal(labels, one[step][1])
    assert not torch.equal(data.in_epoch(3, 0).images, data.in_epoch(3, 1).images)


@pytest.mark.parametrize(("num_workers", "start_step"), [(0, 3), (2, 0), (2, 3)])
def test_batches_go_on_in_the_middle_of_an_epoch(data, num_workers, start_step):
    expected = join([epoch(data)[step] for step in range(start_step, 4)])
    found = join(list(train_loader(epoch(data), start_step=start_step, num_workers=num_workers)))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_workers_end_with_what_fails(data, monkeypatch):
    """At once, though a traceback refers to their loader until Python ends."""
    loader = train_loader(epoch(data), num_workers=2)
    next(loader)
    assert len(active_children()) == 2
    loader.close()
    assert active_children() == []
    monkeypatch.setattr(EpochBatches, "gather", lambda batches, index: batches.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing") as failed:
        next(train_loader(epoch(data), num_workers=2))
    assert active_children() == []
    assert failed.traceback


def test_channel_statistics_do_not_depend_on_how_many_fit_at_a_time(data, monkeypatch):
    run_data = RunData(data, data, torch.arange(len(data)), torch.arange(0))
    pixels = data.images.double() / 255
    for values in (2**25, 5 * 3 * 16 * 16, 1):
        monkeypatch.setattr("ttfs_triton.train.build.STATISTICS_VALUES", values)
        mean, std = channel_statistics(run_data)
        torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean((0, 2, 3)), atol=6e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(std).double(), pixels.std((0, 2, 3)), atol=6e-5, rtol=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder) -> Path:
    output = tmp_path_factory.mktemp("runs")
    result = run(output, folder, output / "1", settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    return output / "1"


def test_weights_classify_photographs_as_they_were_scored(trained, folder):
    network = TTFSModel.from_pretrained(str(trained / "best"))
    assert network.description.preprocessing.fit == "crop"
    for path in (trained, trained / "best"):
        scored = load_test_images(load_network(path), data_dir=folder)
        expected = load_images(None, folder, split="test", image_size=16, cropped=True)
        assert torch.equal(scored.images, expected.images)
    files = sorted((folder / "test").glob("*/*.jpg"))
    found = [network.classify(file).class_name == file.parent.name for file in files]
    summary = json.loads((trained / "summary.json").read_text())
    assert sum(found) / len(files) == pytest.approx(summary["test_accuracy"])


def test_data_that_vanish_lose_nothing(tmp_path, trained, monkeypatch):
    photographs, output = make_photographs(tmp_path / "photographs"), tmp_path / "run"
    settings = SETTINGS + "checkpoint_steps: 1\n"
    # Taken away after the first of six steps; a worker may have read the next ones already.
    script = f"""
import sys
from pathlib import Path
from ttfs_triton.train import main
from ttfs_triton.train.loop import TrainingLoop
step = TrainingLoop._train_step
def vanish(self, micro_batches):
    step(self, micro_batches)
    if self.position.step == 1:
        Path({str(photographs)!r}, "train").rename(Path({str(photographs)!r}, "away"))
TrainingLoop._train_step = vanish
main(Path(sys.argv.pop(1)), "A small run.")
"""
    with monkeypatch.context() as patch:
        patch.setattr("tests.train.runs.SCRIPT", script)
        lost = run(tmp_path, photographs, output, settings=settings)
    assert lost.returncode == 1, lost.stdout + lost.stderr
    message = lost.stderr.splitlines()[-1]
    assert message.startswith("error: images_at: every image must stay as it was when the run began; got row")
    assert "Put it back. Last checkpoint: " in message
    assert f"--output-dir {output} --resume" in message
    (photographs / "away").rename(photographs / "train")
    resumed = run(tmp_path, photographs, output, "--resume", settings=settings)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(output, trained)


def test_recipe_trains_on_large_images_of_mixed_sizes(tmp_path):
    for split, count in (("train", 24), ("val", 6)):
        for i in range(count):
            path = tmp_path / split / "abc"[i % 3] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = ((500, 375), (375, 500), (1200, 900))[i % 2 + (i == 5)]
            photograph(i).resize(size).save(path)
    recipe = read_yaml(ROOT / "ttfs_triton" / "recipes" / "vgg16-imagenet.yaml")
    small = {"width": 1 / 64, "epochs": 1, "batch_size": 8, "num_workers": 1, "max_train_samples": 21}
    small |= {"max_test_samples": 5, "validation_fraction": 0.2, "dataset": None, "evaluation_batch_size": 3}
    assert TrainConfig(**(recipe | small)).image_size == 224
    result = run(tmp_path, tmp_path, tmp_path / "run", settings="\n" + yaml.safe_dump(recipe | small))
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_images"] == 5
    assert len(metrics(tmp_path / "run")) == 1
