"""`bench/kernels.py` as a module, and tables of nobody."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.bench.modules import BENCH


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """Under another name: `kernels` is Hugging Face's. No tuned table, whoever runs the tests."""
    from ttfs_kernels.triton_backend import choice

    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(choice, "SHIPPED", tmp_path / "shipped")
    choice.forget()
    specification = importlib.util.spec_from_file_location("bench_kernels", BENCH / "kernels.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "bench_kernels", module)
    specification.loader.exec_module(module)
    yield module
    choice.forget()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: a GPU, or the CPU under Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
