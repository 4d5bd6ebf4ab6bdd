"""Times of the layers that a program really has, taken once, so that `backend="auto"` need not guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ttfs_kernels.backends import why_no_triton


def tune(
    *,
    thorough: bool = False,
    report: Callable[[str], None] | None = None,
    fault: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Time every pass that this process has used on the current GPU and that no table covers.

    Call it after a first forward and backward pass. Our kernel and the library call are compared with float64, then
    timed; the times go into the user's own table, where later programs find them, and choices are made anew.

    Args:
        thorough: try all candidate blocks of our kernel, minutes a layer, instead of the default ones, seconds a layer.
        report: gets one line a measurement.
        fault: gets one line for each result that must agree with float64 and does not, the library's or that of our
            kernel in its default blocks; what is wrong is not chosen where the other is right.
    Returns:
        All measurements of this GPU as plain values, for `use_measurements` in the other processes of a distributed
        program: then all choose alike. Empty where Triton kernels cannot run: there is nothing to choose.
    Raises:
        RuntimeError: a result disagrees with float64, and `fault` is None.
        OSError: the table cannot be written.
    Example, on a GPU::

        network(images).sum().backward()
        ttfs_kernels.tune(report=print)
    """
    device = _current_device()
    if why_no_triton(device, torch.float32) is not None:
        return []
    from ttfs_kernels.triton_backend import choice, measure
    from ttfs_kernels.triton_backend.launch import device_of

    this = device_of(device)
    unmeasured = [
        (which, problem, precision)
        for (which, problem, where, precision, _), made in choice.choices().items()
        if where == this and made.reason in ("default", "unmeasured")
    ]
    if unmeasured:
        path = choice.table_paths(this)[0]
        measure.complete(path, unmeasured, device, thorough=thorough, report=report, fault=fault)
    return [entry.to_dict() for entry in choice.table(this)]


def use_measurements(measurements: Sequence[dict[str, Any]]) -> None:
    """Choose by these measurements of the current GPU, instead of by its tables, in this process.

    Args:
        measurements: what `tune` returned in another process. Empty: nothing changes.
    Raises:
        KeyError, TypeError, ValueError: they are something else.
    """
    if not measurements:
        return
    from ttfs_kernels.triton_backend import choice
    from ttfs_kernels.triton_backend.launch import device_of

    choice.use(device_of(_current_device()), [choice.Entry.from_dict(values) for values in measurements])


def _current_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
