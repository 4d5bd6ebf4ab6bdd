"""`bench/peers.py` from its command line, on a narrow network: ours alone, beside a stand-in, beside the libraries."""

import math
from importlib.metadata import version

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bench.modules import modules
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork

(peers,) = modules("peers")

SMALL = ["--width", "0.03", "--batch-size", "2", "--repeats", "2", "--steps", "2", "1"]
WITHOUT_TIME = ["DFT σ=1", "DFT σ=0", "ANN"]


def check_ratios(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert row["layout"] in ("channels_last", "contiguous")
        for kind in ("time", "memory"):
            assert float(row[f"{kind}_ratio_to_ours"]) > 0
            assert float(row[f"{kind}_ratio_to_ours"]) == 1 or row["provider"] != "DFT σ=1"
            assert float(row[f"{kind}_ratio_to_fewest_steps"]) == 1 or row["time_steps"] not in ("", "1")


def stand_in(device: torch.device, dtype: torch.dtype) -> "peers.Library":
    """A stand-in for a library: clamped ReLUs, once for each time step."""
    unroll = lambda rest, x, T: torch.stack([rest(x)] * T).mean(0)  # noqa: E731
    return peers.Library("pytest", nn, lambda: nn.Hardtanh(0, 1), lambda rest: None, unroll)


def test_runs_ours_alone_and_says_what_to_install(run_script, monkeypatch, capsys):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    rows, about = run_script(peers, *SMALL)
    assert [row["provider"] for row in rows] == WITHOUT_TIME
    check_ratios(rows)
    assert about["left_out"] == '["spikingjelly", "snntorch"]'
    assert "peers: spikingjelly and snntorch not found, left out. For all, pip" in capsys.readouterr().out


def test_writes_times_memory_and_their_growth(run_script, monkeypatch, capsys):
    monkeypatch.setattr(peers, "LIBRARIES", {"pytest": stand_in})
    rows, about = run_script(peers, *SMALL, "--dtype", "bfloat16")
    expected = [*((name, "") for name in WITHOUT_TIME), ("pytest", "1"), ("pytest", "2")]
    assert [(row["provider"], row["time_steps"]) for row in rows] == expected
    check_ratios(rows)
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert [float(row["floor_ratio"]) for row in rows] == [1.667, 1, 1, 1, 2]
    assert rows[3]["version"] == version("pytest")
    assert about["left_out"] == "[]"
    assert "growth" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["spikingjelly", "snntorch"])
def test_library_computes_leaky_neurons_with_surrogate_gradients(package):
    pytest.importorskip(package)
    library = peers.LIBRARIES[package](torch.device("cpu"), torch.float32)
    plain = {"weight_standardisation": False, "bias": False}
    ann = TTFSNetwork(NetworkConfig("4C3-P2-6C3-8", 2, (6, 6), 3, encoder="analog", neuron=Neuron(0.0), **plain))
    simulation = peers.Simulation(library, peers.mirror(ann, library), 5)
    images, labels = torch.rand(3, 2, 6, 6), torch.tensor([0, 1, 2])
    weights = [parameter.detach().double().requires_grad_() for parameter in simulation.parameters()]
    expected = simulate(weights, images.double(), time_steps=5, late_reset=package == "snntorch")
    F.cross_entropy(expected, labels).backward()
    for layout in ("channels_last", "contiguous"):
        simulation.use_layout(layout)
        simulation.zero_grad()
        logits = simulation(images)
        F.cross_entropy(logits, labels).backward()
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)
        for weight, parameter in zip(weights, simulation.parameters(), strict=True):
            assert parameter.grad.abs().max() > 0
            torch.testing.assert_close(parameter.grad.double(), weight.grad, rtol=1e-3, atol=1e-6)


def simulate(weights: list[Tensor], images: Tensor, *, time_steps: int, late_reset: bool) -> Tensor:
    """Logits [N, classes] of the network in the test above with leaky integrate-and-fire neurons, step by step.

    The potential is h ← h/2 + input, minus the threshold if the neuron fired in the step before: subtracted before the
    leak, or after it (`late_reset`). Firing is a step at 1 with the derivative 1/(1 + (π(h − 1))²).
    """
    potentials: list[Tensor | float] = [0.0] * 3
    spikes: list[Tensor | float] = [0.0] * 3

    def fire(layer: int, current: Tensor) -> Tensor:
        reset = spikes[layer] * (1.0 if late_reset else 0.5)
        potentials[layer] = 0.5 * potentials[layer] + current - reset
        above = potentials[layer] - 1
        soft = torch.atan(math.pi * above) / math.pi
        fired = soft + ((above >= 0).to(soft) - soft).detach()
        spikes[layer] = fired.detach()
        return fired

    logits = []
    for _ in range(time_steps):
        x = F.max_pool2d(fire(0, F.conv2d(images, weights[0], padding=1)), 2)
        x = fire(1, F.conv2d(x, weights[1], padding=1)).flatten(1)
        logits.append(F.linear(fire(2, F.linear(x, weights[2])), weights[3]))
    return torch.stack(logits).mean(0)
