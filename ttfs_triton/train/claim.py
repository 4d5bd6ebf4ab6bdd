"""One process at a time owns a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from ttfs_triton.atomic import make_folder

CLAIM = ".lock"


class ClaimedError(RuntimeError):
    """Another process owns the folder."""


class Claim:
    """A folder that belongs to this process until `release`.

    The system drops the lock of a process that has ended. On a network file system without locks between machines, two
    machines may own one folder.

    Args:
        folder: made if need be.
    Raises:
        ClaimedError: another process owns it, or another object in this one.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._lock = FileLock(folder / CLAIM, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise ClaimedError(
                f"{folder} must belong to one run; another process owns it. Wait for it to end, or give another "
                "--output-dir."
            ) from None

    def release(self) -> None:
        """Give the folder up, and leave nothing in it; once is enough."""
        if self._lock.is_locked:
            # While it is held: who has opened this file meanwhile finds it gone, and opens the next one.
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
