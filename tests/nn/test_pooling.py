import pytest
import torch

from tests.nn.common import activations
from ttfs_triton.nn import EarliestSpikePool2d, activation_to_spike_time


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, None), (3, 2), ((2, 1), (1, 2))])
def test_pooling_keeps_the_earliest_spike_of_each_patch(kernel_size, stride):
    pool = EarliestSpikePool2d(kernel_size, stride)
    x = activations(2, 3, 6, 7, seed=1, silent=0.6)
    pooled = activation_to_spike_time(pool(x), layer=0)
    times = activation_to_spike_time(x, layer=0)
    rows, columns = pool.kernel_size
    for n, c, p, q in torch.cartesian_prod(*map(torch.arange, pooled.shape)).tolist():
        i, j = p * pool.stride[0], q * pool.stride[1]
        assert pooled[n, c, p, q] == times[n, c, i : i + rows, j : j + columns].min()


def test_pooling_sends_the_gradient_to_the_earliest_spike():
    x = torch.tensor([[[[0.2, 0.9], [0.0, 0.5]]]], requires_grad=True)
    EarliestSpikePool2d(2)(x).backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0, 1, 0, 0]


def test_pooling_keeps_channels_last():
    x = activations(2, 3, 4, 4, seed=1).contiguous(memory_format=torch.channels_last)
    assert EarliestSpikePool2d(2)(x).is_contiguous(memory_format=torch.channels_last)
    assert repr(EarliestSpikePool2d(2)) == "EarliestSpikePool2d(kernel_size=(2, 2), stride=(2, 2))"


def test_pooling_rejects_empty_patches():
    with pytest.raises(ValueError, match="kernel_size and stride must be positive; got 0, None"):
        EarliestSpikePool2d(0)
