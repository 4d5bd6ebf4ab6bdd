"""Requests that this machine cannot fulfil are refused before training; processes agree to stop."""

import signal
import subprocess
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
from ttfs_triton.train import ConfigError, TrainConfig, device, loop, train
from ttfs_triton.train.device import LEAST_NEURONS, StopRequest, choose_fusing, make_accelerator

CPU = torch.device("cpu")


def accelerator(device="cpu", mixed_precision="bf16", processes=1):
    return SimpleNamespace(device=torch.device(device), mixed_precision=mixed_precision, num_processes=processes)


@pytest.fixture
def emulated(monkeypatch):
    """A CPU whose products of matrices take 50 times as long in bfloat16."""
    seconds = iter([[26.0, 25.0], [0.5, 0.6]])  # bfloat16, then float32
    monkeypatch.setattr(device, "repeat", lambda *_, **__: next(seconds))


def test_long_runs_fuse_where_they_can_and_are_refused_if_they_must(monkeypatch):
    graph = network_graph(resnet20(), (3, 32, 32))
    neurons = 188_426  # 7 layers of 16×32×32, 6 of 32×16×16, 6 of 64×8×8, 10 outputs
    images = LEAST_NEURONS // neurons + 1
    assert choose_fusing(TrainConfig(), CPU, graph, images)
    assert not choose_fusing(TrainConfig(), CPU, graph, images - 1)
    assert not choose_fusing(TrainConfig(fuse="off"), CPU, graph, images)
    assert choose_fusing(TrainConfig(fuse="on"), CPU, graph, 1)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", Mock(side_effect=exc.InvalidCxxCompiler))
    for place, reason in [(torch.device("meta"), "the device is not a CPU"), (CPU, r"there is no C\+\+ compiler")]:
        with pytest.raises(ConfigError, match=f"fuse: on needs .* but {reason}.*; use auto or off"):
            choose_fusing(TrainConfig(fuse="on"), place, graph, 1)
        assert not choose_fusing(TrainConfig(), place, graph, 10**12)


def test_a_run_says_what_it_runs_on_fuses_and_keeps_freed_memory_while_it_trains(config, emulated, monkeypatch, capsys):
    switched = []

    @contextmanager
    def kept():
        switched.append("kept")
        yield
        switched.append("given back")

    monkeypatch.setattr(loop, "fuse_passes", switched.append)
    monkeypatch.setattr(loop, "freed_memory_kept", kept)
    torch.distributed.init_process_group("gloo", init_method=f"file://{config.output_dir}.store", rank=0, world_size=1)
    train(change(config, fuse="on", epochs=1, mixed_precision="bf16"))
    torch.distributed.destroy_process_group()  # the run has left it: processes may train again
    assert switched == ["kept", True, False, "given back"]
    said = " ".join(capsys.readouterr().out.split())
    assert "emulates bf16: a product of matrices takes 50 times as long" in said
    assert said.index("emulates bf16") < said.index("passes over neurons are fused") < said.index("epoch 1/1")


@pytest.mark.parametrize(("ratio", "expected"), [(8.0, "no"), (None, "bf16")])
def test_automatic_precision_is_what_the_cpu_computes_in(config, monkeypatch, ratio, expected):
    monkeypatch.setattr(device, "emulates_bfloat16", lambda: ratio)
    assert make_accelerator(change(config, mixed_precision="auto")).mixed_precision == expected


def test_a_later_run_in_a_process_has_its_own_precision(config):
    for precision, expected in (("bf16", "bf16"), (None, "no"), ("bf16", "bf16"), ("no", "no")):
        assert make_accelerator(change(config, mixed_precision=precision)).mixed_precision == expected
    AcceleratorState._reset_state(reset_partial_state=True)
    programs_own = Accelerator(cpu=True)
    for _ in range(2):
        make_accelerator(config)
    assert programs_own.is_main_process


def test_options_that_this_machine_cannot_run_are_refused(config, monkeypatch):
    with pytest.raises(ConfigError, match="trackers: nothing_such must be installed"):
        make_accelerator(change(config, trackers=("nothing_such",)))
    data = SimpleNamespace(test=range(9), validation_indices=range(3))
    with pytest.raises(ValueError, match=r"each process must have .* validation image; got 3\."):
        loop.TrainingLoop(change(config, target_sparsity=0.2), accelerator(processes=4), data, *[None] * 2)
    monkeypatch.setattr(device, "why_no_triton", lambda *_: "there is no GPU")
    with pytest.raises(ConfigError, match="backend: triton must be able to run here; there is no GPU"):
        make_accelerator(change(config, backend="triton"))
    for precision in ("fp16", "fp8"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)  # as `accelerate launch` says it
        with pytest.raises(ConfigError, match=f"mixed_precision: {precision} cannot run here"):
            make_accelerator(config)


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed", "Megatron-LM"])
def test_a_network_in_shards_is_refused_before_anything_is_written(config, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name.replace('-', '_').upper()}", "true")  # as `accelerate launch` says it
    with pytest.raises(ConfigError, match=f"must hold the whole network; got {name}, .* accelerate launch --multi_gpu"):
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


def test_signals_that_a_launcher_repeats_are_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    request, ended, now = StopRequest(accelerator(processes=2)), [], [100.0]
    monkeypatch.setattr(device.time, "monotonic", lambda: now[0])
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    try:
        with request:
            signal.raise_signal(signal.SIGTERM)
        for seconds, count in ((0.1, 0), (1.9, 0), (2.1, 1)):  # also when all is saved
            now[0] = 100 + seconds
            signal.raise_signal(signal.SIGTERM)
            assert len(ended) == count
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_in_a_thread_leaves_signals_alone():
    """As in Streamlit, or in Optuna's threads, where Python lets no handler be set."""
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(lambda: StopRequest(accelerator()).__enter__()).result()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not request.due(1, 1)


COUNT = """
import resource, torch
from ttfs_triton.train.device import freed_memory_kept

def pages_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24), torch.ones(3 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with freed_memory_kept():
    pages = [pages_of_a_step() for _ in range(20)]
print(pages[0], pages[-1], pages_of_a_step())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries keep what they like")
def test_later_steps_get_the_memory_of_the_first():
    """256 MiB are 65,536 pages, or 128 huge ones; two threads need ten steps to settle. Afterwards they go back."""
    result = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    first, later, after = map(int, result.stdout.split())
    assert later < 20 < 100 < min(first, after)
