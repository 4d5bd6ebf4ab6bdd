"""The virtual device itself: it must refuse and count what a real one refuses and waits for."""

import pytest
import torch
import torch.nn.functional as F

from tests.virtual_cuda import recording
from ttfs_kernels import checks
from ttfs_triton.nn import DFTConv2d


@pytest.mark.parametrize(
    "meet",
    [
        lambda x: x + torch.zeros(3),
        lambda x: torch.cat([x, torch.zeros(3)]),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: F.linear(x, torch.zeros(2, 3)),
        lambda x: torch.zeros(3)[x.long()],
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
    ],
)
def test_tensors_of_two_devices_do_not_meet(watched_device, meet):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        meet(torch.ones(3, device=watched_device))


def test_scalars_and_indices_may_come_from_the_host(watched_device):
    x = torch.arange(3.0, device=watched_device)
    assert (x * torch.tensor(2.0)).is_cuda
    assert x[torch.tensor([2, 0])].tolist() == [2, 0]
    x[[0], ...] = 3.0
    assert x[range(0, 2)].tolist() == [3, 1]
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="not implemented for 'torch"):
        torch.ones(2, 2, dtype=torch.int64, device=watched_device) @ x.long().view(3, 1)[:2]


@pytest.mark.parametrize(
    ("wait", "times"),
    [
        (lambda x: bool((x > 0).any()), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.zeros(3).to(x.device), 1),
        (lambda x: torch.zeros(3).to(x.device, non_blocking=True), 0),
        (lambda x: torch.tensor(3, device=x.device), 1),
        (lambda x: x.repeat_interleave(2).sum() * 2 + x.add_(1).view(3, 1).mean(), 0),
        (lambda x: torch.cuda.synchronize(), 1),
    ],
)
def test_what_waits_for_the_device_is_counted(watched_device, wait, times):
    x = torch.ones(3, device=watched_device)
    with recording() as record:
        wait(x)
    assert record.synchronisations.total() == times


def test_batch_norm_on_a_gpu_is_our_kernels_and_waits_for_nothing(watched_device, monkeypatch):
    """All that a captured step needs: σ, shapes and the count of rows are the host's already."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(checks, "_choice", "auto")
    layer = DFTConv2d(2, 4, 3, batch_norm=True).to(watched_device)
    x = torch.rand(2, 2, 6, 6, device=watched_device)
    with recording() as record:
        layer(x).sum().backward()
    assert record.launches["fire_rows"] == 1
    assert record.launches["differentiate_rows"] == 2
    assert record.synchronisations == {}
    assert {"convolution", "mm", "addmm"}.isdisjoint(record.operators)
    assert layer.weight.grad.is_cuda
    assert layer.batch_norm.running_mean.any()
