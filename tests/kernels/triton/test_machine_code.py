"""The machine code of our kernels' default blocks, and of kernels that must be refused.

Triton interprets in this process; others compile. A chip takes minutes of a core, so by default only one layer is
compiled, for sm_90.
"""

import json

import pytest
import torch

from tests.bench.modules import modules, run_python
from ttfs_kernels import Neuron
from ttfs_kernels.triton import common, neurons
from ttfs_kernels.triton.blocks import Config, blocks_of
from ttfs_kernels.triton.problem import Problem

bench, kernels_compile, machine_code = modules("_bench", "_kernels_compile", "_machine_code")

LINEAR = {"name": "f", "height": 1, "width": 1, "in_channels": 512, "out_channels": 4096}
TARGETS = kernels_compile.TARGETS
CASES = [("sm_90", True), *(pytest.param(target, False, marks=pytest.mark.slow) for target in TARGETS)]


@pytest.mark.parametrize(("target", "quick"), CASES)
def test_default_blocks_compile_to_clean_loops(tmp_path, target, quick):
    """`bench/compile.py` refuses spills, serialised products and, on sm_90, operands in registers, which may race."""
    words = ["--targets", target, "--dtypes", "bf16", "--sigma", "1", "--output", f"{tmp_path}"]
    if quick:
        (tmp_path / "shapes.json").write_text(json.dumps([LINEAR]), encoding="utf-8")
        words += ["--shapes", f"{tmp_path}/shapes.json", "--workers", "1", "--batch-size", "64"]
    assert " kernels compiled, 0 refused" in run_python("bench/compile.py", *words)
    rows, _ = bench.read(tmp_path / "kernels-compile.csv")
    kernels = {"conv2d_forward", "merge", "fire_rows", "differentiate_rows", "conv2d_grad_x", "conv2d_grad_w"}
    assert kernels | {"sum_splits"} == {row["kernel"] for row in rows}
    for row in rows:
        assert (row["verdict"], row["max_loop_spills"]) == ("ok", "0"), row
        assert int(row["min_programs_per_processor"]) >= (1 if row["blocks"] else 2), row


def main() -> None:
    """Print the verdicts on four kernels, as JSON: racing, with too few registers, not to be built, and good."""
    problem = Problem(64, 1, 1, 512, 4096, dtype=torch.bfloat16)
    inputs_first = blocks_of("forward", problem, TARGETS["sm_80"], "ieee")  # as for an older chip
    configs = inputs_first, Config(128, 128, 64, 4, 3), Config(16, 16, 24, 4, 1), Config(64, 64, 32, 4, 2)
    for target, config in zip(("sm_90", "sm_90", "sm_90", "gfx942"), configs, strict=True):
        kernel = kernels_compile.Kernel(target, "bf16", "forward", problem, config, False, 0)
        print(json.dumps(kernels_compile.row(kernel, kernels_compile.build(kernel))["verdict"]))


def test_what_must_not_be_built_is_refused():
    lines = run_python("-c", f"from {__name__} import main; main()").splitlines()
    racing, starved, broken, good = map(json.loads, lines)
    assert racing == "refused: mixes register and shared operands"
    assert starved.startswith("refused: serialised (C75")
    assert "spills in the loop" in starved
    assert broken.startswith("refused: cannot be built, CompilationError")
    assert good == "ok"


def count_loads() -> None:
    """Print how many loads the firing of 24 and of 32 channels has, as JSON."""
    loads = []
    for channels in (24, 32):
        A = torch.empty(4096, channels, dtype=torch.bfloat16, device="meta")
        with common.planned() as launches:
            neurons.fire_neurons(neurons.Neurons(A, A, None, None, None, None), Neuron(), A.dtype)
        loads.append(machine_code.inspect(launches[0], TARGETS["sm_90"]).loop["LDG"])
    print(json.dumps(loads))


def test_24_channels_are_read_as_vectors_although_triton_detects_multiples_of_16_alone():
    loads = json.loads(run_python("-c", f"from {__name__} import count_loads; count_loads()"))
    assert 0 < loads[0] <= loads[1]
