from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget compiled graphs, so that those of other tests do not count against the limit of a code object."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
