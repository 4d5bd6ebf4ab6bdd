"""Before training on a GPU: time the layers that no tuned table covers, so that every step takes the faster kernel."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

import ttfs_kernels
from ttfs_triton.nn import TTFSNetwork


def tune_kernels(network: TTFSNetwork, accelerator: Accelerator, batch_size: int, say: Callable[[str], None]) -> None:
    """Choose, for every pass of a network, the faster of our kernel and a library call; on a GPU only.

    The main process times what no table covers, seconds a layer, and keeps it in the user's table; the others get its
    table, so that all choose alike. Weights and random numbers are not touched. A result that is wrong, ours or the
    library's, is reported and not chosen where the other is right; the run goes on.

    Args:
        network: on the accelerator's device.
        accelerator: processes, device, precision.
        batch_size: images a process and micro-batch.
        say: shows a line.
    """
    if accelerator.device.type == "cuda":
        images = torch.zeros(
            batch_size, network.config.in_channels, *network.config.image_size, device=accelerator.device
        )
        choose_kernels(network, accelerator, images, say)


def choose_kernels(network: TTFSNetwork, accelerator: Accelerator, images: Tensor, say: Callable[[str], None]) -> None:
    """As `tune_kernels`, for images [N, channels, height, width] on any device."""
    shared: list[Any] = [None]
    if accelerator.is_main_process:
        training = network.training
        # One pass in each direction tells which passes there are; without dropout it draws no random numbers.
        with accelerator.autocast():
            logits = network.eval()(images)
        network.train(training)
        torch.autograd.grad(logits.float().sum(), list(network.parameters()), allow_unused=True)
        shared[0] = ttfs_kernels.tune(report=say, fault=say)
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    ttfs_kernels.use_measurements(shared[0])
