"""Callbacks of a run, and the error that ends one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttfs_triton.train.loop import TrainingLoop


class NonFiniteLossError(RuntimeError):
    """Loss, gradient or averaged weights became infinite or not a number; nothing was saved from there on."""


class Callback:
    """Base class of callbacks: override some methods. Every process of a run calls all of them.

    Example:
        >>> class StopAt(Callback):
        ...     def __init__(self, accuracy):
        ...         self.accuracy = accuracy
        ...     def on_epoch(self, loop, line):
        ...         return line["val_accuracy"] >= self.accuracy  # True ends training
    """

    def on_start(self, loop: TrainingLoop) -> None:
        """Before training begins or goes on. `loop` has network, graph, data, configuration and position."""

    def on_step(self, loop: TrainingLoop) -> None:
        """After each step. Reading a tensor's value here makes a GPU wait."""

    def on_epoch(self, loop: TrainingLoop, line: Mapping[str, Any]) -> bool | None:
        """After each epoch; `line` is its line in metrics.jsonl. True ends the run as if this had been the last one."""

    def on_end(self, loop: TrainingLoop, summary: Mapping[str, Any]) -> None:
        """After the test images were scored; `summary` is the content of summary.json."""
