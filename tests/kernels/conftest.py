"""Fixtures: the backends to test, and a state that is independent of earlier tests and the environment.

Triton kernels run on the GPU if there is one, else in Triton's interpreter on the CPU.
"""

import sys
from collections.abc import Iterator

import pytest
import torch

from tests.kernels.common import HAS_TRITON, Served, serving
from ttfs_kernels import checks


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that Triton kernels run on: the GPU, or the CPU with the interpreter."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(scope="module", params=("torch", "triton") if HAS_TRITON else ("torch",))
def served(request: pytest.FixtureRequest, device: torch.device) -> Served:
    """Each backend."""
    return serving(request.param, device)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget compiled graphs, which count against the limit per code object, and chips, as in a new process."""
    torch.compiler.reset()
    getattr(sys.modules.get("ttfs_kernels.triton.common"), "_chips", {}).clear()
    yield
    torch.compiler.reset()


@pytest.fixture(autouse=True)
def _fresh_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset backend choices of earlier tests and of the environment."""
    monkeypatch.setattr(checks, "_choice", "auto")
