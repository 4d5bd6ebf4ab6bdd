"""Chips from TOML files: those that come with the package, and the user's own in the same form."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ttfs_triton.hardware.energy.chip import PRICES, Capacity, Chip
from ttfs_triton.hardware.energy.memory import Memory
from ttfs_triton.hardware.energy.prices import Price, convert

FOLDER = Path(__file__).parent / "chips"

# Asked for often, but nobody has published what one of their operations costs.
NO_FIGURES = {"loihi2": "Loihi 2", "akida": "Akida", "speck": "Speck"}

_KEYS = (
    *("name", "description", "node_nm", "voltage_v", "synop_scope", "included", "notes"),
    *("capacity", "prices", "alternatives", "memory", "precisions"),
)
_PRICE_KEYS = tuple(field.name for field in fields(Price))
_CAPACITY_KEYS = tuple(field.name for field in fields(Capacity))


def available_chips() -> tuple[str, ...]:
    """Names that `load_chip` takes without a file, one for each precision: "loihi", "horowitz45:int8", ..."""
    names = []
    for path in sorted(FOLDER.glob("*.toml")):
        precisions = tomllib.loads(path.read_text(encoding="utf-8")).get("precisions", {})
        names += [f"{path.stem}:{precision}" for precision in precisions] or [path.stem]
    return tuple(names)


def load_chip(name_or_path: str | Path) -> Chip:
    """A chip that comes with the package, or one of the user's own.

    Args:
        name_or_path: one of `available_chips()`, or the path of a TOML file in the form of those in
            `ttfs_triton/hardware/energy/chips`, with ":precision" behind it if the file has several.
    Raises:
        ValueError: there is no such chip or precision, nobody has published its figures, or the file does not pass:
            unknown key, wrong unit, negative number, low ≤ value ≤ high violated, no source or status, or a price that
            another one holds already. The message names file, key and rule.
    """
    path, precision = _locate(str(name_or_path))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"load_chip: {path} must be TOML; got an error: {error}.") from error
    reader = _Reader(path)
    reader.check_keys(values, _KEYS, "")
    precisions = reader.table(values, "precisions")
    if precision not in (precisions or {None}):
        names = ", ".join(f"{path.stem}:{name}" for name in precisions) or path.stem
        got = f"precision {precision}" if precision else "no precision"
        raise ValueError(f"load_chip: name_or_path must be one of {names}; got {got}. One chip has one precision.")
    return reader.chip(values, precision)


def as_chip(chip: Chip | str | Path) -> Chip:
    """A chip, loaded if it is a name or a path."""
    return chip if isinstance(chip, Chip) else load_chip(chip)


def _locate(name: str) -> tuple[Path, str | None]:
    """File and precision."""
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
    raise ValueError(
        f"load_chip: name_or_path must be one of {', '.join(known)} or the path of a TOML file; got {name}."
        + _suggestion(path, [other.partition(":")[0] for other in known])
    )


class _Reader:
    """Turns the tables of one file into a chip; errors name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def chip(self, values: Mapping[str, Any], precision: str | None) -> Chip:
        tables = [values] if precision is None else [values, self.table(values["precisions"], precision, "precisions.")]
        if precision is not None:
            self.check_keys(tables[1], ("bits", "prices"), f"precisions.{precision}.")
        found: dict[str, Price] = {}
        for table, where in zip(tables, ("", f"precisions.{precision}."), strict=False):
            prices = self.table(table, "prices", where)
            self.check_keys(prices, PRICES, f"{where}prices.")
            found |= {key: self.price(entry, f"{where}prices.{key}") for key, entry in prices.items()}
        alternatives = self.table(values, "alternatives")
        name = self.path.stem if precision is None else f"{self.path.stem}:{precision}"
        try:
            return Chip(
                name=name,
                description=self.text(values, "description"),
                synop_scope=self.text(values, "synop_scope"),
                prices=found,
                memory=self.memory(values),
                capacity=self.capacity(values),
                bits=self.number(tables[-1], "bits", f"precisions.{precision}.", whole=True) if precision else None,
                node_nm=self.number(values, "node_nm"),
                voltage_v=self.number(values, "voltage_v"),
                included=self.texts(values, "included"),
                alternatives={key: self.price(entry, f"alternatives.{key}") for key, entry in alternatives.items()},
                notes=self.texts(values, "notes"),
            )
        except ValueError as error:
            message = str(error).removeprefix(f"Chip {name}: ")
            raise error if message.startswith("load_chip") else self.error(message) from None

    def price(self, entry: Any, where: str) -> Price:
        if not isinstance(entry, dict):
            raise self.error(f"{where} must be a table with value, unit, status and source; got {entry}.")
        self.check_keys(entry, _PRICE_KEYS, f"{where}.")
        for key in ("unit", "status", "source", "note"):
            if not isinstance(entry.get(key, "" if key == "note" else None), str):
                raise self.error(f"{where}.{key} must be a text; got {entry.get(key, 'none')}.")
        values: dict[str, Any] = {"value": None} | dict(entry)
        try:
            return Price(**values)
        except ValueError as error:
            raise self.error(f"{where}.{str(error).removeprefix('Price: ')}") from None

    def memory(self, values: Mapping[str, Any]) -> Memory | None:
        table = self.table(values, "memory")
        if not table:
            return None
        self.check_keys(table, ("word_bits", "packed", "addressing", "accesses"), "memory.")
        for key in ("packed", "addressing"):
            if not isinstance(table.get(key, False), bool):
                raise self.error(f"memory.{key} must be true or false; got {table[key]}.")
        self.number(table, "word_bits", "memory.", whole=True)
        points = []
        for index, entry in enumerate(table.get("accesses", [])):
            where = f"memory.accesses[{index}]"
            if not isinstance(entry, dict) or self.number(entry, "size_kb", f"{where}.") is None:
                raise self.error(f"{where}.size_kb must be a positive number; got none.")
            price = self.price({key: value for key, value in entry.items() if key != "size_kb"}, where)
            if price.dimension != "energy" or price.value is None:
                raise self.error(f"{where} must be a published energy; got {price}.")
            points.append((round(convert(entry["size_kb"], "kB", "B")), price.in_unit("pJ")))
        sizes = [size for size, _ in points]
        if not sizes or sizes != sorted(set(sizes)):
            raise self.error(f"memory.accesses must have rising sizes, at least one; got {sizes}.")
        options = {key: value for key, value in table.items() if key != "accesses"}
        return Memory(tuple(points), **options)

    def capacity(self, values: Mapping[str, Any]) -> Capacity:
        table = self.table(values, "capacity")
        self.check_keys(table, _CAPACITY_KEYS, "capacity.")
        if table and "source" not in table:
            raise self.error("capacity.source must be given; got none.")
        for key in ("neurons", "synapses", "weight_bits"):
            self.number(table, key, "capacity.", whole=True)
        return Capacity(**table)

    def table(self, values: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
        table = values.get(key, {})
        if not isinstance(table, dict):
            raise self.error(f"{where}{key} must be a table; got {table}.")
        return table

    def text(self, values: Mapping[str, Any], key: str) -> str:
        text = values.get(key)
        if not isinstance(text, str) or not text:
            raise self.error(f"{key} must be a text; got {text}.")
        return text

    def texts(self, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
        texts = values.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self.error(f"{key} must be a list of texts; got {texts}.")
        return tuple(texts)

    def number(self, values: Mapping[str, Any], key: str, where: str = "", *, whole: bool = False) -> Any:
        number = values.get(key)
        if number is None:
            return None
        if isinstance(number, bool) or not isinstance(number, int if whole else int | float) or number <= 0:
            raise self.error(f"{where}{key} must be a positive {'whole ' if whole else ''}number; got {number}.")
        return number

    def check_keys(self, values: Mapping[str, Any], known: Collection[str], where: str) -> None:
        for key in values:
            if key not in known:
                rule = f"{where}{key} must be a known key ({', '.join(known)}); got {key}."
                raise self.error(rule + _suggestion(key, known))

    def error(self, message: str) -> ValueError:
        return ValueError(f"load_chip: {self.path}: {message}")


def _suggestion(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""
