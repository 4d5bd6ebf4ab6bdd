"""Reading others' files: regular ones only, since a pipe would never end, and no larger than allowed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        most_bytes: that it may have.
    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, is no regular file, or is larger; also where its name cannot be one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        if most_bytes is not None and status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes, at most {most_bytes} are allowed", str(path))
        return file.read()
