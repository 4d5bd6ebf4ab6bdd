"""A run's folder: what is in it, and the rules that keep a run from being lost.

config.yaml         the configuration, every key
metrics.jsonl       one line an epoch
summary.json        final figures, written when the run has ended
checkpoints/step-*/ the newest checkpoints
best/               model.safetensors and config.json of the best epoch
.lock               held by the process that owns the folder now
"""

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor, nn

from ttfs_triton.atomic import make_folder, sync_folder, write_json, write_text
from ttfs_triton.model import ModelDescription
from ttfs_triton.model.files import read_model, write_model
from ttfs_triton.model.weights import LoadError
from ttfs_triton.run_records import METRICS, SUMMARY, EpochLine, Summary, read_summary
from ttfs_triton.train.checkpoint import clean_partial, is_partial
from ttfs_triton.train.config import TrainConfig

LOCK = ".lock"


class RunFolderError(RuntimeError):
    """The output folder cannot be used as asked."""


class FolderLock:
    """A folder that belongs to this process until `release`, or until it ends, however that is.

    The system drops the lock of a process that has ended. On a network file system without locks between machines, two
    machines may own one folder.

    Args:
        folder: made if need be.
    Raises:
        RunFolderError: another process owns it, or another object in this one; or it cannot be written.
    """

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
        """Give the folder up, and leave nothing in it; once is enough."""
        if self._lock.is_locked:
            # While it is held: who has opened this file meanwhile finds it gone, and opens the next one.
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()


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
        self._config, self._metrics, self._summary = (path / name for name in ("config.yaml", METRICS, SUMMARY))
        self._doomed = path / ".overwritten"
        self._lock: FolderLock | None = None
        self._descriptor = -1

    def claim(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder this process's own, if it may be used as asked; writes nothing but the lock.

        Raises:
            RunFolderError: another process owns it; it holds something and neither flag says what to do with it; there
                is no run to resume; the folder to overwrite is not a run; or it cannot be written.
        """
        # Before the lock, so that a mistake makes no folder; and after it, when nobody else can change what is there.
        self._check(resume, overwrite)
        self._lock = FolderLock(self.path)
        self._descriptor = os.open(self.path, os.O_RDONLY)
        try:
            self._check(resume, overwrite)
        except RunFolderError:
            self.release()
            raise

    def release(self) -> None:
        """Give the folder up, and remove it if it is empty: a start that came to nothing leaves nothing."""
        if self._lock is None:
            return
        os.close(self._descriptor)
        self._lock.release()
        self._lock = None
        with suppress(OSError):
            self.path.rmdir()

    def _check(self, resume: bool, overwrite: bool) -> None:
        entries = self._entries()
        is_run = self.is_run()
        if resume and not is_run:
            raise RunFolderError(
                f"--resume: {self.path} must hold a run (a config.yaml); there is none. "
                "Check --output-dir, or start without --resume."
            )
        if is_run and not resume and not overwrite:
            raise RunFolderError(
                f"{self.path} already holds something. Go on with that run by --resume, replace it by --overwrite, "
                "or give another --output-dir."
            )
        if entries and not is_run and not self._is_cut_short(entries):
            rule = "--overwrite: " if overwrite else ""
            raise RunFolderError(
                f"{rule}{self.path} is not a run's folder (no config.yaml) and not empty, so it is left alone. "
                "Give another --output-dir, or remove it by hand."
            )

    def whereabouts(self) -> Path | None:
        """Where the folder that was claimed lies now, if somebody moved it; None if it is gone.

        Only Linux knows; elsewhere, and in processes that did not claim it, its path, or None if nothing is there.
        """
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
        except OSError:
            path = self.path.resolve()
        return path if path.is_dir() else None

    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self._config.is_file()

    def _entries(self) -> list[Path]:
        """What is in the folder, but the lock."""
        try:
            entries = list(self.path.iterdir())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            raise RunFolderError(
                f"{str(self.path)!r:.400} must be a folder that can be read; got {reason}. Give another --output-dir."
            ) from error
        return [entry for entry in entries if not entry.name.startswith(LOCK)]

    def _is_cut_short(self, entries: list[Path]) -> bool:
        """Whether this is what a start, or an overwriting, leaves that ended before there was a config.yaml."""
        if self._doomed in entries:
            return True
        others = [entry for entry in entries if not is_partial(entry)]
        return others in ([], [self.checkpoints]) and not any(self.checkpoints.glob("*"))

    def prepare(self, config: TrainConfig) -> None:
        """Make the folder ready, after `claim`: clear an old run if asked to, remove traces of killed processes."""
        if config.overwrite or self._doomed.exists():
            self._clear()
        make_folder(self.checkpoints)
        for folder in (self.path, self.best_weights.parent, self.checkpoints):
            if folder.is_dir():
                clean_partial(folder)
        if not self.is_run():
            write_text(self._config, config.to_yaml())

    def _clear(self) -> None:
        """Remove the old run, not the folder, which may be a mount point or the target of a link.

        All is moved aside first, config.yaml before the rest: a kill in between leaves what `_is_cut_short` knows,
        never half a run under its name.
        """
        self._doomed.mkdir(exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=self._doomed))  # a new one after a kill: names may be taken in the old one
        for entry in sorted(self._entries(), key=lambda entry: entry != self._config):
            if entry != self._doomed:
                entry.rename(aside / entry.name)
        shutil.rmtree(self._doomed)

    def write_metrics(self, lines: list[EpochLine]) -> None:
        """Write all epochs so far; whole, so that a resumed run neither doubles nor misses one."""
        write_text(self._metrics, "".join(json.dumps(line.model_dump()) + "\n" for line in lines))

    def write_best(self, tensors: dict[str, Tensor], description: ModelDescription) -> None:
        """Write the best weights and what is needed to rebuild their network."""
        self.best_weights.parent.mkdir(exist_ok=True)  # not the run's folder: whoever moved it wants no second one
        sync_folder(self.path)
        write_model(self.best_weights.parent, tensors, description)

    def best_sha256(self) -> str:
        """SHA-256 of the best weights' file."""
        return hashlib.sha256(self.best_weights.read_bytes()).hexdigest()

    def write_summary(self, summary: Summary) -> None:
        """Write the final figures; a run with a summary has ended."""
        write_json(self._summary, summary.model_dump())

    def read_summary(self) -> dict[str, Any] | None:
        """The final figures of a run that has ended, else None.

        Raises:
            RunFolderError: the file is damaged.
        """
        if not self._summary.exists():
            return None
        try:
            return read_summary(self._summary)
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self._summary} must be a run's final figures; it is damaged: {error}. "
                "Remove it: --resume scores the best weights again."
            ) from error

    def has_progress(self) -> bool:
        """Whether an epoch has ended."""
        return self._metrics.is_file()

    def record(self, config: TrainConfig) -> None:
        """Write down with what the run goes on, and that it has not ended."""
        self._summary.unlink(missing_ok=True)
        write_text(self._config, config.to_yaml())

    def check_best(self, network: nn.Module | None = None) -> None:
        """Refuse damaged or missing best weights before hours of training, at whose end they would be scored.

        Args:
            network: that they are of, where code of the user's builds it.
        Raises:
            RunFolderError: says which file, and what is wrong with it.
        """
        try:
            read_model(self.best_config, self.best_weights, network)
        except (LoadError, OSError, ValueError) as error:
            raise RunFolderError(
                f"--resume: {self.best_weights.parent} must hold the best weights so far. {error} "
                "Put a copy back, or start again by --overwrite."
            ) from error


def reason_of(error: OSError) -> str:
    """What the system says, and of which file."""
    return f"{error.strerror or error} ({error.filename})" if error.filename else str(error.strerror or error)
