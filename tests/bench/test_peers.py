"""`bench/peers.py` from its command line, on a narrow network: ours alone, beside a stand-in, beside the libraries."""

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bench.modules import record
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

SMALL = ["--width", "0.03", "--batch-size", "2", "--repeats", "2", "--threads", "1", "--steps", "2", "1"]
WITHOUT_TIME = ["DFT σ=1", "DFT σ=0", "ANN"]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import peers

    return peers


@pytest.fixture
def run(peers, monkeypatch, tmp_path):
    def call(*arguments: str) -> tuple[list[dict[str, str]], dict[str, str]]:
        monkeypatch.setattr(sys, "argv", ["peers.py", *arguments, "--output", str(tmp_path)])
        peers.main()
        assert "<svg" in (tmp_path / "peers-cpu.svg").read_text(encoding="utf-8")
        return record.read(tmp_path / "peers-cpu.csv")

    return call


def check_rows(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
        assert float(row["peak_mib"]) > 0
        assert row["layout"] in ("channels_last", "contiguous")
        for kind in ("time", "memory"):
            assert float(row[f"{kind}_ratio_to_ours"]) > 0
            assert float(row[f"{kind}_ratio_to_ours"]) == 1 or row["provider"] != "DFT σ=1"
            assert float(row[f"{kind}_ratio_to_fewest_steps"]) == 1 or row["time_steps"] not in ("", "1")


def make_stand_in(peers) -> type:
    """A library that any machine has: clamped ReLUs, time and again."""

    class StandIn(peers.Simulation):
        title, distribution, major = "SpikingJelly", "pytest", 1

        def __init__(self, ann: TTFSNetwork, device: torch.device, dtype: torch.dtype) -> None:
            import _peers

            super().__init__(_peers.mirror(ann, nn, lambda: nn.Hardtanh(0, 1)))

        def forward(self, images: Tensor, time_steps: int) -> Tensor:
            current = self.current(images)
            return torch.stack([self.rest(current) for _ in range(time_steps)]).mean(0)

    return StandIn


def test_runs_ours_alone_and_says_what_to_install(peers, run, monkeypatch, capsys):
    class Absent(peers.Simulation):
        title, distribution, major = "Absent", "ttfs-triton-no-such-library", 3

    class Old(peers.Simulation):
        title, distribution, major = "Old", "pytest", 1000

    monkeypatch.setattr(peers, "LIBRARIES", (Absent, Old))
    rows, about = run(*SMALL)
    assert [row["provider"] for row in rows] == WITHOUT_TIME
    check_rows(rows)
    assert about["left_out"] == '["Absent", "Old"]'
    said = capsys.readouterr().out
    assert (
        "peers: ttfs-triton-no-such-library must be 3.0 or newer; found none. Its rows are left out. Run: pip" in said
    )
    assert f"peers: pytest must be 1000.0 or newer; found {version('pytest')}." in said


def test_writes_times_memory_and_their_growth(peers, run, monkeypatch, capsys):
    monkeypatch.setattr(peers, "LIBRARIES", (make_stand_in(peers),))
    rows, about = run(*SMALL, "--dtype", "bfloat16")
    assert [(row["provider"], row["time_steps"]) for row in rows] == [
        *((name, "") for name in WITHOUT_TIME),
        ("SpikingJelly", "1"),
        ("SpikingJelly", "2"),
    ]
    check_rows(rows)
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert [float(row["floor_ratio"]) for row in rows] == [1.667, 1, 1, 1, 2]
    assert rows[3]["version"] == version("pytest")
    assert json.loads(about["options"])["steps"] == [2, 1]
    assert about["threads"] == "1"
    assert about["left_out"] == "[]"
    assert "growth" in capsys.readouterr().out


def test_ratios_are_medians_over_rounds(peers):
    simulation = make_stand_in(peers)(small_ann(), torch.device("cpu"), torch.float32)
    networks = {"DFT σ=1": nn.Identity(), "two": peers.Unrolled(simulation, 2), "eight": peers.Unrolled(simulation, 8)}
    times = {"DFT σ=1": [1.0, 2.0, 4.0], "two": [3.0, 4.0, 20.0], "eight": [6.0, 20.0, 40.0]}
    steps = [
        SimpleNamespace(contender=peers.Contender(name, network, 1.0), forward_backward_ms=times[name])
        for name, network in networks.items()
    ]
    ours, two, eight = peers.make_rows(steps, [10.0, 20.0, 50.0], peers.Options())
    assert (ours["time_ratio_to_ours"], two["time_ratio_to_ours"], eight["time_ratio_to_ours"]) == (1, 3, 10)
    assert (two["time_ratio_to_fewest_steps"], eight["time_ratio_to_fewest_steps"]) == (1, 2)
    assert (two["memory_ratio_to_ours"], eight["memory_ratio_to_ours"]) == (2, 5)
    assert eight["memory_ratio_to_fewest_steps"] == 2.5
    assert (eight["ms_p20"], eight["ms_p50"], eight["ms_p80"]) == (11.6, 20, 32)


@pytest.mark.parametrize("faster", ["channels_last", "contiguous"])
def test_layout_is_the_faster_one(peers, faster):
    simulation = make_stand_in(peers)(small_ann(), torch.device("cpu"), torch.float32)
    noted: list[float] = []
    step = SimpleNamespace(
        forward_backward_ms=noted, time=lambda: noted.append(1.0 if simulation.layout == faster else 2.0)
    )
    assert peers.faster_layout(step, simulation) == faster
    assert not noted


def test_times_nothing_that_disagrees(peers, run, monkeypatch, tmp_path):
    def wrong(step):
        raise peers.DisagreementError("gradients are apart")

    monkeypatch.setattr(peers, "check", wrong)
    monkeypatch.setattr(peers.Step, "time", lambda step: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="peers: gradients are apart"):
        run(*SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "4", "0"], r"--steps must be different positive numbers; got \(4, 0\)"),
        (["--steps", "4", "4"], r"--steps must be different positive numbers; got \(4, 4\)"),
        (["--steps"], r"--steps must be different positive numbers; got \(\)"),
        (["--batch-size", "0"], "--batch-size must be at least 1; got 0"),
        (["--repeats", "0"], "--repeats must be at least 1; got 0"),
    ],
)
def test_refuses_sizes(run, arguments, message):
    with pytest.raises(SystemExit, match=f"peers: {message}"):
        run(*arguments)


def test_refuses_a_gpu_that_is_not_there(peers, run, monkeypatch):
    monkeypatch.setattr(peers.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda must have a GPU that PyTorch can use; found none"):
        run("--device", "cuda")


def test_refuses_to_start_without_matplotlib(peers, run, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="the plot must have matplotlib; found none"):
        run(*SMALL)


# Below: with the libraries themselves.


@pytest.mark.parametrize("title", ["SpikingJelly", "snnTorch"])
def test_library_computes_leaky_neurons_with_surrogate_gradients(peers, title):
    library = next(library for library in peers.LIBRARIES if library.title == title)
    pytest.importorskip(library.distribution)
    ann = small_ann()
    images = torch.rand(3, 2, 6, 6)
    simulation = library(ann, torch.device("cpu"), torch.float32)
    weights = [parameter.detach().double().requires_grad_() for parameter in simulation.parameters()]
    expected = simulate(weights, images.double(), time_steps=5, late_reset=title == "snnTorch")
    F.cross_entropy(expected, torch.tensor([0, 1, 2])).backward()
    for layout in ("channels_last", "contiguous"):
        simulation.use_layout(layout)
        simulation.zero_grad()
        logits = peers.Unrolled(simulation, 5)(images)
        F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
        torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)
        for weight, parameter in zip(weights, simulation.parameters(), strict=True):
            assert parameter.grad.abs().max() > 0
            torch.testing.assert_close(parameter.grad.double(), weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_runs_the_libraries(peers, run, dtype):
    for library in peers.LIBRARIES:
        pytest.importorskip(library.distribution)
    rows, about = run(*SMALL, "--dtype", dtype)
    assert [(row["provider"], row["time_steps"]) for row in rows] == [
        *((name, "") for name in WITHOUT_TIME),
        *((name, steps) for name in ("SpikingJelly", "snnTorch") for steps in ("1", "2")),
    ]
    check_rows(rows)
    assert all(row["backend"] and row["version"] for row in rows[3:])
    for fewer, more in (rows[3:5], rows[5:7]):
        assert float(fewer["peak_mib"]) < float(more["peak_mib"])
    assert about["left_out"] == "[]"


def test_neurons_fire_in_every_layer(peers):
    pytest.importorskip("snntorch")
    plain = {"weight_standardisation": False, "bias": False}
    contenders = peers.build("vgg16", None, statistics=False, width=0.1, **plain)
    simulation = peers.LIBRARIES[1](contenders[0].network, torch.device("cpu"), torch.float32)
    rates = []
    for module in simulation.rest:
        if type(module).__name__ == "Leaky":
            module.register_forward_hook(lambda module, arguments, spikes: rates.append(spikes.mean().item()))
    simulation(torch.rand(2, 3, 32, 32), 4)
    assert len(rates) == 4 * 15
    assert all(0.02 < rate < 0.9 for rate in torch.tensor(rates).view(4, 15).mean(0).tolist())


def small_ann() -> TTFSNetwork:
    config = NetworkConfig(
        "4C3-P2-6C3-8", 2, (6, 6), 3, encoder="analog", analog=True, weight_standardisation=False, bias=False
    )
    return TTFSNetwork(config)


def simulate(weights: list[Tensor], images: Tensor, *, time_steps: int, late_reset: bool) -> Tensor:
    """Logits [N, classes] of the network in `small_ann` with leaky integrate-and-fire neurons, step by step.

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
