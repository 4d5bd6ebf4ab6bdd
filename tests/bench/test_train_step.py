"""`bench/train_step.py` and `bench/peers.py` from their command lines, on tiny networks; nothing wrong is timed."""

from importlib.metadata import version
from itertools import product

import pytest
import torch
from torch import nn

from tests.bench.modules import modules

peers, train_step = modules("peers", "train_step")

SMALL = ["--model", "cnn1", "--width", "0.25", "--batch-size", "2", "--repeats", "2", "--no-batch-norm"]


def test_writes_times_ratios_and_their_circumstances(run_script, capsys):
    rows, _ = run_script(train_step, *SMALL, "--model", "cnn1", "cifarnet", "--batch-norm")
    providers = ["ANN", "DFT σ=0", "DFT σ=1", "DFT σ=1 as trained", "composition σ=1"]
    kinds = [(row["case"], row["dtype"], row["pass"], row["provider"]) for row in rows]
    cases, dtypes = ("cnn1-b2-w0.25", "cifarnet-b2-w0.25"), ("float32", "bfloat16")
    assert kinds == [(*case, "step", provider) for case in product(cases, dtypes) for provider in providers]
    for row in rows:
        assert float(row["ratio_to_ann"]) > 0
        assert float(row["ratio_to_ann"]) == 1 or row["provider"] != "ANN"
        assert (row["provider"] in providers[1:4]) == bool(row["gradient_error"])
        assert float(row["gradient_error"] or 0) < 1e-3
    assert "floor" in capsys.readouterr().out


def test_times_nothing_that_disagrees(run_script, monkeypatch, tmp_path):
    fire = train_step.fire_by_cases
    monkeypatch.setattr(train_step, "fire_by_cases", lambda *args: 0.9 * fire(*args))
    monkeypatch.setattr(train_step.bench, "time_in_turns", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(SystemExit, match=r"check: DFT σ=1 must agree with its twin in float64; got .*\. Nothing more"):
        run_script(train_step, *SMALL)
    assert not list(tmp_path.iterdir())


def stand_in(device: torch.device, dtype: torch.dtype) -> "peers.Library":
    """Clamped ReLUs, once for each time step."""
    unroll = lambda rest, x, T: torch.stack([rest(x)] * T).mean(0)  # noqa: E731
    return peers.Library("pytest", nn, lambda: nn.Hardtanh(0, 1), lambda rest: None, unroll)


def test_writes_times_memory_and_their_growth_and_says_what_to_install(run_script, monkeypatch, capsys):
    monkeypatch.setattr(peers, "LIBRARIES", {"pytest": stand_in, "no_such_package": stand_in})
    rows, about = run_script(peers, "--width", "0.03", *SMALL[4:8], "--steps", "2", "1", "--dtype", "bfloat16")
    contenders = [("DFT σ=1", ""), ("DFT σ=0", ""), ("ANN", ""), ("pytest", "1"), ("pytest", "2")]
    assert [(row["provider"], row["time_steps"]) for row in rows] == contenders
    assert float(rows[0]["time_ratio_to_ours"]) == float(rows[0]["memory_ratio_to_ours"]) == 1
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert [float(row["floor_ratio"]) for row in rows] == [1.667, 1, 1, 1, 2]
    assert rows[3]["version"] == version("pytest")
    assert about["left_out"] == '["no_such_package"]'
    assert "peers: no_such_package not found, left out. For all, pip" in capsys.readouterr().out
