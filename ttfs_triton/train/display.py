"""Output of a run: a progress bar, a line per epoch, and a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ttfs_triton.evaluate import layer_table
from ttfs_triton.nn import LayerStatistics
from ttfs_triton.run_records import EpochLine, Summary
from ttfs_triton.train.target import UNITS


class Display:
    """Terminal output of a run, unless it is not `enabled`, as in all processes but the main one."""

    def __init__(self, enabled: bool) -> None:
        self.console = Console(quiet=not enabled, soft_wrap=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
            transient=True,
        )
        self._task = self.progress.add_task("", total=None, figures="")
        self._blind = ""

    def say(self, text: str) -> None:
        """Print a line of plain text."""
        self.console.print(text, markup=False, highlight=False)

    def start(self, total_steps: int, done: int) -> None:
        """Show the progress bar, over all steps of the run."""
        self.progress.update(self._task, total=total_steps, completed=done)
        self.progress.start()

    def update(self, description: str, step: int, figures: str) -> None:
        """Move the progress bar."""
        self.progress.update(self._task, description=description, completed=step, figures=figures)

    def epoch(self, line: EpochLine, epochs: int, best: bool, layers: Sequence[LayerStatistics]) -> None:
        """Print the line of an epoch, and a warning when a layer has become blind (`is_blind`) in validation."""
        text = f"epoch {line.epoch:>{len(str(epochs))}}/{epochs}  loss {line.train_loss:.3f}"
        text += f"  train {line.train_accuracy:.2%}"
        if line.val_accuracy is not None:
            text += f"  val {line.val_accuracy:.2%}  sparsity {line.sparsity:.3f}"
        if line.rise is not None:
            text += f"  σ at {line.rise:.0%} of its goal"
        if line.cost is not None:
            text += "  cost " + ", ".join(f"{value:.4g}" for value in line.cost.values())
        text += f"  {line.images_per_second:.0f} images/s  {line.seconds:.1f} s"
        self.say(text + ("  *" if best else ""))
        self._warn_of_blindness(layers)

    def _warn_of_blindness(self, layers: Sequence[LayerStatistics]) -> None:
        """Warn of a blind layer once; again only after it has recovered."""
        blind = next(filter(is_blind, layers), None)
        if blind is not None and blind.name != self._blind:
            silent = blind.never_active / blind.neurons
            self.say(
                f"warning: {blind.name} gives the same output for every image ({silent:.1%} of its neurons never fire, "
                "the others always at the window's start), so the network cannot tell images apart. Start again with a "
                "lower --lr, or another --initial-gain, unless it recovers."
            )
        self._blind = "" if blind is None else blind.name

    def result(self, summary: Summary, layers: Sequence[LayerStatistics]) -> None:
        """Print a table of the layers and the figures of the run."""
        self.console.print(layer_table(layers, f"Test: {summary.test_images:,} images"))
        accuracy = "none (last epoch used)"
        if summary.val_accuracy is not None:
            epoch = f"epoch {summary.best_epoch}" if summary.best_epoch else "the start: no epoch was better"
            accuracy = f"{summary.val_accuracy:.2%}  ({epoch})"
        lines = [
            f"test accuracy            {summary.test_accuracy:.2%}",
            f"  by the first spike     {summary.test_first_spike_accuracy:.2%}  ({summary.ties} ties)",
            f"validation accuracy      {accuracy}",
            f"sparsity                 {summary.sparsity:.4f}  hidden spikes / hidden neurons",
            *([f"target                   {_target_words(summary.target)}"] if summary.target else []),
            f"training                 {summary.epochs} epochs, {summary.seconds_per_epoch:.1f} s each, "
            f"{summary.images_per_second:.0f} images/s",
        ]
        self.say("\n".join(lines))
        self._warn_of_blindness(layers)


def _target_words(target: dict[str, Any]) -> str:
    """The goal and cost of a target, whether it was reached, and what to do if it was not."""
    unit = UNITS[target["kind"]]
    where = f" on {target['chip']}" if target["chip"] else ""
    verdict = "reached" if target["reached"] else "not reached"
    cost = f"{target['test']['network']:.4g}{unit} of {target['goal']['network']:.4g}{unit}"
    words = f"{target['kind']}{where} {cost}: {verdict} within {target['tolerance']:.0%}"
    return words if target["reached"] else f"{words}. Train longer (--epochs), or choose another goal"


def is_blind(layer: LayerStatistics) -> bool:
    """Whether a hidden layer gives one output for all samples: every neuron was always silent, or always saturated."""
    always = (layer.neurons - layer.never_active) * layer.samples
    return layer.kind != "readout" and layer.samples > 1 and layer.spikes == layer.saturated == always
