"""Two real processes (gloo) do what one does."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.train.runs import AUGMENTATION, best, environment, last, launcher, make_images, metrics, run

# Five optimiser steps; 45 test and 37 validation images, which two processes do not divide evenly.
SETTINGS = f"\nepochs: 1\ndropout: 0.0\nema_decay: 0.0\nbatch_size: 24\n{AUGMENTATION}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_parquet) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("distributed")
    data = make_images(folder / "images", write_parquet, train=163)
    for processes, name in ((1, "one"), (2, "two")):
        result = run(folder, data, folder / name, settings=SETTINGS, processes=processes)
        assert result.returncode == 0, result.stderr
    return folder / "one", folder / "two"


def test_two_processes_reach_the_weights_of_one(runs):
    one, two = runs
    # Batch size, number of steps and learning rate are of the run, not of a process.
    assert [(line["step"], line["lr"]) for line in metrics(one)] == [
        (line["step"], line["lr"]) for line in metrics(two)
    ]
    assert metrics(one)[0]["step"] == 5
    for read in (best, last):
        ours, theirs = read(one), read(two)
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=0)


def test_two_processes_score_every_image_once(runs):
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in runs)
    assert one["test_images"] == two["test_images"] == 45
    assert two["processes"] == 2
    assert one["test_accuracy"] == two["test_accuracy"]
    assert [layer["samples"] for layer in two["counts"]["layers"]] == [45] * len(two["counts"]["layers"])
    assert metrics(runs[0])[0]["train_accuracy"] == metrics(runs[1])[0]["train_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "difference"), [("gradient_accumulation: 2", 1e-5), ("gradient_compression: bf16", 0.02)], ids=str
)
def test_two_processes_accumulate_and_compress_gradients(runs, key, difference):
    """Gradients that live in buckets are added up over micro-batches before they are exchanged."""
    one, output = runs[0], runs[0].parent / key[9:12]
    result = run(one.parent, one.parent / "images", output, settings=f"{SETTINGS}{key}\n", processes=2)
    assert result.returncode == 0, result.stderr
    ours, theirs = (torch.cat([value.flatten() for value in best(path).values()]) for path in (one, output))
    assert (ours - theirs).norm() < difference * ours.norm()
    assert ("compression" in key) == ((ours - theirs).norm() > 1e-5 * ours.norm())


GRADIENTS = """
import sys
from contextlib import nullcontext
import torch
import torch.distributed as dist
from torch import nn
from ttfs_triton.train.device import compress_gradients

dist.init_process_group("gloo")
rank, accumulation = dist.get_rank(), int(sys.argv[1])
torch.manual_seed(0)
alone = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5))
model = nn.parallel.DistributedDataParallel(alone, gradient_as_bucket_view=True, static_graph=accumulation == 1)
compress_gradients(model, print)

def loss(network, x):
    return network(x).square().mean()

for step in range(3):
    x = torch.randn(2, accumulation, 4, 9, generator=torch.Generator().manual_seed(step))
    theirs = []
    for process in range(2):
        of_micro_batches = [torch.autograd.grad(loss(alone, part), list(alone.parameters())) for part in x[process]]
        theirs.append([sum(parts[1:], parts[0]) for parts in zip(*of_micro_batches)])
    model.zero_grad()
    for number in range(accumulation):
        with nullcontext() if number == accumulation - 1 else model.no_sync():
            loss(model, x[rank, number]).backward()
    for parameter, first, second in zip(alone.parameters(), *theirs, strict=True):
        expected = (first.bfloat16() / 2 + second.bfloat16() / 2).float()
        assert torch.equal(parameter.grad, expected), (rank, step, parameter.grad, expected)
        with torch.no_grad():
            parameter.sub_(0.1 * expected)
dist.destroy_process_group()  # threads that are left at exit end the process by a signal, now and then
"""


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2], ids=["static graph", "accumulation"])
def test_exchanged_gradients_are_means_of_rounded_ones(tmp_path, accumulation):
    """In buckets as views, bit for bit."""
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    words = [*launcher(2), str(tmp_path / "gradients.py"), str(accumulation)]
    result = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_two_processes_share_the_statistics_of_batch_norm(tmp_path, data):
    settings = f"{SETTINGS}batch_norm: true\nencoder: analog\nsync_batch_norm: true\npsp_persistence: 0.5\n"
    settings += "surrogate_width: 0.5\noptimizer: sgd\nlr: 0.2\n"
    for processes, name in ((1, "one"), (2, "two")):
        result = run(tmp_path, data, tmp_path / name, settings=settings, processes=processes)
        assert result.returncode == 0, result.stderr
    ours, theirs = best(tmp_path / "one"), best(tmp_path / "two")
    assert any(name.endswith("running_var") for name in ours)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=0)
