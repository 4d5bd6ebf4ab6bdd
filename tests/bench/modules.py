"""Modules of `bench/` for tests that need them at their top.

The folder does not stay on the path: it holds a `kernels`, which is another project's name.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCH))
    import _bench as bench
    import _gpu_work as gpu_work
    import _kernels_compile as kernels_compile
    import _kernels_layers as kernels_layers
    import _kernels_plan as kernels_plan
    import _machine_code as machine_code
    import _plan_model as plan_model
    import accuracy
    import break_even
    import causal_set
    import energy
    import frontier
    import gpu
    import peers
    import table1
    import train_step

    specification = importlib.util.spec_from_file_location("bench_kernels", BENCH / "kernels.py")
    assert specification is not None
    assert specification.loader is not None
    kernels = sys.modules["bench_kernels"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(kernels)

__all__ = [
    "BENCH",
    "accuracy",
    "bench",
    "break_even",
    "causal_set",
    "energy",
    "frontier",
    "gpu",
    "gpu_work",
    "kernels",
    "kernels_compile",
    "kernels_layers",
    "kernels_plan",
    "machine_code",
    "peers",
    "plan_model",
    "table1",
    "train_step",
]
