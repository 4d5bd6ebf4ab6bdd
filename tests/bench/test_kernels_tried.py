"""`bench/kernels_tried.py`: what is compiled is what was asked for. Nothing is compiled here."""

from tests.bench.modules import kernels_tried
from ttfs_kernels.triton_backend import passes
from ttfs_kernels.triton_backend.launch import Launch

trials = list(kernels_tried.trials())


def test_each_trial_stands_beside_its_alternative():
    variants: dict[tuple, set[str]] = {}
    for trial in trials:
        key = (trial.tried, trial.target, trial.number, trial.which, trial.layer, trial.surrogate)
        variants.setdefault(key, set()).add(trial.variant)
    assert all(len(found) == 2 for found in variants.values())
    assert len(variants) * 2 == len(trials)


def test_plans_are_those_of_the_trial_and_only_within():
    before = passes.inputs_first, Launch.options
    for trial in trials:
        with kernels_tried.as_tried(trial):
            launch = kernels_tried.kernel_of(trial).launch()
            assert launch.options["enable_fp_fusion"] == trial.fused
            if trial.which == "grad_w" and not trial.target.startswith("sm_90"):
                assert launch.arguments["INPUTS_FIRST"] != trial.neurons_first
            if trial.which == "forward":
                assert launch.arguments["POOL"] == trial.pool
            sizes = {"block_m": "BLOCK_M", "block_n": "BLOCK_N", "block_k": "BLOCK_K"}
            for name, value in trial.changes.items():
                assert value == (launch.arguments[sizes[name]] if name in sizes else getattr(launch, name))
    assert (passes.inputs_first, Launch.options) == before
