"""What a program may do while a network trains: methods that the loop calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttfs_triton.train.loop import TrainingLoop


class Callback:
    """Derive from it and override what you need; every process of a run calls every method.

    Example:
        >>> class StopAt(Callback):
        ...     def __init__(self, accuracy):
        ...         self.accuracy = accuracy
        ...     def on_epoch(self, loop, line):
        ...         return line["val_accuracy"] >= self.accuracy  # True ends training
    """

    def on_start(self, loop: TrainingLoop) -> None:
        """Training begins, or goes on: `loop` has network, graph, data, configuration and position."""

    def on_step(self, loop: TrainingLoop) -> None:
        """A step has been made. To read a tensor's value here makes a GPU wait."""

    def on_epoch(self, loop: TrainingLoop, line: Mapping[str, Any]) -> bool | None:
        """An epoch has ended: `line` is its line in metrics.jsonl. True: the run ends as if it had been the last."""

    def on_end(self, loop: TrainingLoop, summary: Mapping[str, Any]) -> None:
        """The test images have been scored: `summary` is the content of summary.json."""
