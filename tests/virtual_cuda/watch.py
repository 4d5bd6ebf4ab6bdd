"""What happens on the virtual device: operator calls, launches of Triton kernels, synchronisations, live bytes."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(eq=False)
class Record:
    """Calls during `recording()`."""

    operators: Counter[str] = field(default_factory=Counter)  # that launch a kernel or a copy; views are none
    launches: Counter[str] = field(default_factory=Counter)  # of Triton kernels
    synchronisations: Counter[str] = field(default_factory=Counter)  # operators that make the host wait for the device


class _Memory:
    """Bytes of all storages of the device, each once."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._storages: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def keep(self, data: Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = data.untyped_storage()
        if storage in self._storages:
            return
        size = storage.nbytes()
        self._storages[storage] = size
        weakref.finalize(storage, self._free, size).atexit = False
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, size: int) -> None:
        self.live -= size


memory = _Memory()
_records: list[Record] = []


@contextmanager
def recording() -> Iterator[Record]:
    """Watch the device, in all threads, until the block ends."""
    record = Record()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


def count(kind: str, name: str) -> None:
    """Add one to `operators`, `launches` or `synchronisations` of everyone who watches."""
    for record in _records:
        getattr(record, kind)[name] += 1
