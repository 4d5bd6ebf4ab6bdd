"""Each image once, over any number of processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.cases import join, numbered
from ttfs_triton.evaluate.batches import EvaluationBatches, load_batches

# Python 3.12 warns of every fork of a process with threads; the loader's workers are forked.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")


@given(n=st.integers(0, 40), world_size=st.integers(1, 9), batch_size=st.integers(1, 12), first=st.integers(0, 5))
def test_evaluation_batches_share_every_image_exactly_once(n, world_size, batch_size, first):
    data, indices = numbered(50), torch.arange(first, first + n)
    shares = [EvaluationBatches(data, indices, batch_size, rank, world_size) for rank in range(world_size)]
    labels = [label for share in shares for _, batch in share for label in batch.tolist()]
    assert labels == indices.tolist()
    with pytest.raises(IndexError, match="EvaluationBatches: index must be in 0 to "):
        shares[0][len(shares[0])]
    counts = [len(share.indices) for share in shares]
    assert max(counts) - min(counts) <= 1
    for share, count in zip(shares, counts, strict=True):
        assert len(share) == len(list(share)) == -(-count // batch_size)
        assert all(1 <= len(batch) <= batch_size for _, batch in share)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_load_batches_gives_images_and_labels_and_draws_nothing(num_workers, device):
    batches, before = EvaluationBatches(numbered(7, 3), None, 3), torch.get_rng_state()
    images, labels = join(list(load_batches(batches, device, num_workers=num_workers)))
    assert labels.tolist() == list(range(7))
    assert images.dtype == torch.float32
    assert torch.equal(images, (labels / 255).view(7, 1, 1, 1).expand(7, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(load_batches(EvaluationBatches(numbered(1), None, 3, rank=0, world_size=2))) == []
