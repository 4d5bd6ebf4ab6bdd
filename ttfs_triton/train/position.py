"""Where a run stands: enough, with the seed, to go on with the very next batch."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class EpochTotals:
    """Sums over the steps of the epoch so far, over all processes."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0


@dataclass
class Position:
    """Progress of a run.

    Attributes:
        epoch: epochs completed and evaluated.
        step_in_epoch: optimiser steps done in the current epoch.
        step: optimiser steps done in all.
        totals: of the current epoch.
        metrics: one line for each completed epoch.
        best_epoch, best_accuracy, best_loss: best on the validation images so far; epochs count from 1, 0 is none yet.
            A checkpoint from before ties were broken by loss has no loss: None.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    totals: EpochTotals = field(default_factory=EpochTotals)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float | None = None

    def is_best(self, accuracy: float, loss: float) -> bool:
        """Whether validation figures are the best so far: by accuracy, then loss, then the later epoch.

        A few thousand held-out images often give several epochs one accuracy; the first of them is the least trained.
        """
        if accuracy != self.best_accuracy or self.best_loss is None:
            return accuracy >= self.best_accuracy
        return loss <= self.best_loss

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        """The position that `to_dict` gave."""
        others = {key: value for key, value in values.items() if key != "totals"}
        return cls(totals=EpochTotals(**values["totals"]), **others)
