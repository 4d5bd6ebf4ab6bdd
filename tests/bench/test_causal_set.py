"""The searched causal sets against simulated potentials, our layer against its rule, and what the script writes."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.bench.modules import record
from tests.oracles import linear_layer
from ttfs_kernels import dft_linear

SMALL = "--fan-ins 4 8 --outputs 6 --batch-size 8 --repeats 2 --depth 2 --draws 2 --threads 1".split()
CLOSED_FORM, SEARCH, CHUNKED = "closed form", "causal set", "causal set, chunked"
RULES = ("dynamic", "fixed, same deadline", "fixed, no deadline")


@pytest.fixture(scope="module")
def bench():
    """The script's modules, which find each other in their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
        import _fixed_threshold
        import _silence
        import causal_set

        yield SimpleNamespace(script=causal_set, silence=_silence, search=_fixed_threshold.causal_set_linear)


def simulate(spike_times: Sequence[float], weights: Sequence[float], threshold: float) -> float:
    """Spike time of one neuron: its potential, straight from one input spike to the next, until it is high enough."""
    potential, slope, now = 0.0, 0.0, -math.inf
    spikes = sorted((t, w) for t, w in zip(spike_times, weights, strict=True) if not math.isinf(t))
    for time, weight in [*spikes, (math.inf, 0.0)]:
        if slope > 0 and now + (threshold - potential) / slope <= time:
            return now + (threshold - potential) / slope
        if slope:
            potential += slope * (time - now)
        slope, now = slope + weight, time
    return math.inf


def random_layer(seed: int, batch: int, fan_in: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Spike times, among them silent inputs and equal ones, and weights; float64."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(batch, fan_in, generator=generator, dtype=torch.float64)
    times[:, ::3] = (8 * times[:, ::3]).round() / 8
    times = times.masked_fill(torch.rand(batch, fan_in, generator=generator) < 0.3, torch.inf)
    weight = torch.randn(outputs, fan_in, generator=generator, dtype=torch.float64)
    return times, weight


layers = {
    "seed": st.integers(0, 10_000),
    "batch": st.integers(1, 4),
    "fan_in": st.integers(1, 20),
    "outputs": st.integers(1, 6),
}


@given(**layers, threshold=st.sampled_from([0.05, 0.3, 1.0]))
def test_causal_set_linear_finds_the_simulated_spikes(bench, seed, batch, fan_in, outputs, threshold):
    times, weight = random_layer(seed, batch, fan_in, outputs)
    found = bench.search(times, weight, threshold=threshold)
    expected = [[simulate(sample, row, threshold) for row in weight.tolist()] for sample in times.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_causal_set_linear_leaves_out_later_spikes(bench):
    weight = torch.tensor([[1.0, -9.0]])
    assert bench.search(torch.tensor([[0.0, 1.5]]), weight).item() == 1.0
    assert bench.search(torch.tensor([[0.0, 0.5]]), weight).item() == math.inf
    assert bench.search(torch.tensor([[math.inf, 0.5]]), weight).item() == math.inf
    assert bench.search(torch.full((1, 2), math.inf), weight).item() == math.inf


def test_causal_set_linear_takes_the_first_of_several_crossings(bench):
    # 0.2·t is 0.4 at t = 2, falls to 0 and rises again.
    times, weight = torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([[0.2, -0.6, 1.0]])
    assert bench.search(times, weight, threshold=0.3).item() == pytest.approx(1.5)
    assert bench.search(times, weight, threshold=0.5).item() == pytest.approx(3 + 0.5 / 0.6)


@settings(max_examples=30)
@given(**layers)
def test_causal_set_linear_in_chunks_is_the_same(bench, seed, batch, fan_in, outputs):
    times, weight = (tensor.requires_grad_() for tensor in random_layer(seed, batch, fan_in, outputs))
    whole = bench.search(times, weight, threshold=0.3)
    upstream = torch.randn_like(whole)
    gradients = torch.autograd.grad(whole, (times, weight), upstream)
    for outputs_at_once in (1, 2, outputs + 1):
        chunked = bench.search(times, weight, threshold=0.3, outputs_at_once=outputs_at_once)
        torch.testing.assert_close(chunked, whole, rtol=0, atol=0)
        torch.testing.assert_close(torch.autograd.grad(chunked, (times, weight), upstream), gradients)


@pytest.mark.parametrize("outputs_at_once", [None, 2])
def test_causal_set_linear_has_exact_gradients(bench, outputs_at_once):
    times, weight = random_layer(1, 3, 9, 5)
    times += 1e-3 * torch.rand_like(times)  # at equal spike times there is no derivative

    def finite_spike_times(times: Tensor, weight: Tensor) -> Tensor:
        found = bench.search(times, weight, threshold=0.3, outputs_at_once=outputs_at_once)
        return torch.where(found.isinf(), 0, found)

    spikes = bench.search(times, weight, threshold=0.3)
    assert spikes.isfinite().any()
    assert spikes.isinf().any()
    assert times.isinf().any()
    assert torch.autograd.gradcheck(finite_spike_times, (times.requires_grad_(), weight.requires_grad_()))


def test_causal_set_linear_silent_neurons_have_no_gradient(bench):
    times, weight = torch.rand(2, 3).requires_grad_(), (-torch.rand(4, 3)).requires_grad_()
    gradients = torch.autograd.grad(bench.search(times, weight).sum(), (times, weight))
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 3), (4, 5)), {}, r"must be \[batch, fan_in\] and \[outputs, fan_in\], not empty; got \[2, 3\] and"),
        (((3,), (4, 3)), {}, "must be .* got"),
        (((2, 0), (4, 0)), {}, "not empty"),
        (((2, 3), (4, 3)), {"threshold": 0.0}, "threshold must be positive; got 0.0"),
        (((2, 3), (4, 3)), {"outputs_at_once": 0}, "outputs_at_once must be at least 1; got 0"),
    ],
)
def test_causal_set_linear_refuses(bench, shapes, options, message):
    with pytest.raises(ValueError, match=f"causal_set_linear: .*{message}"):
        bench.search(*(torch.rand(shape) for shape in shapes), **options)


@given(**layers, scale=st.sampled_from([0.3, 1.0, 3.0]))
def test_our_layer_follows_its_rule_and_the_search_finds_its_spikes(bench, seed, batch, fan_in, outputs, scale):
    times, weight = random_layer(seed, batch, fan_in, outputs)
    x = torch.where(times.isinf(), 0, 1 - times)
    weight *= scale
    A, W = x @ weight.T, (x > 0).double() @ weight.T
    rule = torch.where(A >= 1, 1, torch.where(A + W > 0, (A + W) / (1 + W), 0))
    y = dft_linear(x, weight, backend="torch")
    torch.testing.assert_close(y, rule)
    np.testing.assert_allclose(y.numpy(), linear_layer(x.numpy(), weight.numpy()), atol=1e-9)
    bench.script.check(x, weight, "torch")


def run(bench, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["causal_set.py", *arguments])
    bench.script.main()


def read(path: Path) -> list[dict[str, str]]:
    return record.read(path)[0]


def test_writes_times_silence_their_circumstances_and_a_picture(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.script, "SHORTEST_MS", 0.1)
    run(bench, monkeypatch, *SMALL, "--gains", "0.5", "1e-9", "--output", str(tmp_path))
    rows = read(tmp_path / "causal_set-cpu.csv")
    assert [(row["fan_in"], row["pass"], row["provider"]) for row in rows] == [
        (fan_in, passes, provider)
        for fan_in in ("4", "8")
        for passes in ("forward", "forward_backward")
        for provider in (CLOSED_FORM, SEARCH, CHUNKED)
    ]
    for row in rows:
        assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
        assert float(row["ratio_to_closed_form"]) == 1 or row["provider"] != CLOSED_FORM
        assert float(row["peak_mib"]) > 0
        assert row["backend"] == ("torch" if row["provider"] == CLOSED_FORM else "")
    silence = read(tmp_path / "causal_set-cpu-silent.csv")
    assert [(row["gain"], row["rule"], row["layer"]) for row in silence] == [
        (gain, rule, layer) for gain in ("0.5", "1e-09") for rule in RULES for layer in ("1", "2")
    ]
    for row in silence:
        assert 0 <= float(row["silent_min"]) <= float(row["silent_share"]) <= float(row["silent_max"]) <= 1
    about = record.read(tmp_path / "causal_set-cpu-silent.csv")[1]
    assert json.loads(about["options"])["depth"] == 2
    assert about["command"].endswith("--gains 0.5 1e-9")  # without where the results went
    picture = (tmp_path / "causal_set-cpu.svg").read_text(encoding="utf-8")
    assert picture.count("<svg") == 1
    assert "silent neurons, % of layer" in capsys.readouterr().out


def test_chunks_bound_the_memory(bench):
    times, weight = torch.rand(16, 64).requires_grad_(), torch.randn(64, 64).requires_grad_()
    layers = (bench.search, lambda t, w: bench.search(t, w, outputs_at_once=4))
    for passes in ("forward", "forward_backward"):
        whole, chunked = (bench.script.Contender("", layer, times, weight).peak_mib(passes) for layer in layers)
        assert whole > 3 * 16 * 64 * 64 * 4 / 2**20 > 4 * chunked


@pytest.mark.parametrize("rule", RULES)
def test_silence_counts_what_the_rules_say(bench, rule):
    x = torch.rand(3, 7, dtype=torch.float64)
    weights = [torch.randn(5, 7, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)]
    times = list(bench.silence.spike_times_of(rule, x, weights, bench.search, "torch"))
    torch.testing.assert_close(times[0], 1 - x)
    expected = x.numpy()
    for layer, weight in enumerate(weights, start=1):
        if rule == "dynamic":
            expected = linear_layer(expected, weight.numpy())
            found = torch.where(times[layer].isinf(), 0, layer + 1 - times[layer])
        else:
            inputs = times[layer - 1].tolist()
            expected = np.array([[simulate(sample, row, 1.0) for row in weight.tolist()] for sample in inputs])
            if rule == "fixed, same deadline":
                expected[expected > layer + 1] = math.inf
            found = times[layer]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_silence_describes_a_layer(bench):
    inputs = torch.tensor([[0.1, 0.9, math.inf], [0.2, 0.3, 0.4]])
    times = torch.tensor([[1.0, math.inf], [0.35, math.inf]])
    described = bench.silence.describe([(inputs, times), (inputs, times.nan_to_num(posinf=0.5))], layer=1)
    assert described["silent_share"] == 0.25
    assert (described["silent_min"], described["silent_max"]) == (0.0, 0.5)
    assert described["at_start_share"] == 0.25
    # First draw: 0.4 after 0.35, of 2 + 3 spikes; second: that one again and 0.9 after 0.5, of twice as many.
    assert described["late_share"] == round(3 / 15, 4)
    silent = bench.silence.describe([(inputs, torch.full((2, 2), math.inf))], layer=1)
    assert (silent["late_share"], silent["spike_time"]) == ("", "")


def test_times_nothing_that_disagrees(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(
        bench.script, "causal_set_linear", lambda *args, **options: 1.01 * bench.search(*args, **options)
    )
    monkeypatch.setattr(bench.script.Contender, "time", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit, match=r"causal_set: causal set must agree with the closed form.*got spikes"):
        run(bench, monkeypatch, *SMALL, "--output", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fan-ins", "64", "1"], r"--fan-ins must be at least 2; got \(64, 1\)"),
        (["--outputs", "0"], "--outputs must be at least 1; got 0"),
        (["--gains", "1", "0"], r"--gains must be positive; got \(1.0, 0.0\)"),
        (["--chunk-mib", "-1"], "--chunk-mib must be positive; got -1.0"),
    ],
)
def test_refuses_nonsense(bench, monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=f"causal_set: {message}"):
        run(bench, monkeypatch, *arguments)


def test_refuses_a_gpu_that_is_not_there(bench, monkeypatch):
    monkeypatch.setattr(bench.script.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda must have a GPU that PyTorch can use; found none"):
        run(bench, monkeypatch, "--device", "cuda")


def test_leaves_the_plot_out_without_matplotlib(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench.script.importlib.util, "find_spec", lambda name: None)
    options = bench.script.Options(device="cpu")
    bench.script.refuse_nonsense(options)
    assert not options.plot
    assert "no plot: matplotlib is not installed" in capsys.readouterr().err
