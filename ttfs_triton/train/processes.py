"""Sums over the processes of a run."""

from typing import cast

from accelerate import Accelerator
from torch import Tensor


def sum_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum a tensor over all processes; every process gets the result, `values` stays as it is."""
    return cast(Tensor, accelerator.reduce(values.clone(), "sum"))
