"""What happens on the virtual device: operator calls, launches of Triton kernels, synchronisations, live bytes."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class Record:
    """Calls during `recording()`.

    Attributes:
        operators: calls that launch a kernel or a copy, by operator; views and allocations are none.
        launches: calls of Triton kernels, by kernel.
        synchronisations: what makes the host wait for the device, by operator.
    """

    def __init__(self) -> None:
        self.operators: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.synchronisations: Counter[str] = Counter()


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
