"""Two real processes (gloo) count what one does, also when they share the samples unevenly."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator

from ttfs_triton.hardware import Counts
from ttfs_triton.hardware.counts.counter import count, counting
from ttfs_triton.nn import cnn1


def samples() -> torch.Tensor:
    torch.manual_seed(4)
    return torch.rand(7, 1, 28, 28)


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return cnn1(width=0.25, initial_gain=2.0)


def share(rank: int, folder: str) -> None:
    """One of two processes: four samples or three."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # asked for, not used
    torch.set_num_threads(1)
    # A file, since a free port may be taken by somebody else before it is used.
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/rendezvous", 2), rank=rank, world_size=2)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    # Neurons that never fired in one process may have in the other; histograms add up.
    with counting(model := network().eval()) as counter, torch.no_grad():
        model(samples()[rank::2])
    found = counter.counts(accelerator).to_dict()
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_count_what_one_does(tmp_path):
    mp.spawn(share, (str(tmp_path),), nprocs=2)
    ours, theirs = (Counts.from_dict(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in (0, 1))
    assert ours == theirs
    alone = count(network(), [samples()])
    assert ours.samples == alone.samples == 7
    for one, two in zip(alone.layers, ours.layers, strict=True):
        one, two = one.to_dict(), two.to_dict()
        for key in ("summed_spike_time", "driven_time"):
            assert abs(one.pop(key) - two.pop(key)) < 1e-3
        assert one == two
    assert ours.input == alone.input
