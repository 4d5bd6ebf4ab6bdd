"""DistributedDataParallel: two processes with half a batch each get the statistics and gradients of the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.kernels.common import activations, weights
from tests.kernels.test_normalised import BACKENDS
from ttfs_kernels import Neuron, Normalisation, dft_conv2d, normalised_linear


class Network(nn.Module):
    """A plain layer, and one whose potentials all processes of `group` normalise together."""

    def __init__(self, backend: str, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.options = {"neuron": Neuron(0.25, surrogate_width=0.5), "backend": backend}
        kernel = weights(6, 3, 3, 3).contiguous(memory_format=torch.channels_last)
        self.kernel, self.potential = nn.Parameter(kernel), nn.Parameter(torch.zeros(6))
        self.matrix = nn.Parameter(weights(4, 6 * 5 * 5))
        self.gamma, self.beta = nn.Parameter(0.3 + torch.rand(4)), nn.Parameter(torch.zeros(4))
        self.group = group

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = dft_conv2d(x, self.kernel, self.potential, padding=1, **self.options)
        norm = Normalisation(self.gamma, self.beta, torch.zeros(4), group=self.group)
        return normalised_linear(hidden.flatten(1), self.matrix, norm, **self.options)


def step(network: nn.Module, share: slice) -> dict[str, Tensor]:
    """Activations, statistics and all gradients of a share of the batch."""
    torch.manual_seed(4)
    found = network(activations(6, 3, 5, 5)[share])
    found[0].square().mean().backward()
    gradients = {name.removeprefix("module."): p.grad.contiguous() for name, p in network.named_parameters()}
    return dict(zip(("y", "mean", "variance"), (value.detach() for value in found), strict=True)) | gradients


def train(rank: int, folder: str, backend: str) -> None:
    """One of two processes: its half of the batch, a backward pass, what it found into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/rendezvous", 2), rank=rank, world_size=2)
    model = DistributedDataParallel(Network(backend, dist.group.WORLD))
    save_file(step(model, slice(3 * rank, 3 * rank + 3)), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
@BACKENDS
def test_two_processes_find_what_one_does(tmp_path: Path, backend) -> None:
    mp.spawn(train, (str(tmp_path), backend), nprocs=2)
    alone = step(Network(backend), slice(None))
    both = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, value in alone.items():
        assert value.any()
        found = [torch.cat([one["y"] for one in both])] if name == "y" else [one[name] for one in both]
        for ours in found:
            torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-6)
