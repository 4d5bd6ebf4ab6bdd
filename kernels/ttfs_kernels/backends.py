"""Choice of a call's backend: by its argument or, if that is "auto", by the environment and the device."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from ttfs_kernels.autograd import autocasts

BACKENDS = ("auto", "triton", "torch")
VARIABLE = "TTFS_KERNELS_BACKEND"

# Plain module state, no cache functions: torch.compile traces through `backend_for`.
_HAS_TRITON = find_spec("triton") is not None
_choice = os.environ.get(VARIABLE) or "auto"
if _choice not in BACKENDS:
    raise ValueError(f"environment variable {VARIABLE} must be one of {', '.join(BACKENDS)}; got {_choice!r}.")


def backend_for(function: str, backend: str, x: Tensor) -> str:
    """The backend of a call, "torch" or "triton"; if "triton" is asked for and cannot run, an error says why."""
    if backend == "auto":
        backend = _choice
    if backend == "torch" or (backend == "auto" and not x.is_cuda):
        return "torch"
    check_name(function, backend)
    reason = why_no_triton(x.device, torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype)
    if reason is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise RuntimeError(
        f'{function}: backend="triton" must be able to run Triton kernels; {reason}. Use backend="torch" or "auto".'
    )


def why_no_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run on a device with a dtype, or None if they can."""
    if not _HAS_TRITON:
        return "Triton is not installed (pip install triton; Linux only)"
    from ttfs_kernels.triton.blocks import unavailable

    return unavailable(device, dtype)


def check_name(function: str, name: str) -> None:
    """Raise ValueError unless `name` is a backend; the message starts with the name of the function."""
    if name not in BACKENDS:
        raise ValueError(f"{function}: backend must be one of {', '.join(BACKENDS)}; got {name!r}.")
