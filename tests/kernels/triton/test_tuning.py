"""Measuring what a program uses, once, and sharing it; times are made up, so that the expected choice is known."""

import json

import pytest
import torch

import ttfs_kernels
from ttfs_kernels import dft_linear
from ttfs_kernels.triton_backend import choice, measure


@pytest.fixture
def times(monkeypatch) -> list[float]:
    """Milliseconds that the next measurements find, the library's first; what is timed really runs."""
    upcoming: list[float] = []

    def time_ms(run) -> float:
        run()
        return upcoming.pop(0)

    monkeypatch.setattr(measure, "gpu_ms", time_ms)
    return upcoming


def step(device: torch.device, features: int = 20) -> None:
    x = torch.rand(6, features, device=device)
    weight = torch.randn(9, features, device=device, requires_grad=True)
    dft_linear(x.requires_grad_(), weight, backend="triton").sum().backward()


def made(device: torch.device) -> dict[str, choice.Choice]:
    """Choices by pass, for "auto"."""
    keys = list(choice.choices())
    return {
        which: choice.choose(which, problem, where, precision, "auto") for which, problem, where, precision, _ in keys
    }


def test_measures_every_pass_used_and_chooses_by_it(device, times, tmp_path):
    step(device)
    assert {c.reason for c in made(device).values()} == {"unmeasured"}
    lines: list[str] = []
    times += [1.0, 2.0, 2.0, 1.0, 2.0, 1.0]  # the library wins the forward pass
    keys = list(choice.choices())
    measurements = ttfs_kernels.tune(report=lines.append)
    assert not times
    assert [entry["pass"] for entry in measurements] == ["forward", "grad_x", "grad_w"]
    assert len(lines) == 3
    chosen = {key[0]: choice.choose(*key[:4], "auto") for key in keys}
    assert chosen["forward"] == choice.Choice(None, "measured")
    assert chosen["grad_x"].config is not None
    assert chosen["grad_x"].reason == chosen["grad_w"].reason == "measured"
    (table,) = (tmp_path / "cache").iterdir()
    assert json.loads(table.read_text())["entries"] == measurements


def test_measures_nothing_twice(device, times):
    step(device)
    times += [1.0] * 6
    first = ttfs_kernels.tune()
    step(device)
    assert ttfs_kernels.tune() == first
    step(device, features=300)  # too far from the first shape to be near it
    times += [1.0] * 6
    assert len(ttfs_kernels.tune()) == 6
    assert not times


def test_measurements_of_another_process_replace_the_tables(device, times):
    step(device)
    keys = list(choice.choices())
    times += [1.0, 2.0] * 3
    measurements = ttfs_kernels.tune()
    assert all(choice.choose(*key[:4], "auto").config is None for key in keys)
    for values in measurements:
        values["library_ms"], values["triton_ms"] = 2.0, 1.0
    ttfs_kernels.use_measurements(measurements)
    assert all(choice.choose(*key[:4], "auto").config is not None for key in keys)
    ttfs_kernels.use_measurements([])  # nothing to share: nothing changes
    assert all(choice.choose(*key[:4], "auto").config is not None for key in keys)
    with pytest.raises(KeyError):
        ttfs_kernels.use_measurements([{"pass": "forward"}])


def test_thorough_tries_all_candidates(device, monkeypatch):
    calls = []

    def entry(which, problem, device, precision, *, thorough, time_ms, report, fault):
        calls.append(thorough)

    monkeypatch.setattr(measure, "measure_entry", entry)
    step(device)
    ttfs_kernels.tune()
    step(device)
    ttfs_kernels.tune(thorough=True)
    assert calls == [False] * 3 + [True] * 3


def test_without_triton_there_is_nothing_to_tune(monkeypatch):
    monkeypatch.setattr("ttfs_kernels.tuning.why_no_triton", lambda device, dtype: "no such thing")
    assert ttfs_kernels.tune() == []
