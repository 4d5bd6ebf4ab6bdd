"""Rules on what an option needs or excludes, written beside its type: `Annotated[int, Needs("time_steps")]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, ClassVar, Self

from pydantic import BaseModel, model_validator


class Needs:
    """Rule: an option needs another one that is on (not None, False, 0 or empty), or that has one of the given values.

    With `flag`, the rule holds for flags alone: a file serves several runs, so it may hold options that one ignores.
    """

    def __init__(self, *names: str, why: str = "", flag: bool = False, **values: tuple[Any, ...]) -> None:
        self.others: dict[str, tuple[Any, ...]] = {**dict.fromkeys(names, ()), **values}
        self.why, self.flag = f": {why}" if why else "", flag

    def __repr__(self) -> str:  # stands in the API's pages
        return f"{type(self).__name__}({', '.join(self.others)})"

    def on(self, key: str, options: Mapping[str, Any]) -> list[str]:
        """Names of the others, `key` not among them, that are on or have one of the values."""
        given = {name: options.get(name) for name in self.others if name != key}
        return [name for name, value in given.items() if (value in self.others[name] if self.others[name] else value)]

    def broken(self, key: str, options: Mapping[str, Any]) -> str | None:
        """What is wrong if the option `key` is given, and the remedy; None if nothing is."""
        if self.on(key, options):
            return None
        words = [f"{name}: {' or '.join(values)}" if values else name for name, values in self.others.items()]
        return f"{key} needs {' or '.join(words)}{self.why}. Give that, or leave {key} out"


class Excludes(Needs):
    """Rule: an option excludes all of the others; arguments as in `Needs`."""

    def broken(self, key: str, options: Mapping[str, Any]) -> str | None:
        on = ", ".join(self.on(key, options))
        return f"{key} and {on} exclude each other{self.why}. Leave one of them out" if on else None


class RuledOptions(BaseModel):
    """Options whose rules are checked; `more_rules` holds rules of options that are no fields."""

    more_rules: ClassVar[dict[str, Needs]] = {}

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        for message in broken_rules(self):
            raise ValueError(message)
        return self


def broken_rules(options: RuledOptions, flags: Set[str] | None = None) -> Iterator[str]:
    """Messages of broken rules: without `flags`, of rules for files and flags; else of rules for these flags alone."""
    values, fields = options.model_dump(), type(options).model_fields
    rules = [(name, rule) for name, field in fields.items() for rule in field.metadata if isinstance(rule, Needs)]
    for key, rule in [*rules, *options.more_rules.items()]:
        if rule.flag == (flags is not None):
            given = values[key] != fields[key].default if flags is None else key in flags
            if given and (message := rule.broken(key, values)):
                yield message
