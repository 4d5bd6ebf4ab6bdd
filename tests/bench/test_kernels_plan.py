"""`bench/kernels.py --plan`: costs by hand, what a step holds, and that it says what it is."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.bench.modules import kernels_plan, plan_model, record
from ttfs_kernels.triton_backend.problem import Problem

Cost, Machine = plan_model.Cost, plan_model.Machine
# 4 processors at 4 TFLOP/s together, 1 TB/s, 1 GHz.
SMALL = Machine("small", 4, 1.0, 4.0, 1.0, 1.0, 0.5)
CONV2D = Problem(2, 8, 8, 64, 128, (3, 3), padding=(1, 1), dtype=torch.bfloat16)


def test_products_take_as_long_as_the_processor_with_most_programs():
    """5 programs of 1 MFLOP: one processor runs two of them at 1 TFLOP/s."""
    cost = plan_model.products(SMALL, 5, 5_000_000, 4_000_000, 1000, cache_bytes=3e6)
    assert (cost.waves, cost.programs, cost.launches) == (2, 5, 1)
    assert cost.us == pytest.approx(2.0)
    assert (cost.limit, cost.cache_us) == ("products", pytest.approx(3.0))
    assert plan_model.products(SMALL, 4, 4_000_000, 1, 1000).us == pytest.approx(1.0)
    assert plan_model.products(SMALL, 4, 4_000_000, 1, 1000, longest=3_000_000).us == pytest.approx(3.0)


def test_memory_loops_and_launches_limit_too():
    assert plan_model.elementwise(SMALL, 3_000_000).us == pytest.approx(3.0)
    assert plan_model.elementwise(SMALL, 3_000_000).limit == "memory"
    # 65 programs where 64 fit at once: two turns of 10 steps of 200 ns.
    serial = plan_model.elementwise(SMALL, 1000, programs=65, steps=10)
    assert (serial.us, serial.limit) == (pytest.approx(4.0), "serial")
    assert plan_model.elementwise(SMALL, 1).us == 0.5
    assert plan_model.elementwise(SMALL, 1).limit == "launch"


@pytest.mark.parametrize(("split", "programs", "us"), [(False, 6, 2 * 6 / 6), (True, 8, 6 / 4)])
def test_libraries_cut_into_tiles(split, programs, us):
    """2 × 3 tiles of 128×128 on 4 processors, 6 MFLOP; a split reduction fills them."""
    cost = plan_model.library_products(SMALL, 200, 300, 6_000_000, 0, split=split)
    assert (cost.programs, cost.us) == (programs, pytest.approx(us))


def test_costs_add_up():
    """Programs and waves are those of the launch with the products, the limit that of the longest."""
    main = plan_model.products(SMALL, 5, 5_000_000, 4_000_000, 10)
    total = main + plan_model.elementwise(SMALL, 7_000_000)
    assert (total.launches, total.programs, total.waves) == (2, 5, 2)
    assert (total.executed, total.dense, total.moved) == (5_000_000, 4_000_000, 7_000_010)
    assert (total.us, total.limit) == (pytest.approx(9.0), "memory")
    assert main.times(3) == main + main + main
    assert main.times(0) == Cost()


@pytest.mark.parametrize("surrogate", [False, True])
def test_a_layer_s_passes(surrogate):
    layer = dataclasses.replace(CONV2D, surrogate=surrogate)
    passes = {
        provider: dict(cost(layer))
        for provider, cost in {
            "ours": lambda problem: kernels_plan.ours(problem, "bf16", SMALL),
            "stacked": lambda problem: kernels_plan.stacked(problem, SMALL),
            "ANN": lambda problem: kernels_plan.ann(problem, SMALL),
        }.items()
    }
    names = {"forward", "local_gradient", "bias_gradient", "grad_x", "grad_w"}
    assert all(set(costs) == names for costs in passes.values())
    contraction = 2 * 128 * 128 * 576
    assert [passes["ANN"][which].dense for which in ("forward", "grad_x", "grad_w")] == [contraction] * 3
    expected = [2 * contraction, (2 if surrogate else 1) * contraction, 2 * contraction]
    for provider in ("ours", "stacked"):
        assert [passes[provider][which].dense for which in ("forward", "grad_x", "grad_w")] == expected
        assert passes[provider]["local_gradient"] == passes["ours"]["local_gradient"]
        assert passes[provider]["bias_gradient"] == passes["ours"]["bias_gradient"]
    assert all(cost.executed <= 2 * cost.dense for cost in passes["ours"].values() if cost.dense)
    # The stack of activations and mask, the call over it, and the rule.
    assert passes["stacked"]["forward"].launches == 3
    assert passes["ours"]["forward"].launches == 1


def test_a_pool_of_ours_is_a_launch_and_its_gradient_the_local_one():
    """Of 2 × 8 × 8 positions of 128 channels: y and gain, whole and passed on, then what the local gradient reads."""
    layer = dataclasses.replace(CONV2D, pool=2)
    neurons, windows = 2 * 64 * 128, 2 * 16 * 128
    pooled, plain = (dict(kernels_plan.ours(problem, "bf16", SMALL)) for problem in (layer, CONV2D))
    assert pooled["pooling"].launches == 1
    assert pooled["pooling"].moved == 2 * 2 * (neurons + windows) + windows  # winners, a byte each
    assert pooled["local_gradient"].moved == plain["local_gradient"].moved - 3 * 2 * (neurons - windows) + windows
    assert dict(kernels_plan.stacked(layer, SMALL))["pooling"] == pooled["pooling"]
    assert {which: pooled[which] for which in plain if which != "local_gradient"} == {
        which: plain[which] for which in plain if which != "local_gradient"
    }
    # Activations in and out and 64-bit indices, forward and backward.
    assert dict(kernels_plan.ann(layer, SMALL))["pooling"].moved == 2 * (2 * (neurons + windows) + 8 * windows)


def test_pools_that_no_layer_computes_are_max_pools():
    network = kernels_plan.Network([], [], [(400, 100)], [], 0)
    costs = {provider: cost for which, provider, cost in kernels_plan.whole(network, SMALL) if which == "pooling"}
    assert set(costs) == {"ours", "stacked", "ANN"}
    assert all(cost.moved == 2 * (2 * 500 + 8 * 100) for cost in costs.values())


def test_a_network_s_layers():
    network = kernels_plan.read("cnn1", 3, "bf16", 1.0)
    assert [name for name, _ in network.spiking] == ["conv1", "conv2", "fc1"]
    assert network.spiking[1][1] == Problem(3, 14, 14, 16, 32, (5, 5), dtype=torch.bfloat16, pool=2)
    assert network.spiking[2][1] == Problem(3, 1, 1, 800, 128, dtype=torch.bfloat16)
    assert network.analog == []
    assert [problem.pool for _, problem in network.spiking] == [2, 2, 1]
    assert network.pools == []
    assert network.weights == [(16, 25), (32, 16 * 25), (128, 800)]
    deep = kernels_plan.read("vgg16", 256, "bf16", 1.0)
    assert [name for name, _ in deep.analog] == ["conv1"]
    assert len(deep.spiking) == 14
    assert sum(problem.flops(which) for _, problem in deep.spiking for which in kernels_plan.PASSES) / 1e12 == (
        pytest.approx(0.8456, abs=1e-4)
    )


def test_totals_are_those_of_the_parts():
    network = kernels_plan.read("cnn1", 16, "bf16", 1.0)
    parts = kernels_plan.plan(network, "bf16", Machine())
    totals = kernels_plan.totals(parts)
    assert totals["ANN"]["ratio_to_ann"] == 1
    for provider, values in totals.items():
        own = [part for part in parts if part.provider == provider]
        assert values["launches"] == sum(part.cost.launches for part in own)
        assert values["model_us"] == round(sum(part.cost.us for part in own), 1)
        assert {part.pass_ for part in own} >= {"optimiser", "pooling", "bias_gradient"}
        assert [part.layer for part in own if part.pass_ == "pooling"] == ["conv1", "conv2"]
    by_pass = {part.pass_: [other.provider for other in parts if other.pass_ == part.pass_] for part in parts}
    assert by_pass["weight_standardisation"] == ["ours", "stacked"]
    assert by_pass["weight_casts"] == ["ANN"]


def test_standardisation_moves_every_weight_once_a_pass():
    """Read in 32 bits and written in 16; then both gradients, weights too: 6 and 10 bytes a weight."""
    network = kernels_plan.Network([], [], [], [(64, 1000), (10, 50_000)], 0)
    cost = kernels_plan.standardisation(network, Machine())
    assert cost.launches == 2
    assert cost.moved == pytest.approx(16 * (64_000 + 500_000), rel=0.01)


def test_few_programs_are_found():
    """The same grid is too small where the layer has work for more processors."""
    idle = dataclasses.replace(Cost(1, 32), executed=10**10)
    parts = [
        kernels_plan.Part("large", "forward", "ours", idle),
        kernels_plan.Part("small", "forward", "ours", dataclasses.replace(idle, executed=10**6)),
        kernels_plan.Part("full", "forward", "ours", dataclasses.replace(idle, programs=128)),
        kernels_plan.Part("theirs", "forward", "ANN", idle),
    ]
    assert [part.layer for part in kernels_plan.few_programs(parts)] == ["large"]


def test_the_plan_is_written_and_says_that_it_is_a_model(kernels, monkeypatch, tmp_path, capsys):
    options = ["--plan", "--model", "cnn1", "--batch-size", "8", "--machine.name", "small", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["kernels.py", *options])
    with pytest.raises(SystemExit) as exit_:
        kernels.main()
    assert exit_.value.code == 0
    assert "MODEL, not measured: cnn1, batch 8, bf16, σ = 1, small" in capsys.readouterr().out
    rows, about = record.read(tmp_path / "kernels-plan-small-cnn1.csv")
    totals = json.loads(about["totals"])
    assert about["is"] == "a model, not a measurement"
    assert json.loads(about["machine"])["name"] == "small"
    assert {row["provider"] for row in rows} == set(totals) == {"ours", "stacked", "ANN"}
    ours = [row for row in rows if row["provider"] == "ours"]
    assert sum(float(row["model_us"]) for row in ours) == pytest.approx(totals["ours"]["model_us"], abs=0.5)
    (forward,) = (row for row in ours if (row["layer"], row["pass"]) == ("conv2", "forward"))
    assert int(forward["programs"]) >= 1
    assert float(forward["executed_gflop"]) >= float(forward["dense_gflop"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "--tune"], "--tune and --plan must not be given together"),
        (["--model", "cnn1"], "--model must come with --plan; got it alone"),
        (["--machine.processors", "3"], "--machine must come with --plan; got it alone"),
        (["--surrogate"], "--surrogate must come with --plan; got it alone"),
        (["--plan", "--sigma", "0", "1"], "--plan must have one of --dtypes and one of --sigma; got more"),
        (["--plan", "--dtypes", "fp32"], "--plan must have 16 bits, which its model is for; got --dtypes fp32"),
    ],
)
def test_refuses_nonsense(kernels, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--device", "cpu", *arguments])
    with pytest.raises(SystemExit, match=f"kernels: {message}"):
        kernels.main()


def test_the_committed_plan_is_of_this_model(kernels):
    """Whoever changes the model writes the plan anew."""
    _, about = record.read(Path(kernels.__file__).with_name("results") / "kernels-plan-h100.csv")
    assert json.loads(about["machine"]) == dataclasses.asdict(Machine())


def test_a_step_of_vgg16_fills_the_processors_and_skips_what_is_nothing():
    """Of 0.847 TFLOP dense; ours has twice the products of the plain ANN, forward and in the weight's gradient."""
    parts = kernels_plan.plan(kernels_plan.read("vgg16", 256, "bf16", 1.0), "bf16", Machine())
    assert kernels_plan.few_programs(parts) == []
    ours = kernels_plan.totals(parts)["ours"]
    assert ours["executed_tflop"] <= 0.70
    assert ours["ratio_to_ann"] <= 1.35
    assert ours["bias_gradient_share"] < 0.03
