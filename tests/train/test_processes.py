"""How processes agree to stop: soon, and without waiting for each other after every step."""

import signal
import types
from typing import Any

import pytest
import torch

from ttfs_triton.train import processes
from ttfs_triton.train.processes import StopRequest, ask_main_process, compress_gradients


class Processes:
    """Several processes that do the same steps; the reduction takes the sum over what all have brought."""

    def __init__(self, monkeypatch, count, seconds):
        self.seconds, self.agreements, self.now = seconds, 0, 0.0
        monkeypatch.setattr(processes, "sum_over_processes", self.sum)
        monkeypatch.setattr(processes.time, "perf_counter", lambda: self.now)
        accelerator: Any = types.SimpleNamespace(num_processes=count, device="cpu")
        self.request, self.others = StopRequest(accelerator), 0

    def sum(self, accelerator, values):
        self.agreements += 1
        values = values * accelerator.num_processes
        values[0] += self.others
        return values

    def steps(self, count):
        """Answers after each step."""
        answers = []
        for _ in range(count):
            self.now += self.seconds
            answers.append(self.request.everywhere())
        return answers


@pytest.mark.parametrize(("seconds", "agreements"), [(0.001, 11), (0.1, 101), (0.6, 1000), (30, 1000)])
def test_processes_agree_about_once_a_second_and_stop_then(monkeypatch, seconds, agreements):
    many = Processes(monkeypatch, 4, seconds)
    steps = 10_000 if seconds == 0.001 else 1000
    assert many.steps(steps) == [False] * steps
    assert many.agreements == pytest.approx(agreements, rel=0.15)
    many.others = 1  # of them received a signal, this one did not
    assert 0 <= many.steps(2000).index(True) * seconds <= 1.01


def test_slower_steps_are_noticed(monkeypatch):
    many = Processes(monkeypatch, 2, 0.01)
    many.steps(101)
    many.seconds = 2
    many.steps(100)
    agreements = many.agreements
    many.steps(5)
    assert many.agreements == agreements + 5


def test_one_process_stops_at_once(monkeypatch):
    one = Processes(monkeypatch, 1, 0.001)
    with one.request as request:
        assert one.steps(3) == [False] * 3
        signal.raise_signal(signal.SIGTERM)
        assert one.steps(1) == [True]
    assert request.received is signal.SIGTERM
    assert one.agreements == 0


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
