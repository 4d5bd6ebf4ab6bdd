"""Calls of layers on a GPU that is not there, timed on the host; prints rows as JSON.

A program of its own, which imports nothing but the kernels package that Python finds: it may be another commit's.
"""

import json
import time
from collections.abc import Callable
from functools import reduce
from statistics import median
from typing import Any

import _absent_gpu
import _empty_operator
import torch
from torch import Tensor

from ttfs_kernels import dft_conv2d, dft_linear

CALLS, BATCHES, WARM_UP = 24, 40, 30
DEPTH = 8  # divides CALLS
MODES = ("forward, no gradients", "forward", "forward and backward", f"forward and backward, one of {DEPTH}")


def measure() -> list[dict[str, Any]]:
    """Rows of all layers and modes for the package that Python finds."""
    _absent_gpu.pretend()
    rows = []
    for name, layer, tensors in layers():
        for mode in MODES:
            run = call(layer, tensors, mode)
            depth = DEPTH if mode == MODES[3] else 1
            run()
            _absent_gpu.launched.clear()
            run()
            launches, _absent_gpu.listening = len(_absent_gpu.launched) // depth, False
            rows.append({"layer": name, "mode": mode, "launches": launches} | times_us(run, depth))
            _absent_gpu.listening = True
    return rows


def layers() -> list[tuple[str, Callable[..., Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """Name, function of (x, weight, bias), and operands; 16-bit activations and weights, as in mixed precision."""

    def half(*shape: int) -> Tensor:
        tensor = torch.rand(shape).half()
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    convolution = half(4, 64, 8, 8), half(64, 64, 3, 3), torch.zeros(64)
    linear = half(16, 512), half(512, 512), torch.zeros(512)
    return [
        ("3×3 convolution, 64 → 64", lambda *a: dft_conv2d(*a, padding=1, backend="triton"), convolution),
        ("fully connected, 512 → 512", lambda *a: dft_linear(*a, backend="triton"), linear),
        ("operator that only allocates", _empty_operator.layer, convolution),
    ]


def call(layer: Callable[..., Tensor], tensors: tuple[Tensor, Tensor, Tensor], mode: str) -> Callable[[], object]:
    """One call in a mode; in the last, of layers in a row, which share what a backward pass takes by itself."""
    if mode == MODES[0]:
        return lambda: layer(*tensors)
    x, *parameters = (tensor.detach().requires_grad_() for tensor in tensors)
    if mode == MODES[1]:
        return lambda: layer(x, *parameters)
    depth = DEPTH if mode == MODES[3] else 1
    network = [[tensor.detach().requires_grad_() for tensor in parameters] for _ in range(depth)]
    operands = [x, *(tensor for parameters in network for tensor in parameters)]

    def forward() -> Tensor:
        return reduce(lambda activations, parameters: layer(activations, *parameters), network, x)

    grad = torch.ones_like(forward())
    return lambda: torch.autograd.grad(forward(), operands, grad)


def times_us(run: Callable[[], object], depth: int) -> dict[str, float]:
    """Microseconds of a layer: lowest and median of the batches, by the clock and by the thread's processor time."""
    for _ in range(WARM_UP):
        run()
    clock, processor = [], []
    calls = CALLS // depth
    for _ in range(BATCHES):
        start = time.perf_counter(), time.thread_time()
        for _ in range(calls):
            run()
        clock.append((time.perf_counter() - start[0]) / CALLS * 1e6)
        processor.append((time.thread_time() - start[1]) / CALLS * 1e6)
    return {
        "clock_us_lowest": round(min(clock), 1),
        "clock_us_median": round(median(clock), 1),
        "processor_us_lowest": round(min(processor), 1),
        "processor_us_median": round(median(processor), 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
