"""YAML of others: small, without aliases, a mapping of names; the only place that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**16
"""Of a file: a configuration has two thousand bytes, and reading takes 10 s a million."""


MAX_DEPTH = 20
"""Of lists in lists; Python itself would stop at some hundreds, after seconds."""


class YamlError(ValueError):
    """A file that is no mapping in YAML; says what it must be, without naming the file."""


class _Loader(yaml.SafeLoader):
    """Without aliases, which make gigabytes of a few lines, and not nested deeply."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise YamlError(f"must have no aliases; got *{self.peek_event().anchor}. Write the value out.")
        if self.depth == MAX_DEPTH:
            raise YamlError(f"must be nested at most {MAX_DEPTH} deep; got more.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise YamlError("must hold whole characters; got half of a pair, such as \\ud800. Write the character out.")
        return value


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a file; of an empty one, none.

    Args:
        path: of a YAML file, UTF-8, of at most `MAX_BYTES`.
    Raises:
        FileNotFoundError: there is none.
        YamlError: it cannot be read, is too large, no YAML, or no mapping of names.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise YamlError(f"must be a file that can be read; {error.strerror or error}.") from error
    if len(content) > MAX_BYTES:
        raise YamlError(f"must have at most {MAX_BYTES} bytes; got more.")
    return parse_mapping(content)


def parse_mapping(content: bytes) -> dict[str, Any]:
    """As `read_mapping`, of a file's content.

    Raises:
        YamlError: it is no YAML, or no mapping of names.
    """
    loader = None
    try:
        loader = _Loader(content.decode("utf-8"))
        values = loader.get_single_data()
    except YamlError:
        raise
    except UnicodeDecodeError as error:
        raise YamlError(f"must be UTF-8 text; byte {error.start} is not.") from error
    except Exception as error:  # dates that do not exist, numbers of 5,000 digits, 10,000 brackets: each has its own
        raise YamlError(f"must be valid YAML; {error}.") from error
    finally:
        if loader is not None:
            loader.dispose()
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        got = type(values).__name__ if not isinstance(values, dict) else "keys that are no names"
        raise YamlError(f"must hold `key: value` lines; got {got}.")
    return values
