"""Requests that this machine cannot fulfil are refused before training; processes agree to stop."""

import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch._inductor import cpp_builder, exc

from tests.train.runs import change
from ttfs_triton.nn.graph import network_graph
from ttfs_triton.nn.networks import resnet20
from ttfs_triton.train import ConfigError, TrainConfig, device, loop, run, train
from ttfs_triton.train.device import LEAST_NEURONS, StopRequest, choose_fusing, freed_memory_kept, make_accelerator

CPU = torch.device("cpu")


def accelerator(device="cpu", mixed_precision="bf16", processes=1):
    return SimpleNamespace(device=torch.device(device), mixed_precision=mixed_precision, num_processes=processes)


def test_long_runs_fuse_where_they_can_and_are_refused_if_they_must(monkeypatch):
    graph = network_graph(resnet20(), (3, 32, 32))
    neurons = 188_426  # 7 layers of 16×32×32, 6 of 32×16×16, 6 of 64×8×8, 10 outputs
    images = LEAST_NEURONS // neurons + 1
    assert choose_fusing(TrainConfig(), CPU, graph, images)
    assert not choose_fusing(TrainConfig(), CPU, graph, images - 1)
    assert not choose_fusing(TrainConfig(fuse="off"), CPU, graph, images)
    assert choose_fusing(TrainConfig(fuse="on"), CPU, graph, 1)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", Mock(side_effect=exc.InvalidCxxCompiler))
    for place in (torch.device("meta"), CPU):
        with pytest.raises(ConfigError, match=r"fuse: on needs a CPU and a C\+\+ compiler .*; use auto or off"):
            choose_fusing(TrainConfig(fuse="on"), place, graph, 1)
        assert not choose_fusing(TrainConfig(), place, graph, 10**12)


def test_a_run_fuses_and_keeps_freed_memory_while_it_trains(config, monkeypatch, capsys):
    switched = []

    @contextmanager
    def kept():
        switched.append("kept")
        yield
        switched.append("given back")

    monkeypatch.setattr(loop, "fuse_passes", switched.append)
    monkeypatch.setattr(loop, "freed_memory_kept", kept)
    train(change(config, fuse="on", epochs=1))
    assert switched == ["kept", True, False, "given back"]
    said = " ".join(capsys.readouterr().out.split())
    assert said.index("passes over neurons are fused") < said.index("epoch 1/1")


def test_precision_is_each_run_s_and_automatic_what_the_cpu_computes_in(config, monkeypatch):
    for precision, expected in (("bf16", "bf16"), (None, "no"), ("bf16", "bf16"), ("no", "no")):
        assert make_accelerator(change(config, mixed_precision=precision)).mixed_precision == expected
    for in_bfloat16, expected in ((26.0, "no"), (0.6, "bf16")):  # seconds of a product of matrices
        seconds = iter([[30.0, in_bfloat16], [0.5, 0.6]])
        monkeypatch.setattr(device, "repeat", lambda *_, seconds=seconds, **__: next(seconds))
        assert make_accelerator(change(config, mixed_precision="auto")).mixed_precision == expected
    AcceleratorState._reset_state(reset_partial_state=True)
    programs_own = Accelerator(cpu=True)
    for _ in range(2):
        make_accelerator(config)
    assert programs_own.is_main_process


def test_options_that_this_machine_cannot_run_are_refused(config, monkeypatch):
    with pytest.raises(ConfigError, match="trackers: nothing_such must be installed"):
        make_accelerator(change(config, trackers=("nothing_such",)))
    data = SimpleNamespace(test=range(9), validation_indices=range(3))
    with pytest.raises(ValueError, match=r"every process must have .* validation image; got 3\."):
        loop.TrainingLoop(change(config, target_sparsity=0.2), accelerator(processes=4), data, *[None] * 2)
    monkeypatch.setattr(device, "why_no_triton", lambda *_: "there is no GPU")
    with pytest.raises(ConfigError, match="backend: triton must be able to run here; there is no GPU"):
        make_accelerator(change(config, backend="triton"))
    for precision in ("fp16", "fp8"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)  # as `accelerate launch` says it
        with pytest.raises(ConfigError, match=f"mixed_precision: {precision} cannot run here"):
            make_accelerator(config)
    for name in ("FSDP", "DeepSpeed", "Megatron-LM"):
        with monkeypatch.context() as patch:
            patch.setenv(f"ACCELERATE_USE_{name.replace('-', '_').upper()}", "true")
            with pytest.raises(ConfigError, match=f"must hold the whole network; got {name}, .* launch --multi_gpu"):
                train(config)
    assert not config.output_dir.exists()


def test_processes_stop_together(monkeypatch):
    """Each step on CPUs; on GPUs, which would wait for each other, every few steps."""
    others = []
    monkeypatch.setattr(device, "sum_over_processes", lambda *_: torch.tensor([float(len(others))]))
    for place, asked in (("cpu", [1, 2, 3, 4, 5, 6]), ("meta", [3, 6])):
        request = StopRequest(accelerator(place, processes=2))
        assert not any(request.due(step, 3) for step in range(1, 7))
        others.append("received a signal")
        assert [step for step in range(1, 7) if request.due(step, 3)] == asked
        others.clear()


@pytest.mark.parametrize("launcher", [True, False])
def test_second_signal_ends_a_run_unless_a_launcher_repeats_it(monkeypatch, launcher):
    """Also when all is saved."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any") if launcher else monkeypatch.delenv("TORCHELASTIC_RUN_ID", False)
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    try:
        with StopRequest(accelerator()) as request:
            signal.raise_signal(signal.SIGTERM)
            assert (request.due(1, 1), ended) == (True, [])
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert len(ended) == (0 if launcher else 2)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_in_a_thread_leaves_signals_alone():
    """As in Streamlit, or in Optuna's threads, where Python lets no handler be set."""
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: StopRequest(accelerator()).__enter__()).result()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries keep what they like")
def test_later_steps_get_the_memory_of_the_first():
    """256 MiB are 65,536 pages, or 128 huge ones; two threads need ten steps to settle. Afterwards they go back."""

    def pages_of_a_step():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        _ = torch.ones(1 << 24), torch.ones(3 << 24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with freed_memory_kept():
        pages = [pages_of_a_step() for _ in range(20)]
    assert pages[-1] < 20 < 100 < min(pages[0], pages_of_a_step())


def test_warnings_before_a_run(monkeypatch):
    monkeypatch.setattr("sys.argv", ["ttfs train vgg11-cifar10"])
    monkeypatch.setattr("shutil.which", lambda name: name)  # `ttfs` is there
    monkeypatch.setattr(run, "emulates_bfloat16", lambda: True)
    paper, ann = TrainConfig(preset="paper", model="vgg11"), TrainConfig(preset="paper", model="vgg11", weights="ann")
    emulated, start = run._warnings(paper, accelerator())
    assert "emulates bf16" in emulated
    command = "ttfs train vgg11-cifar10 --preset paper"
    assert f"{command}_ann --output-dir ANN, then {command} --weights ANN" in start
    assert not list(run._warnings(ann, accelerator(mixed_precision="no")))
