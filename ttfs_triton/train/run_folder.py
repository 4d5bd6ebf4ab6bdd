"""A run's folder: its files, and the rules that keep a run from being lost.

config.yaml         the configuration: every key with its value
metrics.jsonl       one line per epoch
summary.json        final figures, written when the run has ended
checkpoints/step-*  the newest checkpoints
best/               model.safetensors and config.json of the best epoch
trackers/           logs of experiment trackers
.lock               held by the process that owns the folder now
"""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor, nn

from ttfs_triton.atomic import make_folder, sync_folder, write_json, write_text
from ttfs_triton.model import LoadError, ModelDescription
from ttfs_triton.model.files import ModelFiles, load_tensors, read_model, read_weights, write_model
from ttfs_triton.run_records import METRICS, SUMMARY, EpochLine, Summary, read_summary
from ttfs_triton.train.checkpoint import clean_partial, is_partial
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.untrusted_files import YamlError, read_mapping

LOCK = ".lock"
_WRITTEN = re.compile(
    rf"config\.yaml|{re.escape(METRICS)}|{re.escape(SUMMARY)}|checkpoints(/step-\d+\.safetensors)?|"
    r"best(/config\.json|/model\.safetensors)?|profile(/trace\.json|/steps\.txt)?|trackers(/.*)?"
)
"""Names of all files and folders that a run writes, two levels deep."""


class RunFolderError(RuntimeError):
    """The output folder cannot be used as asked."""


class FolderLock:
    """A lock on a folder, which is made if it does not exist; held until `release` or until this process dies."""

    def __init__(self, folder: Path) -> None:
        try:
            make_folder(folder)
            self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
            self._lock.acquire()
        except Timeout:
            raise RunFolderError(
                f"{folder} must belong to one run; another process owns it. Wait for it to end, or give another "
                "--output-dir."
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"{folder} must be a folder that can be written; got {reason_of(error)}. Give another --output-dir."
            ) from error

    def release(self) -> None:
        """Release the lock, and remove the lock file. A second call does nothing."""
        if self._lock.is_locked:
            # The file goes while it is locked: a process that has just opened it sees that, and opens a new one.
            with suppress(OSError):  # the folder may be gone, or a file in its place
                Path(self._lock.lock_file).unlink()
            self._lock.release()


class RunFolder:
    """Paths and files of a run; only the main process writes. `last_checkpoint` is for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best_weights = path / "best" / "model.safetensors"
        self._config, self._metrics, self._summary = (path / name for name in ("config.yaml", METRICS, SUMMARY))
        self.last_checkpoint = "none yet"
        self._lock: FolderLock | None = None

    def claim(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Lock the folder for this process, if it can be used as asked; only the lock is written."""
        # Check before locking, so that a mistake makes no folder, and again when no other process can change it.
        self._check(resume, overwrite)
        self._lock = FolderLock(self.path)
        try:
            self._check(resume, overwrite)
        except RunFolderError:
            self.release()
            raise

    def release(self) -> None:
        """Release the lock, and remove the folder if it is empty, as after a start that failed."""
        if self._lock is None:
            return
        self._lock.release()
        self._lock = None
        with suppress(OSError):
            self.path.rmdir()

    def _check(self, resume: bool, overwrite: bool) -> None:
        is_run = self.is_run()
        if resume and not is_run:
            raise RunFolderError(
                f"--resume: {self.path} must hold a run (a config.yaml); there is none. "
                "Check --output-dir, or start without --resume."
            )
        if is_run and not resume and not overwrite:
            raise RunFolderError(
                f"{self.path} already holds a run. Resume it with --resume, replace it with --overwrite, or give "
                "another --output-dir."
            )
        # A start that was killed before it wrote config.yaml leaves no more than an empty folder of checkpoints.
        others = [entry for entry in self._entries() if not is_partial(entry)]
        if not is_run and (others not in ([], [self.checkpoints]) or any(self.checkpoints.glob("*"))):
            rule = "--overwrite: " if overwrite else ""
            raise RunFolderError(
                f"{rule}{self.path} is not a run's folder (no config.yaml) and not empty, so it is left alone. "
                "Give another --output-dir, or remove it by hand."
            )
        if is_run and overwrite and (foreign := self._foreign()):
            raise RunFolderError(
                f"--overwrite: {self.path} must hold nothing but a run; got also {', '.join(foreign[:5])}"
                f"{', …' * (len(foreign) > 5)}. Nothing was removed: give another --output-dir, or move them away."
            )

    def is_run(self) -> bool:
        """Whether the folder holds a run, ended or not."""
        return self._config.is_file()

    def _entries(self) -> list[Path]:
        try:
            entries = list(self.path.iterdir())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise RunFolderError(
                f"{str(self.path)!r:.400} must be a folder that can be read; got {error}. Give another --output-dir."
            ) from error
        return [entry for entry in entries if not entry.name.startswith(LOCK)]

    def _foreign(self) -> list[str]:
        """Names of files that no run wrote: `--overwrite` must not remove them."""
        paths = sorted([*self._entries(), *self.path.glob("*/*")], key=lambda path: (len(path.parts), path))
        names = [path.relative_to(self.path).as_posix() for path in paths if not is_partial(path)]
        try:
            keys = read_mapping(self._config).keys()
        except (OSError, YamlError):
            keys = set[str]()
        others = [] if {"epochs", "batch_size", "lr"} <= keys else ["a config.yaml that is no run's"]
        return others + [name for name in names if not _WRITTEN.fullmatch(name)]

    def check_inputs(self, config: TrainConfig) -> None:
        """Raise RunFolderError if a run that overwrites this folder reads from it."""
        for key in ("teacher", "weights", "data_dir"):
            path = str(getattr(config, key) or "")
            if os.path.exists(path) and Path(path).resolve().is_relative_to(self.path.resolve()):
                raise RunFolderError(
                    f"--overwrite: {key} must lie outside of the folder that is emptied, {self.path}; got {path}. "
                    "Give another --output-dir."
                )

    def prepare(self, config: TrainConfig) -> None:
        """Prepare the folder, after `claim`: remove an old run if asked to, and files that killed processes left."""
        if config.overwrite:
            self._check(resume=False, overwrite=True)  # other files may have come while the data were read
            self._clear()
        make_folder(self.checkpoints)
        for folder in (self.path, self.best_weights.parent, self.checkpoints):
            if folder.is_dir():
                clean_partial(folder)
        if not self.is_run():
            write_text(self._config, config.to_yaml())

    def _clear(self) -> None:
        """Remove the old run, but not its folder, which may be a mount point or the target of a link."""
        # The summary first, so that half a run never counts as ended; config.yaml last, so that after a kill the rest
        # can still be overwritten.
        entries = sorted(self._entries(), key=lambda entry: (entry == self._config, entry != self._summary))
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def write_metrics(self, lines: list[EpochLine]) -> None:
        """Write all epochs so far, so that a resumed run neither doubles nor misses one."""
        write_text(self._metrics, "".join(json.dumps(line.model_dump()) + "\n" for line in lines))

    def write_best(self, tensors: dict[str, Tensor], description: ModelDescription) -> None:
        """Write the best weights and the description of their network."""
        self.best_weights.parent.mkdir(exist_ok=True)  # no parents: a run's folder that was moved away stays away
        sync_folder(self.path)
        write_model(self.best_weights.parent, tensors, description)

    def load_best(self, network: nn.Module) -> None:
        """Load the best weights into the run's network; RunFolderError if they are damaged or another network's."""
        try:
            load_tensors(network, read_weights(self.best_weights))
        except LoadError as error:
            raise RunFolderError(str(error)) from error

    def write_summary(self, summary: Summary) -> None:
        """Write the final figures; a run with a summary has ended."""
        write_json(self._summary, summary.model_dump())

    def read_summary(self) -> dict[str, Any] | None:
        """The final figures; None if the run has not ended."""
        if not self._summary.exists():
            return None
        try:
            return read_summary(self._summary).model_dump()
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self._summary} must be a run's final figures; it is damaged: {error}. "
                "Remove it: --resume scores the best weights again."
            ) from error

    def record(self, config: TrainConfig) -> None:
        """Write the configuration of a resumed run, and remove the summary: the run has not ended."""
        self._summary.unlink(missing_ok=True)
        write_text(self._config, config.to_yaml())

    def check_best(self, network: nn.Module | None = None) -> None:
        """Raise RunFolderError if the best weights are damaged, missing, or unfit for a user-defined network."""
        try:
            read_model(ModelFiles(self.best_weights, self.best_weights.with_name("config.json")), network)
        except (LoadError, OSError, ValueError) as error:
            raise RunFolderError(
                f"--resume: {self.best_weights.parent} must hold the best weights so far. {error} "
                "Restore a copy, or start again with --overwrite."
            ) from error


def reason_of(error: OSError) -> str:
    """The system's error message, with the file's name."""
    return f"{error.strerror or error} ({error.filename})" if error.filename else str(error.strerror or error)
