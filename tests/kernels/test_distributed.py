"""DistributedDataParallel: two processes see halves of a batch and get the gradients of the whole."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.kernels.common import activations, weights
from ttfs_kernels import Neuron, dft_conv2d, dft_linear


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        kernel = weights(6, 3, 3, 3).contiguous(memory_format=torch.channels_last)
        self.kernel, self.potential = nn.Parameter(kernel), nn.Parameter(torch.zeros(6))
        self.matrix = nn.Parameter(weights(4, 6 * 5 * 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = dft_conv2d(x, self.kernel, self.potential, padding=1)
        return dft_linear(hidden.flatten(1), self.matrix, neuron=Neuron(0.25))


def batch() -> Tensor:
    torch.manual_seed(4)
    return activations(6, 3, 5, 5)


def train(rank: int, folder: str) -> None:
    """One of two processes: its half of the batch, a backward pass, its gradients into a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/rendezvous", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = DistributedDataParallel(Network())
    model(batch()[rank::2]).square().mean().backward()
    gradients = {name: p.grad.contiguous() for name, p in model.module.named_parameters() if p.grad is not None}
    save_file(gradients, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(train, (str(tmp_path),), nprocs=2)
    alone = Network()
    alone(batch()).square().mean().backward()
    for rank in (0, 1):
        gradients = load_file(tmp_path / f"{rank}.safetensors")
        assert gradients.keys() == dict(alone.named_parameters()).keys()
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()
            torch.testing.assert_close(gradients[name], parameter.grad)
