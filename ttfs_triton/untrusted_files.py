"""Reading of untrusted files: regular files only, a limit on their bytes, YAML without aliases."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import yaml


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """Content of a regular file of at most `most_bytes`; OSError for any other file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        if most_bytes is not None and status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes, at most {most_bytes} are allowed", str(path))
        return file.read()


MAX_BYTES = 2**16  # of a YAML file: a configuration has two thousand bytes; a million take 10 s to parse
MAX_DEPTH = 20  # levels of nested YAML values; Python itself would stop at some hundreds, after seconds


class YamlError(ValueError):
    """A YAML file that is refused; the text gives the rule for the file, without the file's name."""


class _Loader(yaml.SafeLoader):
    """Refuses aliases (they can expand to gigabytes), repeated keys and deep nesting."""

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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise YamlError(f"must have every key once; got {twice!r:.80} twice. Remove one.")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise YamlError("must hold whole characters; got half of one, such as \\ud800. Write the character out.")
        return value


def read_mapping(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file in UTF-8, of at most `MAX_BYTES`; {} for an empty file."""
    try:
        content = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise YamlError(f"must be a file that can be read; {error.strerror}.") from error
    try:
        values = _Loader(content.decode("utf-8")).get_single_data()
    except YamlError:
        raise
    except UnicodeDecodeError as error:
        raise YamlError(f"must be UTF-8 text; byte {error.start} is not.") from error
    except Exception as error:  # many types: for impossible dates, numbers of 5,000 digits, 10,000 brackets
        raise YamlError(f"must be valid YAML; {error}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        got = type(values).__name__ if not isinstance(values, dict) else "keys that are not names"
        raise YamlError(f"must hold `key: value` lines; got {got}.")
    return values
