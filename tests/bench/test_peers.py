"""`bench/peers.py` from its command line, on a narrow network beside a stand-in for a library."""

from importlib.metadata import version

import torch
from torch import nn

from tests.bench.modules import modules

(peers,) = modules("peers")

SMALL = ["--width", "0.03", "--batch-size", "2", "--repeats", "2", "--steps", "2", "1"]


def stand_in(device: torch.device, dtype: torch.dtype) -> "peers.Library":
    """Clamped ReLUs, once for each time step."""
    unroll = lambda rest, x, T: torch.stack([rest(x)] * T).mean(0)  # noqa: E731
    return peers.Library("pytest", nn, lambda: nn.Hardtanh(0, 1), lambda rest: None, unroll)


def test_writes_times_memory_and_their_growth_and_says_what_to_install(run_script, monkeypatch, capsys):
    monkeypatch.setattr(peers, "LIBRARIES", {"pytest": stand_in, "no_such_package": stand_in})
    rows, about = run_script(peers, *SMALL, "--dtype", "bfloat16")
    contenders = [("DFT σ=1", ""), ("DFT σ=0", ""), ("ANN", ""), ("pytest", "1"), ("pytest", "2")]
    assert [(row["provider"], row["time_steps"]) for row in rows] == contenders
    assert float(rows[0]["time_ratio_to_ours"]) == float(rows[0]["memory_ratio_to_ours"]) == 1
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert [float(row["floor_ratio"]) for row in rows] == [1.667, 1, 1, 1, 2]
    assert rows[3]["version"] == version("pytest")
    assert about["left_out"] == '["no_such_package"]'
    assert "peers: no_such_package not found, left out. For all, pip" in capsys.readouterr().out
