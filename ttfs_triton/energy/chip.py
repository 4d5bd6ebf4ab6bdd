"""Chips read from TOML files, those of the package and the user's own."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ttfs_triton.command_line import problem_lines
from ttfs_triton.energy.prices import Chip
from ttfs_triton.untrusted_files import read_regular

FOLDER = Path(__file__).parent / "chips"

# Chips that users often ask for, although nobody has published the energy of one of their operations.
NO_FIGURES = {"loihi2": "Loihi 2", "akida": "Akida", "speck": "Speck"}

MAX_BYTES = 2**18  # of a chip file; the package's own files have up to 10,000


def available_chips() -> tuple[str, ...]:
    """Names that `load_chip` accepts without a file, one for each precision: "loihi", "horowitz45:int8", ..."""
    names = []
    for path in sorted(FOLDER.glob("*.toml")):
        precisions = tomllib.loads(path.read_text(encoding="utf-8")).get("precisions", {})
        names += [f"{path.stem}:{precision}" for precision in precisions] or [path.stem]
    return tuple(names)


def load_chip(name_or_path: Chip | str | Path) -> Chip:
    """A chip that comes with the package, or a chip from the user's own file.

    Args:
        name_or_path: one of `available_chips()`, or the path of a TOML file like those in
            `ttfs_triton/energy/chips`, followed by ":precision" if the file has several precisions. A chip is returned
            as it is.
    Raises:
        ValueError: the chip or precision does not exist, its figures are unpublished, or the file is invalid. The
            message names file, key and rule.
    Example:
        >>> loihi = load_chip("loihi")
        >>> loihi.description, str(loihi.prices["synop"])
        ('Intel Loihi, 14 nm, before silicon, at 0.75 V', '23.6 pJ, simulated')
        >>> load_chip("horowitz45:int8").prices["multiply_accumulate"].value
        0.23
    """
    if isinstance(name_or_path, Chip):
        return name_or_path
    path, precision = _locate(str(name_or_path))
    try:
        values = tomllib.loads(read_regular(path, MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not read, no UTF-8 or TOML, invalid dates, many brackets
        raise ValueError(f"load_chip: {path} must be TOML; got an error: {error}.") from error
    precisions = values.pop("precisions", {})
    own = precisions.get(precision, {}) if isinstance(precisions, dict) else None
    if not isinstance(own, dict) or precision not in (precisions or {None}):
        names = ", ".join(f"{path.stem}:{name}" for name in precisions) if isinstance(precisions, dict) else ""
        got = f"precision {precision}" if precision else "no precision"
        remedy = "Each precision is a table [precisions.NAME] in the file."
        raise ValueError(f"load_chip: name_or_path must be one of {names or path.stem}; got {got}. {remedy}")
    prices = (values.get("prices", {}), own.get("prices", {}))
    values |= own | {"name": path.stem if precision is None else f"{path.stem}:{precision}"}
    if all(isinstance(table, dict) for table in prices):
        values["prices"] = prices[0] | prices[1]
    try:
        return TypeAdapter(Chip).validate_json(json.dumps(values, default=str))  # from JSON, tables become dataclasses
    except ValidationError as error:
        lines = "\n".join(problem_lines(error))
        raise ValueError(f"load_chip: {path} must follow the files in {FOLDER}:\n{lines}") from None


def load_chips(names: Iterable[str], every: Iterable[str] = ()) -> list[Chip]:
    """Chips by name, each once; "all" stands for those of `every`, then all that come with the package."""
    named = (each for name in names for each in ((*every, *available_chips()) if name == "all" else (name,)))
    return [load_chip(name) for name in dict.fromkeys(named)]


def _locate(name: str) -> tuple[Path, str | None]:
    """File and precision of a chip's name or path."""
    path, separator, precision = name.rpartition(":") if re.search(r":\w+$", name) else (name, "", "")
    if path.endswith(".toml"):
        if not Path(path).is_file():
            raise ValueError(f"load_chip: name_or_path must be an existing file; got {path}.")
        return Path(path), precision if separator else None
    if (file := FOLDER / f"{path}.toml").is_file():
        return file, precision if separator else None
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if plain in NO_FIGURES:
        raise ValueError(
            f"load_chip: name_or_path must be a chip with published prices; got {name}. No public per-operation figure "
            f"exists for {NO_FIGURES[plain]}. If you have one, write a TOML file."
        )
    known = available_chips()
    close = difflib.get_close_matches(path, [other.partition(":")[0] for other in known], n=1)
    remedy = f" Did you mean {close[0]}?" if close else ""
    known = ", ".join(known)
    raise ValueError(f"load_chip: name_or_path must be one of {known} or the path of a TOML file; got {name}.{remedy}")
