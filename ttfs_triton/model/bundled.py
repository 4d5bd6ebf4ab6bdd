"""Trained networks that come with the package, each a folder of `ttfs_triton/networks`.

Their weights are rounded to bfloat16, which halves the files; networks compute with them in float32.
`recipes/bundle.py` makes such a folder of a run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttfs_triton.model.weights import WEIGHTS, LoadError

PREFIX = "bundled:"
FOLDER = Path(__file__).parents[1] / "networks"
FACTS = "facts.json"
MOST_BYTES = 7 * 10**6
"""Of all networks together."""


def bundled_names() -> tuple[str, ...]:
    """Names of the networks, to be given as "bundled:NAME"."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}")))


def bundled_folder(source: str) -> Path:
    """The folder of "bundled:NAME".

    Raises:
        LoadError: there is no such network; names all.
    """
    name = source.removeprefix(PREFIX)
    if name not in bundled_names():
        known = ", ".join(f"{PREFIX}{known}" for known in bundled_names())
        raise LoadError(f"load: a bundled network must be one of {known}; got {source}.")
    return FOLDER / name


def bundled_facts(name: str) -> dict[str, Any]:
    """Facts about a network: figures over the whole test set, settings of its training, the weights' checksum.

    Args:
        name: one of `bundled_names`.
    Raises:
        LoadError: there is no such network.
    Example:
        >>> 0.99 < bundled_facts("cnn1-mnist")["test_accuracy"] < 1
        True
    """
    return json.loads((bundled_folder(name) / FACTS).read_text(encoding="utf-8"))
