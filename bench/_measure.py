"""Training steps: what they compute (checked first), how long they take, how much memory they hold."""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from _contenders import Contender
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ttfs_kernels import fuse_passes
from ttfs_triton.nn import DFTConv2d, DFTLinear, TTFSNetwork, record_statistics

FEW, PARTS = 2, 5  # images that are compared at a time, and how often


class DisagreementError(RuntimeError):
    """Two contenders that should compute the same do not; nothing may be timed then."""


@dataclass
class Step:
    """A contender's training step on one batch.

    Attributes:
        forward_backward_ms, step_ms: one entry a round; the step is forward, loss, backward and update.
    """

    contender: Contender
    images: Tensor
    labels: Tensor
    dtype: torch.dtype
    optimizer: torch.optim.Optimizer | None
    forward_backward_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)

    def forward_backward(self) -> None:
        """Leaves gradients in the parameters."""
        network = self.contender.network
        network.zero_grad(set_to_none=True)
        fuse_passes(self.contender.fused)
        with record_statistics(network) if self.contender.statistics else nullcontext():
            loss_of(network, self.images, self.labels, self.dtype).backward()

    def update(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()

    def time(self) -> None:
        """Run once and note the times."""
        start = now(self.images.device)
        self.forward_backward()
        middle = now(self.images.device)
        self.update()
        end = now(self.images.device)
        self.forward_backward_ms.append((middle - start) * 1e3)
        self.step_ms.append((end - start) * 1e3)


def now(device: torch.device) -> float:
    """Seconds, when all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def loss_of(network: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Cross entropy, with autocast unless dtype is float32."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits = network(images)
    return F.cross_entropy(logits.float(), labels)


def check(step: Step) -> float | None:
    """Relative error of a step's gradients; loss and gradients must be those of its twin, if it has one.

    In float32 both agree to rounding, but for a neuron that one lets fire just before its window ends and the other
    does not: with millions of neurons one is bound to, and its image has other gradients. So the losses of a few images
    at a time are compared, and the median counts. In bfloat16 they need not agree with each other, since a rounded
    potential decides whether a neuron fires; there the step may be little farther than its twin from the float32
    gradients.

    Raises:
        DisagreementError: they are not.
    """
    if step.contender.twin is None:
        return None
    dtype = step.dtype
    if dtype == torch.float32:
        found = [_compare(step, dtype, some) for some in torch.arange(len(step.images)).split(FEW)[:PARTS]]
        losses, error, allowed = sorted(found, key=lambda part: (math.isnan(part[1]), part[1]))[len(found) // 2]
        loss_allowed = 1e-4
    else:
        losses, error, allowed = _compare(step, dtype, slice(None))
        loss_allowed = 0.05
    if not (error <= allowed and abs(losses[0] - losses[1]) <= loss_allowed * abs(losses[1])):
        raise DisagreementError(
            f"{step.contender.name} must agree with its twin in {dtype}; got losses {losses[0]:.6g} and "
            f"{losses[1]:.6g}, gradients {error:.2g} apart (at most {allowed:.2g}). Nothing was timed."
        )
    return error


def _compare(step: Step, dtype: torch.dtype, some: Tensor | slice) -> tuple[tuple[float, float], float, float]:
    """Losses of a step and its twin on some images, how far their gradients are apart, and how far they may be."""
    assert step.contender.twin is not None
    labels = torch.full_like(step.labels, -100)  # which cross entropy leaves out; the batch, and so the kernels, stay
    labels[some] = step.labels[some]
    batch = step.images, labels
    ours, twin = step.contender.network, step.contender.twin.to(step.images.device)
    expected_loss, expected = _gradients(twin, *batch, torch.float32)
    loss, gradients = _gradients(ours, *batch, dtype)
    allowed = 1e-3
    if dtype != torch.float32:
        allowed = 1.25 * _distance(_gradients(twin, *batch, dtype)[1], expected) + 0.02
    return (loss, expected_loss), _distance(gradients, expected), allowed


def _gradients(network: TTFSNetwork, images: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[float, Tensor]:
    """Loss, and all gradients as one float64 vector; exact ones, without the bound on derivatives."""
    layers = [module for module in network.modules() if isinstance(module, DFTConv2d | DFTLinear)]
    neurons = [layer.neuron for layer in layers]
    for layer in layers:
        layer.neuron = dataclasses.replace(layer.neuron, derivative_clip=None)
    network.zero_grad(set_to_none=True)
    loss = loss_of(network, images, labels, dtype)
    loss.backward()
    for layer, neuron in zip(layers, neurons, strict=True):
        layer.neuron = neuron
    gradients = [p.grad.flatten().double() for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    return loss.item(), torch.cat(gradients)


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative; nan, which no bound admits, if there are no gradients at all."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def peak_mib(step: Step) -> float:
    """Most memory held by tensors at any time of a step: parameters, optimizer, activations, gradients, scratch.

    Counted by PyTorch's allocators, on the CPU too; neither scratch inside libraries nor other contenders are in it.
    """
    step.forward_backward()
    step.update()  # makes the optimizer's state
    network = step.contender.network
    held = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for state in step.optimizer.state.values() if step.optimizer is not None else ():
        held |= {id(value): value for value in state.values() if isinstance(value, Tensor)}
    persistent = sum(tensor.nbytes for tensor in held.values())
    network.zero_grad(set_to_none=True)

    def run() -> None:
        step.forward_backward()
        step.update()

    return (persistent + transient_bytes(run, step.images.device)) / 2**20


def transient_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most memory that tensors made by a call hold at any time of it, counted by PyTorch's allocators."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _silent_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return _highest_sum(profiler)


def _highest_sum(profiler: profile) -> int:
    """Peak of the running sum over allocations and releases."""
    raw: Any = profiler.profiler
    events = [event for event in raw.kineto_results.events() if event.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """Keep the profiler's own notes off the screen; they go to the file descriptor of standard error."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
