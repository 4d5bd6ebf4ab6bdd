"""`bench/kernels.py --plan`: costs by hand, what a step holds, and that it says what it is."""

import dataclasses
import json
import sys

import pytest
import torch

from tests.bench.modules import modules
from ttfs_kernels.triton_backend.problem import PASSES, Problem

bench, kernels, kernels_layers, kernels_plan, plan_model = modules(
    "_bench", "kernels", "_kernels_layers", "_kernels_plan", "_plan_model"
)

Cost, Machine = plan_model.Cost, plan_model.Machine
# 4 processors at 4 TFLOP/s together, 1 TB/s, 1 GHz.
SMALL = Machine("small", 4, 1.0, 4.0, 1.0, 1.0, 0.5)
CONV2D = Problem(2, 8, 8, 64, 128, (3, 3), padding=(1, 1), dtype=torch.bfloat16)


def test_a_launch_takes_as_long_as_what_limits_it():
    """5 programs of 1 MFLOP: one processor runs two of them at 1 TFLOP/s."""
    cost = plan_model.products(SMALL, 5, 5_000_000, 4_000_000, 1000, cache_bytes=3e6)
    assert (cost.waves, cost.programs, cost.launches) == (2, 5, 1)
    assert (cost.us, cost.limit, cost.cache_us) == (pytest.approx(2.0), "products", pytest.approx(3.0))
    assert plan_model.products(SMALL, 4, 4_000_000, 1, 1000).us == pytest.approx(1.0)
    assert plan_model.products(SMALL, 4, 4_000_000, 1, 1000, longest=3_000_000).us == pytest.approx(3.0)
    # Memory; 65 programs where 64 fit at once: two turns of 10 steps of 200 ns; and no launch is shorter than 0.5 µs.
    for given, steps, us, limit in (
        ((3_000_000,), 1, 3.0, "memory"),
        ((1000, 65), 10, 4.0, "serial"),
        ((1,), 1, 0.5, "launch"),
    ):
        cost = plan_model.elementwise(SMALL, *given, steps=steps)
        assert (cost.us, cost.limit) == (pytest.approx(us), limit)
    # 2 × 3 tiles of 128×128 on 4 processors, 6 MFLOP, in a library; a split reduction fills them.
    for split, programs, us in ((False, 6, 2.0), (True, 8, 1.5)):
        cost = plan_model.library_products(SMALL, 200, 300, 6_000_000, 0, split=split)
        assert (cost.programs, cost.us) == (programs, pytest.approx(us))


def test_costs_add_up():
    """Programs and waves are those of the launch with the products, the limit that of the longest."""
    total = plan_model.products(SMALL, 5, 5_000_000, 4_000_000, 10) + plan_model.elementwise(SMALL, 7_000_000)
    assert (total.launches, total.programs, total.waves) == (2, 5, 2)
    assert (total.executed, total.dense, total.moved) == (5_000_000, 4_000_000, 7_000_010)
    assert (total.us, total.limit) == (pytest.approx(9.0), "memory")


@pytest.mark.parametrize("surrogate", [False, True])
def test_a_layer_s_passes(surrogate):
    layer = dataclasses.replace(CONV2D, surrogate=surrogate)
    ours = dict(kernels_plan.ours(layer, "bf16", SMALL))
    stacked, ann = (dict(costs(layer, SMALL)) for costs in (kernels_plan.stacked, kernels_plan.ann))
    names = {"forward", "local_gradient", "bias_gradient", "grad_x", "grad_w"}
    assert set(ours) == set(stacked) == set(ann) == names
    contraction = 2 * 128 * 128 * 576
    assert [ann[which].dense for which in PASSES] == [contraction] * 3
    expected = [2 * contraction, (2 if surrogate else 1) * contraction, 2 * contraction]
    for costs in (ours, stacked):
        assert [costs[which].dense for which in PASSES] == expected
        assert costs["local_gradient"] == ours["local_gradient"]
    assert all(cost.executed <= 2 * cost.dense for cost in ours.values() if cost.dense)
    # The stack of activations and mask, the call over it, and the rule.
    assert (ours["forward"].launches, stacked["forward"].launches) == (1, 3)


def test_a_pool_of_ours_is_a_launch_and_its_gradient_the_local_one():
    """Of 2 × 8 × 8 positions of 128 channels: y and gain, whole and passed on, then what the local gradient reads."""
    layer = dataclasses.replace(CONV2D, pool=2)
    neurons, windows = 2 * 64 * 128, 2 * 16 * 128
    pooled, plain = (dict(kernels_plan.ours(problem, "bf16", SMALL)) for problem in (layer, CONV2D))
    assert pooled["pooling"].launches == 1
    assert pooled["pooling"].moved == 2 * 2 * (neurons + windows) + windows  # winners, a byte each
    assert pooled["local_gradient"].moved == plain["local_gradient"].moved - 3 * 2 * (neurons - windows) + windows
    assert dict(kernels_plan.stacked(layer, SMALL))["pooling"] == pooled["pooling"]
    # Activations in and out and 64-bit indices, forward and backward.
    assert dict(kernels_plan.ann(layer, SMALL))["pooling"].moved == 2 * (2 * (neurons + windows) + 8 * windows)


def test_batch_norm_is_the_rule_and_the_pool_too():
    """All launches but contractions, and what they move: A and W four times, y, its gradient twice, h and slope_h."""
    neurons, windows, channels = 2 * 64 * 128, 2 * 16 * 128, 128
    for pool, passed_on in ((1, neurons), (2, windows)):
        layer = dataclasses.replace(CONV2D, pool=pool)
        costs, plain = (dict(kernels_plan.ours(layer, "bf16", SMALL, normalised)) for normalised in (True, False))
        assert set(costs) == {"forward", "batch_norm", "grad_x", "grad_w"}
        assert costs["forward"] == plain["forward"]
        assert costs["batch_norm"].launches == 6
        moved = 2 * (10 * neurons + 3 * passed_on) + (3 * windows if pool == 2 else 0)
        assert moved < costs["batch_norm"].moved < moved + 1000 * channels
        assert dict(kernels_plan.stacked(layer, SMALL, True))["batch_norm"] == costs["batch_norm"]


def test_a_network_s_layers():
    network = kernels_plan.read("cnn1", 3, "bf16", 1.0)
    assert [name for name, _ in network.spiking] == ["conv1", "conv2", "fc1"]
    assert network.spiking[1][1] == Problem(3, 14, 14, 16, 32, (5, 5), dtype=torch.bfloat16, pool=2)
    assert network.spiking[2][1] == Problem(3, 1, 1, 800, 128, dtype=torch.bfloat16)
    assert (network.analog, network.pools, network.weights) == ([], [], [(16, 25), (32, 16 * 25), (128, 800)])
    deep = kernels_plan.read("vgg16", 256, "bf16", 1.0)
    assert [name for name, _ in deep.analog] == ["conv1"]
    assert len(deep.spiking) == 14
    dense = sum(kernels_plan.flops(which, problem) for _, problem in deep.spiking for which in PASSES) / 1e12
    assert dense == pytest.approx(0.8456, abs=1e-4)


def test_totals_are_those_of_the_parts():
    parts = kernels_plan.plan(kernels_plan.read("cnn1", 16, "bf16", 1.0), "bf16", Machine())
    for provider, values in kernels_plan.totals(parts).items():
        own = [part for part in parts if part.provider == provider]
        assert values["launches"] == sum(part.cost.launches for part in own)
        assert values["model_us"] == round(sum(part.cost.us for part in own), 1)
        assert {part.pass_ for part in own} >= {"optimiser", "pooling", "bias_gradient"}
    by_pass = {part.pass_: [other.provider for other in parts if other.pass_ == part.pass_] for part in parts}
    assert (by_pass["weight_standardisation"], by_pass["weight_casts"]) == (["ours", "stacked"], ["ANN"])


def test_what_is_of_no_layer():
    """Standardised weights: read in 32 bits and written in 16, then both gradients, 16 bytes a weight; and pools."""
    network = kernels_plan.Network([], [], [(400, 100)], [(64, 1000), (10, 50_000)], 0)
    cost = kernels_plan.standardisation(network, Machine())
    assert (cost.launches, cost.moved) == (2, pytest.approx(16 * (64_000 + 500_000), rel=0.01))
    costs = {provider: cost for which, provider, cost in kernels_plan.whole(network, SMALL) if which == "pooling"}
    assert {provider: cost.moved for provider, cost in costs.items()} == dict.fromkeys(
        ("ours", "stacked", "ANN"), 2 * (2 * 500 + 8 * 100)
    )


def test_the_plan_is_written_and_says_that_it_is_a_model(monkeypatch, tmp_path, capsys):
    options = ["--plan", "--model", "cnn1", "--batch-size", "8", "--machine.name", "small", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["kernels.py", *options])
    with pytest.raises(SystemExit) as exit_:
        kernels.main()
    assert exit_.value.code == 0
    assert "MODEL, not measured: cnn1, batch 8, bf16, σ = 1, small" in capsys.readouterr().out
    rows, about = bench.read(tmp_path / "kernels-plan-small-cnn1.csv")
    totals = json.loads(about["totals"])
    assert about["is"] == "a model, not a measurement"
    assert json.loads(about["machine"])["name"] == "small"
    assert {row["provider"] for row in rows} == set(totals) == {"ours", "stacked", "ANN"}
    ours = [row for row in rows if row["provider"] == "ours"]
    assert sum(float(row["model_us"]) for row in ours) == pytest.approx(totals["ours"]["model_us"], abs=0.5)


def test_the_committed_plan_is_of_this_model():
    """Whoever changes the model writes the plan anew."""
    _, about = bench.read(bench.RESULTS / "kernels-plan-h100.csv")
    assert json.loads(about["machine"]) == dataclasses.asdict(Machine())


def test_a_step_of_vgg16_fills_the_processors_and_skips_what_is_nothing():
    """Of 0.847 TFLOP dense; ours has twice the products of the plain ANN, forward and in the weight's gradient."""
    parts = kernels_plan.plan(kernels_plan.read("vgg16", 256, "bf16", 1.0), "bf16", Machine())
    assert kernels_plan.few_programs(parts) == []
    idle = kernels_plan.Part("large", "forward", "ours", Cost(1, 32, executed=10**10))
    small = idle._replace(cost=Cost(1, 32, executed=10**6))
    assert kernels_plan.few_programs([idle, small, idle._replace(provider="ANN")]) == [idle]
    ours = kernels_plan.totals(parts)["ours"]
    assert ours["executed_tflop"] <= 0.70
    assert ours["ratio_to_ann"] <= 1.35
    assert ours["bias_gradient_share"] < 0.03
