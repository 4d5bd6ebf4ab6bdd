"""A run's folder: what is in it, and the rules that keep a run from being lost.

config.yaml         the configuration, every key
metrics.jsonl       one line an epoch
summary.json        final figures, written when the run has ended
checkpoints/step-*/ the newest checkpoints
best/               model.safetensors and config.json of the best epoch
"""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ttfs_triton.atomic import write_json, write_text
from ttfs_triton.model import ModelDescription
from ttfs_triton.model.files import write_model
from ttfs_triton.train.checkpoint import clean_partial
from ttfs_triton.train.config import TrainConfig


class RunFolderError(RuntimeError):
    """The output folder cannot be used as asked."""


class RunFolder:
    """Paths and files of a run; only the main process writes.

    Attributes:
        path: the folder.
        checkpoints: `path / "checkpoints"`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best_weights = path / "best" / "model.safetensors"
        self.best_config = path / "best" / "config.json"
        self._config, self._metrics, self._summary = (
            path / name for name in ("config.yaml", "metrics.jsonl", "summary.json")
        )

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse what would lose a run or cannot work; writes nothing.

        Raises:
            RunFolderError: the folder holds something and neither flag says what to do with it; there is no run to
                resume; or the folder to overwrite is not a run.
        """
        occupied = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if resume and not self._config.is_file():
            raise RunFolderError(
                f"--resume: {self.path} must hold a run (a config.yaml); there is none. "
                "Check --output-dir, or start without --resume."
            )
        if occupied and not resume and not overwrite:
            raise RunFolderError(
                f"{self.path} already holds something. Go on with that run by --resume, replace it by --overwrite, "
                "or give another --output-dir."
            )
        if occupied and overwrite and not self._config.is_file():
            raise RunFolderError(
                f"--overwrite: {self.path} is not a run's folder (no config.yaml), so it is left alone. "
                "Give another --output-dir, or remove it by hand."
            )

    def prepare(self, config: TrainConfig) -> None:
        """Make the folder ready, after `check`: clear an old run if asked to, remove traces of killed processes."""
        if config.overwrite and self.path.exists():
            # Out of the way first: a kill in the middle of deleting must not leave half a run under its name.
            doomed = self.path.with_name(f".{self.path.name}.overwritten")
            shutil.rmtree(doomed, ignore_errors=True)
            self.path.rename(doomed)
            shutil.rmtree(doomed)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.best_weights.parent, self.checkpoints):
            if folder.is_dir():
                clean_partial(folder)
        if not self._config.is_file():
            write_text(self._config, config.to_yaml())

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Write all epochs so far; whole, so that a resumed run neither doubles nor misses one."""
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in lines))

    def write_best(self, tensors: dict[str, Tensor], description: ModelDescription) -> None:
        """Write the best weights and what is needed to rebuild their network."""
        self.best_weights.parent.mkdir(exist_ok=True)
        write_model(self.best_weights.parent, tensors, description)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the final figures; a run with a summary has ended."""
        write_json(self._summary, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """The final figures of a run that has ended, else None."""
        return json.loads(self._summary.read_text(encoding="utf-8")) if self._summary.is_file() else None
