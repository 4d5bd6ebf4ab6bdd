"""Two processes that share the statistics of batch norm compute those and the gradients of the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.kernels.common import Kind, operands
from tests.kernels.test_normalised import BACKENDS
from ttfs_kernels import Neuron, Normalisation, normalised_linear

NAMES = ("x", "weight", "gamma", "bias")


def step(share: slice, backend: str, group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """Activations, statistics and gradients of a share of the batch."""
    torch.manual_seed(3)
    x, weight, gamma, beta = operands(Kind((6, 150), (4, 150)), *NAMES).values()
    x = x.detach()[share].requires_grad_()
    norm = Normalisation(gamma, beta, torch.zeros(4), group=group)
    outputs = normalised_linear(x, weight, norm, neuron=Neuron(0.25, surrogate_width=0.5), backend=backend)
    gradients = torch.autograd.grad(outputs.activations.square().sum(), (x, weight, gamma, beta))
    values = outputs._asdict() | dict(zip(NAMES, gradients, strict=True))
    return {name: value.detach().contiguous() for name, value in values.items()}


def compute(rank: int, folder: str, backend: str) -> None:
    """One of two processes: its half of the batch, and its results in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/rendezvous", 2), rank=rank, world_size=2)
    save_file(step(slice(3 * rank, 3 * rank + 3), backend, dist.group.WORLD), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
@BACKENDS
def test_two_processes_compute_what_one_does(tmp_path: Path, backend) -> None:
    mp.spawn(compute, (str(tmp_path), backend), nprocs=2)
    halves = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, value in step(slice(None), backend).items():
        assert value.any()
        parts = [half[name] for half in halves]
        joined = torch.cat(parts) if name in ("activations", "x") else sum(parts)
        for ours in parts if name in ("mean", "variance") else [joined]:
            torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-6)
