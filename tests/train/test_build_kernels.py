"""Tuning before training: what the network needs is measured, everything else stays as it was."""

import json
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

import ttfs_kernels
from tests.train.runs import environment
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.train.build import choose_kernels, tune_kernels

pytest.importorskip("triton")


@pytest.fixture
def network() -> TTFSNetwork:
    return TTFSNetwork(NetworkConfig("2C3-P2-4", image_size=(6, 6), classes=3, dropout=0.5), backend="triton")


def test_measures_each_layer_and_leaves_the_run_alone(network, monkeypatch, tmp_path):
    from ttfs_kernels.triton_backend import choice, measure

    monkeypatch.setenv("TTFS_KERNELS_CACHE", str(tmp_path))
    choice.forget()
    measured = []

    def measure_entry(which, problem, device, precision, **options):
        measured.append((which, problem.batch if problem.height > 1 else problem.rows))
        options["report"](f"{which} measured")

    monkeypatch.setattr(measure, "measure_entry", measure_entry)
    before = [parameter.clone() for parameter in network.parameters()]
    images, lines = torch.rand(5, 1, 6, 6), []
    state = torch.get_rng_state()
    choose_kernels(network.train(), Accelerator(cpu=True), images, lines.append)
    # The first layer is measured with its pool and without; its input needs no gradient.
    assert sorted(measured) == [*[("forward", 5)] * 3, ("grad_w", 5), ("grad_w", 5), ("grad_x", 5)]
    assert len(lines) == len(measured)
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True))


def test_a_wrong_result_is_reported_and_the_run_goes_on(network, monkeypatch, tmp_path):
    from ttfs_kernels.triton_backend import choice, library, measure

    monkeypatch.setenv("TTFS_KERNELS_CACHE", str(tmp_path))
    choice.forget()
    monkeypatch.setattr(measure, "gpu_ms", lambda run: 1.0)
    real = library.grad_w
    monkeypatch.setattr(library, "grad_w", lambda *arguments: 2 * real(*arguments))
    lines = []
    choose_kernels(network.train(), Accelerator(cpu=True), torch.rand(5, 1, 6, 6), lines.append)
    assert sum("the library's grad_w of" in line for line in lines) == 2
    assert sum(line.endswith("library wrong") for line in lines) == 2
    network(torch.rand(5, 1, 6, 6)).sum().backward()
    choice.forget()


def test_does_nothing_on_a_cpu(network, monkeypatch):
    monkeypatch.setattr(ttfs_kernels, "tune", lambda **_: pytest.fail("tuned"))
    tune_kernels(network, Accelerator(cpu=True), 4, print)


SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.train.build import choose_kernels
from ttfs_kernels.triton_backend import choice, measure

accelerator = Accelerator(cpu=True)
rank, times = accelerator.process_index, iter([1.0, 2.0, 2.0, 1.0] * 3)  # ours loses, wins, loses, ...
measure.gpu_ms = lambda run: next(times) if rank == 0 else sys.exit("only the main process may measure")
network = TTFSNetwork(NetworkConfig("2C3-P2-4", image_size=(6, 6), classes=3), backend="triton")
choose_kernels(network, accelerator, torch.rand(5, 1, 6, 6), print)
network(torch.rand(5, 1, 6, 6)).sum().backward()
chosen = [[*map(str, key[:2]), str(choice.choose(*key[:4], "auto"))] for key in list(choice.choices())]
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(sorted(chosen), file)
"""


@pytest.mark.slow
def test_two_processes_choose_what_the_main_one_measured(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = "-m torch.distributed.run --nproc_per_node=2 --rdzv-backend=c10d --rdzv-endpoint=localhost:0".split()
    variables = environment(tmp_path) | {"TTFS_KERNELS_CACHE": str(tmp_path / "cache"), "TRITON_INTERPRET": "1"}
    command = [sys.executable, *launcher, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"{rank}.json").read_text() for rank in (0, 1))
    assert first == second
    providers = [chosen for _, _, chosen in json.loads(first)]
    assert all("measured" in chosen for chosen in providers)
    assert {"config=None" in chosen for chosen in providers} == {True, False}
