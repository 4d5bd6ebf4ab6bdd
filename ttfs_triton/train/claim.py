"""One process at a time owns a run's folder, also where several machines share the file system.

The claim is a folder `.claim` that holds one file, named after its owner. It gets its name by a rename, which fails if
another claim is there: the only step that must be atomic, and atomic on every file system. Locks are not, on many.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ttfs_triton.atomic import make_folder

CLAIM = ".claim"
_FIRST_NAMESPACE = 0xEFFFFFFC  # of process ids, outside of containers (Linux: PROC_PID_INIT_INO)
_CLOCK_SLACK = 2.0  # seconds between two readings of one process's start: the clock may have been set in between


class ClaimedError(RuntimeError):
    """Another process owns the folder."""


def this_host() -> str:
    """Where process ids mean what they mean here: containers may bear their machine's name, or one another's."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # no Linux
        namespace = _FIRST_NAMESPACE
    return socket.gethostname() + (f"-{namespace}" if namespace != _FIRST_NAMESPACE else "")


@dataclass(frozen=True)
class Owner:
    """A process, as its claim names it.

    Attributes:
        pid: process id on its machine.
        started: when the process started, seconds since 1970; a later process may have the same id.
        host: its machine, or container.
    """

    pid: int
    started: float
    host: str

    @classmethod
    def this_process(cls) -> Owner:
        """The calling process."""
        return cls(os.getpid(), round(psutil.Process().create_time(), 2), this_host())

    @classmethod
    def from_name(cls, name: str) -> Owner | None:
        """The owner that a file is named after, None if it is none."""
        match = re.fullmatch(r"(\d+)@([\d.]+)@(.+)", name)
        return match and cls(int(match[1]), float(match[2]), match[3])

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.pid}@{self.started}@{self.host}"

    def is_gone(self) -> bool:
        """Whether the process has certainly ended: only for those of this machine can that be known."""
        if self.host != this_host():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > _CLOCK_SLACK
        except psutil.NoSuchProcess:
            return True


class Claim:
    """A folder that belongs to this process until `release`.

    Args:
        folder: made if need be.
        owner: default: this process.
    Raises:
        ClaimedError: a process that runs, or may be running on another machine, owns it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, owner: Owner | None = None) -> None:
        self._path, self._owner = folder / CLAIM, owner or Owner.this_process()
        make_folder(folder)
        prepared = folder / f"{CLAIM}-{self._owner.name}"
        prepared.mkdir()
        try:
            (prepared / self._owner.name).touch()
            self._remove_ended()
            try:
                prepared.rename(self._path)
            except OSError as error:
                raise ClaimedError(_refusal(folder, self._path)) from error
        finally:
            shutil.rmtree(prepared, ignore_errors=True)

    def _remove_ended(self) -> None:
        """Remove the file of a process that has ended. Of two that try, one finds it gone, and its rename fails."""
        for file in _files(self._path):
            owner = Owner.from_name(file.name)
            if owner is not None and owner.is_gone():
                file.unlink(missing_ok=True)
        for unused in self._path.parent.glob(f"{CLAIM}-*"):
            owner = Owner.from_name(unused.name.removeprefix(f"{CLAIM}-"))
            if owner is not None and owner.is_gone():
                shutil.rmtree(unused, ignore_errors=True)
        try:
            self._path.rmdir()
        except OSError:  # not there, or owned: the rename tells
            pass

    def release(self) -> None:
        """Give the folder up; once is enough."""
        (self._path / self._owner.name).unlink(missing_ok=True)
        try:
            self._path.rmdir()
        except OSError:  # removed already, or another's by now
            pass


def _files(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # asking first is no help: another start may remove it right after
        return []


def _refusal(folder: Path, claim: Path) -> str:
    owner = next((found for file in _files(claim) if (found := Owner.from_name(file.name))), None)
    if owner is None:
        return f"{folder} must belong to one run; another start is claiming it just now. Give another --output-dir."
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.started))
    where = f"process {owner.pid} on {owner.host}, started {since}"
    remedy = (
        "Wait for it to end"
        if owner.host == this_host()
        else f"If it has ended, as only {owner.host} can tell, remove {claim}"
    )
    return f"{folder} must belong to one run; {where}, owns it. {remedy}, or give another --output-dir."
