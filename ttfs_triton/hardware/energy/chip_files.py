"""Chips from TOML files: those that come with the package, and the user's own in the same form."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ttfs_triton.hardware.energy.chip import Capacity, Chip, Memory, suggestion
from ttfs_triton.hardware.energy.prices import Price, convert

FOLDER = Path(__file__).parent / "chips"

# Asked for often, but nobody has published what one of their operations costs.
NO_FIGURES = {"loihi2": "Loihi 2", "akida": "Akida", "speck": "Speck"}

MAX_BYTES = 2**18  # of a file; those that come with the package have 10,000
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
PositiveWhole = Annotated[int, Field(gt=0, le=10**15)]
Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    """A table of a file: known keys only, and values of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Price(_Table):
    unit: str
    status: str
    source: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @model_validator(mode="after")
    def _is_a_price(self) -> _Price:
        self.price()
        return self

    def price(self) -> Price:
        values: dict[str, Any] = self.model_dump(include=set(_Price.model_fields))  # `Price` checks the status
        return Price(**values)


class _Access(_Price):
    size_kb: Positive

    @model_validator(mode="after")
    def _is_an_energy(self) -> _Access:
        price = self.price()
        if price.dimension != "energy" or price.value is None:
            raise ValueError(f"Access: price must be a published energy; got {price}.")
        return self


class _Memory(_Table):
    accesses: list[_Access]
    word_bits: PositiveWhole = 64
    packed: bool = False
    addressing: bool = False

    @model_validator(mode="after")
    def _rises(self) -> _Memory:
        sizes = [size for size, _ in self.points()]
        if not sizes or sizes != sorted(set(sizes)):
            raise ValueError(f"Memory: accesses must have rising sizes, at least one; got {sizes}.")
        return self

    def points(self) -> tuple[tuple[int, Price], ...]:
        return tuple(
            (round(convert(access.size_kb, "kB", "B")), access.price().in_unit("pJ")) for access in self.accesses
        )


class _Capacity(_Table):
    source: str
    neurons: PositiveWhole | None = None
    synapses: PositiveWhole | None = None
    weight_bits: PositiveWhole | None = None


class _Precision(_Table):
    bits: PositiveWhole | None = None
    prices: dict[str, _Price] = {}


class _File(_Table):
    description: Text
    synop_scope: Text
    node_nm: Positive | None = None
    voltage_v: Positive | None = None
    included: list[str] = []
    notes: list[str] = []
    capacity: _Capacity | None = None
    prices: dict[str, _Price] = {}
    alternatives: dict[str, _Price] = {}
    memory: _Memory | None = None
    precisions: dict[str, _Precision] = {}

    def chip(self, name: str, precision: str | None) -> Chip:
        own = None if precision is None else self.precisions[precision]
        prices = self.prices | ({} if own is None else own.prices)
        memory, capacity = self.memory, self.capacity
        return Chip(
            name=name,
            description=self.description,
            synop_scope=self.synop_scope,
            prices={key: price.price() for key, price in prices.items()},
            memory=None
            if memory is None
            else Memory(memory.points(), memory.word_bits, memory.packed, memory.addressing),
            capacity=Capacity() if capacity is None else Capacity(**capacity.model_dump()),
            bits=None if own is None else own.bits,
            node_nm=self.node_nm,
            voltage_v=self.voltage_v,
            included=tuple(self.included),
            alternatives={key: price.price() for key, price in self.alternatives.items()},
            notes=tuple(self.notes),
        )


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
        file = _File.model_validate(_read(path))
    except ValidationError as error:
        raise ValueError(f"load_chip: {path}: {' '.join(map(_sentence, error.errors()))}") from None
    if precision not in (file.precisions or {None}):
        names = ", ".join(f"{path.stem}:{name}" for name in file.precisions) or path.stem
        got = f"precision {precision}" if precision else "no precision"
        raise ValueError(f"load_chip: name_or_path must be one of {names}; got {got}. One chip has one precision.")
    name = path.stem if precision is None else f"{path.stem}:{precision}"
    try:
        return file.chip(name, precision)
    except ValueError as error:
        raise ValueError(f"load_chip: {path}: {str(error).removeprefix(f'Chip {name}: ')}") from None


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"load_chip: {path} must have at most {MAX_BYTES} bytes; got more.")
    try:
        return tomllib.loads(content.decode("utf-8"))
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
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"])
        word = str(error["loc"][-1])
        return f"{key} must be a known key ({', '.join(known)}); got {word}.{suggestion(word, known)}"
    if error["type"] == "value_error":  # ours: "Price: unit must …"
        return f"{key}.{error['msg'].partition(': ')[2]}"
    if error["type"] == "missing":
        return f"{key} must be given; got none."
    rule = {"model_type": "be a table", "dict_type": "be a table", "list_type": "be a list"}.get(error["type"])
    return f"{key} must {rule or error['msg'].removeprefix('Input should ')}; got {error['input']!r}."


def _known_keys(place: tuple[int | str, ...]) -> tuple[str, ...]:
    """Keys of the table in which the last part of a place is."""
    tables: Mapping[str, type[_Table]] = {"capacity": _Capacity, "memory": _Memory}
    if len(place) == 1:
        table: type[_Table] = _File
    elif place[0] == "precisions" and len(place) == 3:
        table = _Precision
    elif len(place) == 2:
        table = tables[str(place[0])]
    else:
        table = _Access if place[0] == "memory" else _Price
    return tuple(table.model_fields)
