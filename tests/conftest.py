"""The same random numbers and no time limits in every test, so that a failure can be repeated anywhere."""

import os

import pytest
import torch
from hypothesis import settings

# Without a GPU, kernels run in Triton's interpreter; Triton reads this when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The first example of a test may compile or import for seconds: no deadline.
settings.register_profile("ttfs", deadline=None)
settings.load_profile("ttfs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU that Triton supports; skipped elsewhere")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
