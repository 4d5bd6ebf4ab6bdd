"""The base class of callbacks, and NonFiniteLossError, which ends a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttfs_triton.train.loop import TrainingLoop


class NonFiniteLossError(RuntimeError):
    """Loss, gradient or averaged weights became infinite or not a number; nothing was saved after that."""


class Callback:
    """Base class of callbacks: override some methods. Every process of a run calls every method.

    Example:
        >>> class StopAt(Callback):
        ...     def __init__(self, accuracy):
        ...         self.accuracy = accuracy
        ...     def on_epoch(self, loop, line):
        ...         return line["val_accuracy"] >= self.accuracy  # True ends training
    """

    def on_start(self, loop: TrainingLoop) -> None:
        """Called before training begins or resumes. `loop` has network, graph, data, configuration and position."""

    def on_step(self, loop: TrainingLoop) -> None:
        """Called after each optimiser step. Reading a tensor's value here makes a GPU wait for the host."""

    def on_epoch(self, loop: TrainingLoop, line: Mapping[str, Any]) -> bool | None:
        """Called after each epoch; `line` is its line in metrics.jsonl. Return True to make this epoch the last one."""

    def on_end(self, loop: TrainingLoop, summary: Mapping[str, Any]) -> None:
        """Called after the test images were scored; `summary` is the content of summary.json."""
