"""How processes agree to stop: soon, and without waiting for each other after every step."""

import signal
import types
from typing import Any

import pytest
import torch

from ttfs_triton.train import device as processes
from ttfs_triton.train.device import StopRequest, ask_main_process, compress_gradients


def test_processes_stop_together(monkeypatch):
    """Each step on CPUs; on GPUs, which would wait for each other, every few steps."""
    others = []
    monkeypatch.setattr(processes, "sum_over_processes", lambda *_: torch.tensor([float(len(others))]))
    for device, asked in (("cpu", [1, 2, 3, 4, 5, 6]), ("meta", [3, 6])):
        accelerator: Any = types.SimpleNamespace(num_processes=2, device=torch.device(device))
        request = StopRequest(accelerator)
        assert not any(request.due(step, 3) for step in range(1, 7))
        others.append("received a signal")
        assert [step for step in range(1, 7) if request.due(step, 3)] == asked
        others.clear()


def test_one_process_stops_at_once():
    accelerator: Any = types.SimpleNamespace(num_processes=1)
    with StopRequest(accelerator) as request:
        assert not request.due(1, 20)
        signal.raise_signal(signal.SIGTERM)
        assert request.due(2, 20)
    assert request.received is signal.SIGTERM


def test_signals_that_a_launcher_repeats_are_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    accelerator: Any = types.SimpleNamespace(num_processes=2)
    request, ended, now = StopRequest(accelerator), [], [100.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
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


def test_main_process_answers_or_raises():
    def fail():
        raise KeyError("no")

    alone: Any = types.SimpleNamespace(is_main_process=True, num_processes=1)
    assert ask_main_process(alone, lambda: 7, ValueError) == 7
    for error in (KeyError, ValueError):
        with pytest.raises(KeyError, match="no"):
            ask_main_process(alone, fail, error)


def test_one_process_says_that_it_compresses_nothing():
    said = []
    compress_gradients(torch.nn.Linear(2, 2), said.append)
    assert said == ["gradient_compression: one process exchanges no gradients"]
