"""Which provider and which blocks a pass gets. Choices are looked up, never timed here.

For backend "triton": the configuration of the tuned table, or the default. For "auto": the faster of both providers
in the tuned table, at this shape or at one near it; a shape that nobody has measured goes to the library, so that no
one is slower than with the stacked library call. A forward pass with a pool has a choice of its own, for both backends:
blocks of the convolution that pools in its epilogue, or None for the choice without a pool and a kernel that pools;
its entries have the time of the latter as `library_ms`. Tables are shipped, one a GPU name, in `tuning/`; `measure.py`
writes a user's own into a cache that is read first. Choices depend on nothing else, so all processes make the same.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ttfs_kernels import direct
from ttfs_kernels.triton_backend import programs
from ttfs_kernels.triton_backend.configs import Config, default_config
from ttfs_kernels.triton_backend.formulation import refused, triton_version
from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.problem import Problem

SHIPPED = Path(__file__).with_name("tuning")
FORMAT_VERSION = 1
# Two shapes are near if each of their sizes is at most this many times the other's.
NEAR = 2.0


class Choice(NamedTuple):
    """Blocks of our kernel, or None for the library; and why: "default", "measured", "near" or "unmeasured"."""

    config: Config | None
    reason: str


class Entry(NamedTuple):
    """One measurement of a table: the best blocks of our kernel, its time and the library's in milliseconds.

    The library's time is inf, null in JSON, where its result was wrong.
    """

    which: str
    problem: Problem
    precision: str
    config: Config
    triton_ms: float
    library_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "pass": self.which,
            "problem": self.problem.to_dict(),
            "precision": self.precision,
            "config": self.config.to_dict(),
            "triton_ms": self.triton_ms,
            "library_ms": None if math.isinf(self.library_ms) else self.library_ms,
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Entry:
        """The inverse of `to_dict`."""
        problem, config = Problem.from_dict(values["problem"]), Config.from_dict(values["config"])
        library_ms = values["library_ms"]
        times = float(values["triton_ms"]), math.inf if library_ms is None else float(library_ms)
        return Entry(values["pass"], problem, values["precision"], config, *times)


_choices: dict[tuple[str, Problem, Device, str, str], Choice] = {}
_tables: dict[str, list[Entry]] = {}


def choose(which: str, problem: Problem, device: Device, precision: str, backend: str) -> Choice:
    """The provider and blocks of one pass.

    Args:
        which: "forward", "grad_x" or "grad_w".
        problem: the layer.
        device: what it runs on.
        precision: of float32 products, "ieee" or "tf32".
        backend: "triton" (our kernel) or "auto".
    """
    key = (which, problem.of_pass(which), device, precision, backend)
    choice = _choices.get(key)
    if choice is None:
        choice = _choices[key] = _look_up(*key)
    return choice


def choices() -> dict[tuple[str, Problem, Device, str, str], Choice]:
    """All choices that this process has made so far."""
    return dict(_choices)


def forget() -> None:
    """Read tables again and choose anew."""
    _choices.clear()
    _tables.clear()
    programs.forget()
    direct.forget()


def table_paths(device: Device) -> list[Path]:
    """Where tables of a device may be: the user's own, then the shipped one."""
    name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") + ".json"
    return [cache_folder() / name, SHIPPED / name]


def cache_folder() -> Path:
    """Where measurements are kept: $TTFS_KERNELS_CACHE, or ttfs_kernels in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TTFS_KERNELS_CACHE") or Path(root) / "ttfs_kernels")


def read_table(path: Path) -> list[Entry]:
    """The entries of a table; none if there is no file.

    Raises:
        ValueError: the file is not a table of this format version; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {content['format_version']!r}")
        return [Entry.from_dict(values) for values in content["entries"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must be a tuning table of format version {FORMAT_VERSION}; {error}. "
            "Delete it, or write it again with `python bench/kernels.py --tune`."
        ) from error


def table(device: Device) -> list[Entry]:
    """Measurements for a device, the user's own first."""
    if device.name not in _tables:
        _tables[device.name] = [entry for path in table_paths(device) for entry in read_table(path)]
    return _tables[device.name]


def use(device: Device, entries: list[Entry]) -> None:
    """Choose by these measurements instead of by the device's tables, until `forget`."""
    forget()
    _tables[device.name] = entries


def distance(a: Problem, b: Problem) -> float:
    """How far two shapes are apart, in doublings, at most over their sizes; inf if they differ in kind."""
    kinds = [
        (
            p.kernel,
            p.stride,
            p.padding,
            p.dilation,
            p.groups,
            p.dtype,
            p.with_slope,
            p.surrogate,
            p.pool,
            p.skip,
            p.height == p.width == 1,
        )
        for p in (a, b)
    ]
    if kinds[0] != kinds[1]:
        return math.inf
    sizes = zip((a.rows, a.in_channels, a.out_channels), (b.rows, b.in_channels, b.out_channels), strict=True)
    return max(abs(math.log2(max(1, one) / max(1, other))) for one, other in sizes)


def _look_up(which: str, problem: Problem, device: Device, precision: str, backend: str) -> Choice:
    version = triton_version()
    entries = [
        (distance(entry.problem, problem), entry)
        for entry in table(device)
        if entry.which == which
        and entry.precision == precision
        and refused(entry.config.form, device.chip, version) is None
    ]
    apart, entry = min(entries, key=lambda pair: pair[0], default=(math.inf, None))
    if entry is None or apart > math.log2(NEAR):
        if backend == "triton" and problem.pool == 1:
            return Choice(default_config(which, problem, device.chip, precision, device.processors), "default")
        return Choice(None, "unmeasured")
    reason = "measured" if entry.problem == problem else "near"
    if (backend == "auto" or problem.pool > 1) and entry.library_ms < entry.triton_ms:
        return Choice(None, reason)
    return Choice(entry.config, reason)
