"""Chips from TOML files: those that come with the package, and the user's own in the same form."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ttfs_triton.hardware.energy.chip import NOT_STATED, Capacity, Chip, Memory, Whole, suggestion
from ttfs_triton.hardware.energy.prices import Price, convert, refuse

FOLDER = Path(__file__).parent / "chips"

# Asked for often, but nobody has published what one of their operations costs.
NO_FIGURES = {"loihi2": "Loihi 2", "akida": "Akida", "speck": "Speck"}

MAX_BYTES = 2**18  # of a file; those that come with the package have 10,000
CONFIG = ConfigDict(extra="forbid", strict=True)
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class _Access(Price):
    size_kb: Positive

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension != "energy" or self.value is None:
            refuse("Memory", "price", "be a published energy", self)


class _Table(BaseModel):
    """A table of a file: known keys only, and values of exactly their types."""

    model_config = CONFIG


class _Memory(_Table):
    accesses: tuple[_Access, ...]
    word_bits: Whole = 64
    packed: bool = False
    addressing: bool = False

    @model_validator(mode="after")
    def _rises(self) -> _Memory:
        sizes = [size for size, _ in self.memory().points]
        if not sizes or sizes != sorted(set(sizes)):
            refuse("Memory", "accesses", "have rising sizes, at least one", sizes)
        return self

    def memory(self) -> Memory:
        points = ((round(convert(each.size_kb, "kB", "B")), each.in_unit("pJ")) for each in self.accesses)
        return Memory(tuple(points), self.word_bits, self.packed, self.addressing)


class _Precision(_Table):
    bits: Whole | None = None
    prices: dict[str, Price] = {}


class _File(_Precision):
    description: Text
    synop_scope: Text
    node_nm: float | None = None
    voltage_v: float | None = None
    included: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    capacity: Capacity = NOT_STATED
    alternatives: dict[str, Price] = {}
    memory: _Memory | None = None
    precisions: dict[str, _Precision] = {}

    def chip(self, name: str, own: _Precision) -> Chip:
        shared = {key: getattr(self, key) for key in _File.model_fields if key not in ("precisions", "memory")}
        shared |= {"bits": own.bits, "prices": self.prices | own.prices}
        return Chip(name=name, memory=None if self.memory is None else self.memory.memory(), **shared)


_KEYS = {*_File.model_fields, *_Memory.model_fields}
_KEYS |= {own.name for table in (_Access, Capacity) for own in fields(table)}


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
    Example:
        >>> loihi = load_chip("loihi")
        >>> loihi.description, str(loihi.prices["synop"])
        ('Intel Loihi, 14 nm, before silicon, at 0.75 V', '23.6 pJ, simulated')
        >>> load_chip("horowitz45:int8").prices["multiply_accumulate"].value
        0.23
    """
    path, precision = _locate(str(name_or_path))
    try:
        file = _File.model_validate_json(_read(path))
    except ValidationError as error:
        raise ValueError(f"load_chip: {path}: {' '.join(map(_sentence, error.errors()))}") from None
    if precision not in (file.precisions or {None}):
        names = ", ".join(f"{path.stem}:{name}" for name in file.precisions) or path.stem
        got = f"precision {precision}" if precision else "no precision"
        raise ValueError(f"load_chip: name_or_path must be one of {names}; got {got}. One chip has one precision.")
    name = path.stem if precision is None else f"{path.stem}:{precision}"
    try:
        return file.chip(name, file if precision is None else file.precisions[precision])
    except ValueError as error:
        raise ValueError(f"load_chip: {path}: {str(error).removeprefix(f'Chip {name}: ')}") from None


def _read(path: Path) -> str:
    """A file as JSON, in which pydantic takes tables for dataclasses."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"load_chip: {path} must have at most {MAX_BYTES} bytes; got more.")
    try:
        return json.dumps(tomllib.loads(content.decode("utf-8")), default=str)
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, dates that do not exist, too many brackets
        raise ValueError(f"load_chip: {path} must be TOML; got an error: {error}.") from error


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
        + suggestion(path, [other.partition(":")[0] for other in known])
    )


def _sentence(error: ErrorDetails) -> str:
    """What pydantic found, in our words: key, rule, value."""
    key = ""
    for part in error["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        word = str(error["loc"][-1])
        return f"{key} must be a known key (those of the files in {FOLDER}); got {word}.{suggestion(word, _KEYS)}"
    if error["type"] == "value_error":  # ours: "Price: unit must …"
        return f"{key}.{error['msg'].partition(': ')[2]}"
    if error["type"] == "missing":
        return f"{key} must be given; got none."
    table, tables = "be a table", ("model_type", "dict_type", "dataclass_type")
    rule = dict.fromkeys(tables, table) | {"tuple_type": "be a list"}
    wanted = error["msg"].removeprefix("Input should ")
    return f"{key} must {rule.get(error['type'], wanted)}; got {error['input']!r}."
