"""The same random numbers and no time limits in every test, so that a failure can be repeated anywhere."""

import pytest
import torch
from hypothesis import settings

# The first example of a test may compile or import for seconds: no deadline.
settings.register_profile("ttfs", deadline=None)
settings.load_profile("ttfs")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
