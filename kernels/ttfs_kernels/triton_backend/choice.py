"""Choice of a pass's provider (our kernel or the library) and block sizes, by a table of measurements if there is one.

Backend "triton" always chooses our kernel, with the table's blocks or, for a shape that the table lacks, default
blocks. "auto" does the same, except where the table says that the library is faster.

Tables lie in `tuning/`, one per GPU name; `bench/kernels.py --tune` writes them. Nothing is timed here: choices depend
on tables alone, so all processes choose alike.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.planning import Config, default_config
from ttfs_kernels.triton_backend.problem import Problem

SHIPPED = Path(__file__).with_name("tuning")
FORMAT_VERSION = 2


class Entry(NamedTuple):
    """One measurement of a table: the best blocks of our kernel, its time and the library's time in milliseconds.

    The library's time is inf (null in JSON) if its result was wrong.
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
            "config": dataclasses.asdict(self.config),
            "triton_ms": self.triton_ms,
            "library_ms": None if math.isinf(self.library_ms) else self.library_ms,
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Entry:
        """The inverse of `to_dict`."""
        problem, config = Problem.from_dict(values["problem"]), Config(**values["config"])
        library_ms = values["library_ms"]
        times = float(values["triton_ms"]), math.inf if library_ms is None else float(library_ms)
        return Entry(values["pass"], problem, values["precision"], config, *times)


_choices: dict[tuple[str, Problem, Device, str, str], Config | None] = {}
_tables: dict[str, dict[tuple[str, Problem, str], Entry]] = {}  # by device; entries by pass, layer and precision


def choose(which: str, problem: Problem, device: Device, precision: str, backend: str) -> Config | None:
    """Blocks of our kernel for one pass; None: the library.

    Args:
        which: "forward", "grad_x" or "grad_w".
        problem: the layer.
        device: the device it runs on.
        precision: precision of float32 products, "ieee" or "tf32".
        backend: "triton" (our kernel) or "auto".
    """
    key = (which, problem.of_pass(which), device, precision, backend)
    if key not in _choices:
        if device.name not in _tables:
            entries = read_table(table_path(device))
            _tables[device.name] = {(entry.which, entry.problem, entry.precision): entry for entry in entries}
        entry = _tables[device.name].get((which, key[1], precision))
        if entry is None:
            _choices[key] = default_config(which, key[1], device.chip, precision, device.processors)
        else:
            _choices[key] = None if backend == "auto" and entry.library_ms < entry.triton_ms else entry.config
    return _choices[key]


def forget() -> None:
    """Forget all choices and tables; the next choice reads its table again."""
    _choices.clear()
    _tables.clear()


def table_path(device: Device) -> Path:
    """Path of a device's table; the file need not exist."""
    return SHIPPED / (re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") + ".json")


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
