"""What happens on the virtual device: operator calls, launches of Triton kernels, synchronisations."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Record:
    """Calls during `recording()`."""

    operators: Counter[str] = field(default_factory=Counter)  # PyTorch's, views too
    launches: Counter[str] = field(default_factory=Counter)  # of Triton kernels
    synchronisations: Counter[str] = field(default_factory=Counter)  # operators that make the host wait for the device


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
