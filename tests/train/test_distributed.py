"""Real processes (gloo), started by torchrun or `accelerate launch`, do what one does."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.runs import AUGMENTATION, ROOT, best, command, environment, last, launcher, make_images, metrics, run

# Five optimiser steps; 45 test and 37 validation images, which two processes do not divide evenly.
SETTINGS = f"\nepochs: 1\ndropout: 0.0\nema_decay: 0.0\nbatch_size: 24\n{AUGMENTATION}"


@pytest.fixture(scope="module")
def settings(teacher) -> str:
    return f"{SETTINGS}teacher: {teacher}\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_parquet, settings) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("distributed")
    data = make_images(folder / "images", write_parquet, train=163)
    for processes, name in ((1, "one"), (2, "two")):
        result = run(folder, data, folder / name, settings=settings, processes=processes)
        assert result.returncode == 0, result.stderr
    return folder / "one", folder / "two"


def assert_trained_alike(one: Path, other: Path, processes: int) -> None:
    """Batch size, number of steps and learning rate are of the run, not of a process; each image is scored once."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert summaries[0]["test_images"] == summaries[1]["test_images"] == 45
    assert summaries[1]["processes"] == processes
    assert summaries[0]["test_accuracy"] == summaries[1]["test_accuracy"]
    assert {layer["samples"] for layer in summaries[1]["counts"]["layers"]} == {45}
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        for key in ("step", "lr", "train_accuracy", "val_accuracy"):
            assert ours[key] == theirs[key], key
        assert ours["step"] == 5
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)
    for read in (best, last):
        for name, value in read(one).items():
            torch.testing.assert_close(value, read(other)[name], atol=1e-5, rtol=0)


def test_two_processes_train_as_one_does(runs):
    assert_trained_alike(*runs, processes=2)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "nodes", "processes"),
    [
        ("cpu", 1, 1),
        pytest.param("multi_gpu", 1, 2, marks=pytest.mark.slow),
        pytest.param("multi_node", 2, 4, marks=pytest.mark.slow),
    ],
)
def test_processes_of_accelerate_launch_train_as_one_does(runs, settings, tmp_path, name, nodes, processes):
    """With the files in recipes/accelerate, on the CPU (gloo), all else as the file says."""
    words = [sys.executable, "-m", "accelerate.commands.launch"]
    words += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")]
    words += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    words += ["--main_process_ip", "127.0.0.1"] if nodes > 1 else []
    recipe = command(
        tmp_path, runs[0].parent / "images", tmp_path / "run", "--mixed-precision", "no", settings=settings
    )
    ranks = [["--machine_rank", str(rank)] if nodes > 1 else [] for rank in range(nodes)]
    pipe, variables = subprocess.PIPE, environment(tmp_path)
    launched = [
        subprocess.Popen([*words, *rank, *recipe[1:]], env=variables, stdout=pipe, stderr=pipe, text=True)
        for rank in ranks
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in launched]
    finally:
        for process in launched:
            process.kill()
    for process, (_, errors) in zip(launched, outputs, strict=True):
        assert process.returncode == 0, errors
    assert_trained_alike(runs[0], tmp_path / "run", processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "difference"), [("gradient_accumulation: 2", 1e-5), ("gradient_compression: bf16", 0.02)], ids=str
)
def test_two_processes_accumulate_and_compress_gradients(runs, settings, key, difference):
    """Gradients that live in buckets are added up over micro-batches before they are exchanged."""
    one, output = runs[0], runs[0].parent / key[9:12]
    result = run(one.parent, one.parent / "images", output, settings=f"{settings}{key}\n", processes=2)
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
