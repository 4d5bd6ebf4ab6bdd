"""Choice of a call's backend: by its argument or, if that is "auto", by `backend()`, the environment and the device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from ttfs_kernels.autograd import autocasts

BACKENDS = ("auto", "triton", "torch")
VARIABLE = "TTFS_KERNELS_BACKEND"

# Plain module state, no cache functions: torch.compile traces through `backend_for`.
_HAS_TRITON = find_spec("triton") is not None
_choice, _source = os.environ.get(VARIABLE) or "auto", VARIABLE if os.environ.get(VARIABLE) else "default"
if _choice not in BACKENDS:
    raise ValueError(f"environment variable {VARIABLE} must be one of {', '.join(BACKENDS)}; got {_choice!r}.")


@dataclass(frozen=True)
class BackendReport:
    """The choice that `backend="auto"` makes in this process, and its reasons.

    Attributes:
        choice: "auto", "triton" or "torch".
        source: where the choice comes from: "backend()", the name of the environment variable, or "default".
        unavailable: for each device, why Triton kernels cannot run there; an empty string if they can.
        passes: the choices made so far, one line per pass and layer shape: provider, blocks and reason.
    """

    choice: str
    source: str
    unavailable: dict[str, str]
    passes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"backend: {self.choice} ({self.source})"]
        lines += [f"Triton on {device}: {why or 'available'}" for device, why in self.unavailable.items()]
        return "\n".join([*lines, *self.passes])


def backend(choice: str | None = None) -> BackendReport:
    """Return, and with an argument set, the choice that `backend="auto"` makes in this process.

    Args:
        choice: "torch"; "triton"; or "auto", on a GPU Triton kernels except for passes where a tuning table says that
            a library call is faster, elsewhere "torch". None changes nothing.
    Returns:
        The current choice and its source. Initially it is the environment variable TTFS_KERNELS_BACKEND, else "auto".
    Raises:
        ValueError: `choice` is not the name of a backend.
    """
    global _choice, _source
    if choice is not None:
        check_name("backend", choice)
        _choice, _source = choice, "backend()"
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    unavailable = {str(device): why_no_triton(device, torch.float32) or "" for device in devices}
    return BackendReport(_choice, _source, unavailable, _passes())


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run on at least one device of this machine."""
    report = backend()
    return ("triton", "torch") if "" in report.unavailable.values() else ("torch",)


def backend_for(function: str, backend: str, x: Tensor) -> str:
    """The backend of a call: "torch", "triton", or "auto" for Triton kernels except where a library call is faster.

    Raises:
        ValueError: `backend` is not the name of a backend.
        RuntimeError: `backend` is "triton", and Triton kernels cannot run; the message says why.
    """
    if backend == "auto":
        backend = _choice
    if backend == "torch" or (backend == "auto" and not x.is_cuda):
        return "torch"
    check_name(function, backend)
    reason = why_no_triton(x.device, torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype)
    if reason is None:
        return backend
    if backend == "auto":
        return "torch"
    raise RuntimeError(
        f'{function}: backend="triton" must be able to run Triton kernels; {reason}. Use backend="torch" or "auto".'
    )


def why_no_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run on a device with a dtype, or None if they can."""
    if not _HAS_TRITON:
        return "Triton is not installed (pip install triton; Linux only)"
    from ttfs_kernels.triton_backend.launch import unavailable

    return unavailable(device, dtype)


def check_name(function: str, name: str) -> None:
    """Raise ValueError unless `name` is a backend; the message starts with the name of the function."""
    if name not in BACKENDS:
        raise ValueError(f"{function}: backend must be one of {', '.join(BACKENDS)}; got {name!r}.")


def _passes() -> tuple[str, ...]:
    if not _HAS_TRITON:
        return ()
    from ttfs_kernels.triton_backend.choice import choices

    return tuple(
        f"{which} {problem.to_dict()}: {'library' if choice.config is None else choice.config} ({choice.reason})"
        for (which, problem, *_), choice in choices().items()
    )
