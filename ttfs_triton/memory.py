"""Main memory between training steps: a step asks for what the step before has freed."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Parameters of mallopt(3), from malloc.h, and what the library comes to by itself at most when blocks are large.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_AFTERWARDS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Within the block, this process keeps the memory that it frees, for itself; afterwards it is given back.

    The GNU C library, from which PyTorch has its tensors on a CPU, gives large blocks back to the system at once and
    maps others for the next step; the system clears them page by page. For a VGG16 with batches of 128 that is two
    fifths of the time that is not contractions. The process stays as large as it has been at its largest.

    Yields:
        Whether it does; False with another C library, where nothing changes.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    mallopt: Callable[[int, int], int] | None = getattr(library, "mallopt", None)  # musl has none
    if library is None or mallopt is None:
        yield False
        return
    try:
        yield bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_MMAP_MAX, 0))
    finally:
        for parameter, value in _AFTERWARDS.items():
            mallopt(parameter, value)
        library.malloc_trim(0)
