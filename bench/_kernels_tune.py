"""Time our kernels and the library on a GPU, pass by pass, and write the table that `choice.py` reads.

Nothing is timed before its result agrees with float64.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from _kernels_layers import neuron_of, plan_from
from torch import Tensor
from triton.errors import TritonError
from triton.testing import do_bench

from ttfs_kernels.contraction import contract
from ttfs_kernels.rule import fire_with_derivatives
from ttfs_kernels.triton_backend import library
from ttfs_kernels.triton_backend.choice import FORMAT_VERSION, Entry, forget, read_table
from ttfs_kernels.triton_backend.launch import Device, device_of, precision_of
from ttfs_kernels.triton_backend.planning import Config, alternatives, default_config
from ttfs_kernels.triton_backend.problem import PASSES, Problem
from ttfs_triton.atomic import write_text

Results = tuple[Tensor, ...]
Run = Callable[[], Results]

SILENT = 0.4  # share of silent inputs
CHECKED = 8  # images of a batch that are compared with float64
BORDER = 0.01  # distance from a firing border that rounding to 16 bits may carry a potential across
# Relative error of a rounded result. Float32: sums of thousands of products; libraries also transform their operands.
ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-18}
TF32_ROUNDING = 2.0**-10


def gpu_ms(run: Run) -> float:
    """Median time in ms of a call on the current GPU, with a cold second-level cache."""
    milliseconds: Any = do_bench(run, return_mode="median")
    return milliseconds


@dataclass
class Tuner:
    """Completes a tuning table. All problems have the precision that PyTorch is set to.

    Attributes:
        device: a GPU, or the CPU under Triton's interpreter.
        path: file of the table; programs look for it at `choice.table_path`.
        thorough: time every candidate configuration, not only the default one.
        time_ms: returns the milliseconds of a call.
        report: gets one line per measurement.
        fault: gets one line for each result that does not agree with float64 but must: the library's, and our
            kernel's in its default configuration. Measuring goes on.
    """

    device: torch.device
    path: Path
    thorough: bool = True
    time_ms: Callable[[Run], float] = gpu_ms
    report: Callable[[str], None] = print
    fault: Callable[[str], None] = print

    def complete(self, problems: Iterable[Problem]) -> list[Entry]:
        """Measure every pass of every layer that the table lacks, and write the table after each, so that none is lost.

        Choices made so far are forgotten.

        Returns:
            All entries of the table, the old ones first.
        Raises:
            ValueError: `path` is not a tuning table.
        """
        entries = {(entry.which, entry.problem, entry.precision): entry for entry in read_table(self.path)}
        for problem, which in product(problems, PASSES):
            key = which, problem.of_pass(which), precision_of(problem, self.device)
            if key not in entries and (entry := self.measure(*key)) is not None:
                entries[key] = entry
                write_table(self.path, entries.values(), device_of(self.device))
        forget()
        return list(entries.values())

    def measure(self, which: str, problem: Problem, precision: str) -> Entry | None:
        """Time our kernel and the library on one pass.

        Args:
            which: "forward", "grad_x" or "grad_w".
            problem: the layer.
            precision: precision of float32 products, "ieee" or "tf32".
        Returns:
            The fastest configuration, its time, and the library's time, inf if its result is wrong. None if no
            configuration both runs and agrees.
        Raises:
            RuntimeError: the GPU itself failed.
        """
        here, operands = device_of(self.device), Operands.random(problem, self.device)
        images = torch.linspace(0, problem.batch - 1, min(problem.batch, CHECKED), device=self.device).round().long()
        checked = operands.from_images(images) if which == "grad_w" else operands
        expected = operands.expected(which, images)

        def agrees(run: Run) -> bool:
            found = run() if which == "grad_w" else tuple(result[images] for result in run())
            return all(close(*pair, precision) for pair in zip(found, expected, strict=True))

        def blame(who: str) -> None:
            self.fault(f"{who} {which} of {special(problem)} must run and agree with float64; it does not. Report it.")

        library_ms, times, failures = math.inf, {}, Counter[str]()
        with suppress(RuntimeError):  # such as too little memory
            if agrees(checked.by_library(which)):
                library_ms = self.time_ms(operands.by_library(which))
        if library_ms == math.inf:
            blame("the library's")
        default, *others = candidates(which, problem, here, precision)
        for config in (default, *others) if self.thorough else (default,):
            try:
                if agrees(checked.by_kernels(which, config, precision, here)):
                    times[config] = self.time_ms(operands.by_kernels(which, config, precision, here))
                else:
                    failures["wrong"] += 1
            except (TritonError, RuntimeError):  # too large for this chip, or cannot be compiled
                failures["cannot run"] += 1
                if self.device.type == "cuda":
                    torch.cuda.synchronize()  # raises if the GPU itself failed: nothing after that can be trusted
        if default not in times:
            blame("our kernel's")
        best = min(times, key=times.__getitem__, default=None)
        left_out = "".join(f", {count} {kind}" for kind, count in failures.items())
        ours = "none" if best is None else f"{times[best]:.4f} ms ({special(best)})"
        self.report(f"{which} of {special(problem)}, {precision}: ours {ours}, library {library_ms:.4f} ms{left_out}")
        return None if best is None else Entry(which, problem, precision, best, times[best], library_ms)


def special(value: Problem | Config) -> str:
    """The fields that differ from their defaults, as text."""
    values = {field.name: (getattr(value, field.name), field.default) for field in fields(value)}
    return ", ".join(f"{name} {found}" for name, (found, default) in values.items() if found != default)


def candidates(which: str, problem: Problem, here: Device, precision: str) -> list[Config]:
    """Configurations worth timing, without duplicates; the default comes first."""
    default = default_config(which, problem, here.chip, precision, here.processors)
    half = 32 if problem.dtype.itemsize == 2 else 16
    sides = ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32))
    tried = [default]
    for (block_m, block_n), block_k, stages in product(sides, (half, 2 * half), (2, 3, 4)):
        warps = 8 if block_m * block_n >= 128 * 128 else 4
        tried += alternatives(which, problem, Config(block_m, block_n, block_k, warps, stages), here.chip)
    return list(dict.fromkeys(tried))


@dataclass(frozen=True)
class Operands:
    """Random operands of all passes of a layer, as rows in memory.

    Few potentials are near the firing borders, where rounding decides whether a neuron fires. Some channels are silent
    and some saturated, by their bias; the others fire inside the window.

    Attributes:
        problem: the layer.
        x: [B, H, W, C] activations, about 40 % of them 0.
        weight: [N, R, S, C / groups].
        bias: [N] float32.
        pair: [2, B, P, Q, N], h and slope_h; for σ = 0 [1, ...], h alone.
    """

    problem: Problem
    x: Tensor
    weight: Tensor
    bias: Tensor
    pair: Tensor

    @staticmethod
    def random(problem: Problem, device: torch.device, seed: int = 0) -> Operands:
        """Operands that are the same for the same seed and device type."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
            torch.manual_seed(seed)
            images = (problem.batch, problem.height, problem.width, problem.in_channels)
            x = (torch.rand(images) * (torch.rand(images) > SILENT)).to(problem.dtype)
            # Weights of the firing inputs add up to half a threshold, plus little noise: without bias, 0 < A < 1 and
            # A + W > 0.
            noise = torch.randn(problem.out_channels, *problem.kernel, problem.group_inputs)
            weight = 0.5 / ((1 - SILENT) * problem.depth) + 0.1 / problem.depth**0.5 * noise
            kinds = torch.rand(problem.out_channels)
            bias = 1.5 * (kinds > 0.9).float() - 1.5 * (kinds < 0.3).float()
            halves = 2 if problem.with_slope else 1
            pair = torch.randn(halves, problem.batch, *problem.out_size, problem.out_channels)
        return Operands(problem, x, weight.to(problem.dtype), bias, pair.to(problem.dtype))

    def from_images(self, images: Tensor) -> Operands:
        """The same operands with the gradient of these images alone; it is 0 for all others."""
        pair = torch.zeros_like(self.pair)
        pair[:, images] = self.pair[:, images]
        return Operands(self.problem, self.x, self.weight, self.bias, pair)

    def expected(self, which: str, images: Tensor) -> Results:
        """Results in float64 for these images; for grad_w, the sum over these images. NaN where nothing is compared."""
        x, weight, pair = self.x[images].double(), self.weight.double(), self.pair[:, images].double()
        neuron = neuron_of(self.problem)
        if which == "grad_x":
            return (library.grad_x(self.problem, pair, x, weight, neuron),)
        if which == "grad_w":
            return (library.grad_w(self.problem, pair, x, weight),)
        x, weight = (rows.permute(0, 3, 1, 2) for rows in (x, weight))
        A, W = (
            contract(operand, weight, bias, self.problem.geometry).permute(0, 2, 3, 1)
            for operand, bias in ((x, self.bias.double()), ((x > 0).double(), None))
        )
        if not self.problem.with_slope:
            return (A.clamp(0, 1),)
        y, gain, _ = fire_with_derivatives(A, W, replace(neuron, derivative_clip=None))
        # The gain jumps where a neuron only just fires, or only just fires at once.
        return y, gain.masked_fill(((A + W).abs() < BORDER) | ((A - 1).abs() < BORDER), torch.nan)

    def by_kernels(self, which: str, config: Config, precision: str, here: Device) -> Run:
        """A function that runs a pass by our kernel; its outputs are allocated once."""
        halves = self.pair[0], self.pair[1] if len(self.pair) == 2 else None
        operands = self.x, self.weight, self.bias, *halves
        plan = plan_from(which, self.problem, operands, config, precision, here)
        return lambda: tuple(result for result in plan.run() if result is not None)

    def by_library(self, which: str) -> Run:
        """A function that runs a pass by the library."""
        problem, neuron = self.problem, neuron_of(self.problem)
        if which == "grad_x":
            return lambda: (library.grad_x(problem, self.pair, self.x, self.weight, neuron),)
        if which == "grad_w":
            return lambda: (library.grad_w(problem, self.pair, self.x, self.weight),)
        results = lambda: library.forward(problem, self.x, self.weight, self.bias, neuron, True)  # noqa: E731
        return lambda: tuple(result for result in results() if result is not None)


def close(found: Tensor, expected: Tensor, precision: str) -> bool:
    """Whether rounding in the dtype of `found` explains the difference."""
    if found.shape != expected.shape or expected.isnan().all():
        return False
    kept = ~expected.isnan()
    tf32 = found.dtype == torch.float32 and precision == "tf32"
    rounding = TF32_ROUNDING if tf32 else ROUNDING[found.dtype]
    scale = expected[kept].square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    error = (found[kept].double() - expected[kept]) / scale
    # Written so that a NaN in `found` never agrees.
    return bool(error.abs().max() <= 24 * rounding and error.square().mean().sqrt() <= 3 * rounding)


def write_table(path: Path, entries: Iterable[Entry], device: Device) -> None:
    """Replace a whole table; one entry per line."""
    about = {
        "format_version": FORMAT_VERSION,
        "device": device.name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
    lines = ",\n".join(json.dumps(entry.to_dict()) for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f'{json.dumps(about)[:-1]}, "entries": [\n{lines}\n]}}\n')
