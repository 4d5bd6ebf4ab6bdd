"""Modules of `bench/` for tests that need them at their top.

The folder does not stay on the path: it holds a `kernels`, which is another project's name.
"""

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCH))
    import _gpu_driver as gpu_driver
    import _kernels_compile as kernels_compile
    import _kernels_measure as measure
    import _kernels_plan as kernels_plan
    import _kernels_trial as trial
    import _lemaire as lemaire
    import _machine_code as machine_code
    import _networks as networks
    import _plan_model as plan_model
    import _planning as planning
    import _published as published
    import break_even
    import checkpoint_choice
    import cross_check
    import energy
    import kernels_tried
    import quickstart
    import table1

__all__ = [
    "BENCH",
    "break_even",
    "checkpoint_choice",
    "cross_check",
    "energy",
    "gpu_driver",
    "kernels_compile",
    "kernels_plan",
    "kernels_tried",
    "lemaire",
    "machine_code",
    "measure",
    "networks",
    "plan_model",
    "planning",
    "published",
    "quickstart",
    "table1",
    "trial",
]
