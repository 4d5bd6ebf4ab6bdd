"""What happens on the virtual device: operator calls, launches of Triton kernels, synchronisations."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Record:
    """Calls in `recording()`: of PyTorch's operators, of Triton kernels, and of operators that the host waits for."""

    def __init__(self) -> None:
        self.operators, self.launches, self.synchronisations = Counter[str](), Counter[str](), Counter[str]()


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
