"""Time our kernels and the library on a GPU, pass by pass, and keep the results where `choice.py` looks them up.

Nothing is timed before its result agrees with float64. Times are those of the GPU: it is kept busy while the calls
are queued, so that no waiting for Python is in them, and its caches are cold.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import torch
from _kernels_trial import (
    Operands,
    Results,
    checked_images,
    compare,
    expected_results,
    neuron_of,
    random_operands,
    windows,
)
from torch import Tensor

from ttfs_kernels.triton_backend.choice import FORMAT_VERSION, Entry, forget, read_table
from ttfs_kernels.triton_backend.configs import Config, candidates
from ttfs_kernels.triton_backend.formulation import triton_version
from ttfs_kernels.triton_backend.launch import Device, device_of, precision_of, unavailable
from ttfs_kernels.triton_backend.problem import PASSES, Problem

Timer = Callable[[Callable[[], object]], float]  # milliseconds of a call

WARM_UP, REPEATS = 3, 20
CACHE_BYTES = 1 << 28  # more than any GPU's second-level cache
BUSY_CYCLES = 10_000_000  # five milliseconds or more: longer than queueing a backward pass


def gpu_times_ms(
    run: Callable[[], object], prepare: Callable[[], object] | None = None, repeats: int = REPEATS
) -> list[float]:
    """Times of `run` on the current GPU, measured by events; `prepare` runs before each and is not counted."""
    for _ in range(WARM_UP):
        if prepare is not None:
            prepare()
        run()
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")
    pairs = []
    for _ in range(repeats):
        if prepare is not None:
            prepare()
        cache.zero_()
        torch.cuda._sleep(BUSY_CYCLES)
        pairs.append(tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)))
        pairs[-1][0].record()
        run()
        pairs[-1][1].record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def gpu_ms(run: Callable[[], object]) -> float:
    """Median of `gpu_times_ms`."""
    return median(gpu_times_ms(run))


def measure_entry(
    which: str,
    problem: Problem,
    device: torch.device,
    precision: str,
    *,
    thorough: bool = True,
    time_ms: Timer = gpu_ms,
    report: Callable[[str], None] | None = None,
    fault: Callable[[str], None] | None = None,
    unpooled: Entry | None = None,
) -> Entry | None:
    """Time our kernel, in every candidate configuration or in the default one, and the library, on one pass.

    Args:
        which: "forward", "grad_x" or "grad_w".
        problem: the layer.
        device: a GPU, or the CPU under Triton's interpreter.
        precision: of float32 products, "ieee" or "tf32"; PyTorch must be set to the same.
        thorough: all candidate configurations, not the default one alone.
        time_ms: milliseconds of a call.
        report: gets one line that says what was found.
        fault: gets one line for each result that must agree with float64 and does not: the library's, and that of our
            kernel in its default configuration. The measurement goes on.
        unpooled: of a forward pass with a pool, the measurement without it. The library's place is then
            taken by the faster of both without the pool, followed by the kernel that pools.
    Returns:
        The fastest configuration with its time and the library's, inf if that is wrong; None if no configuration both
        runs and agrees.
    Raises:
        RuntimeError: a result that must agree does not, and `fault` is None; or the GPU itself failed.
    """
    from triton.errors import TritonError

    this = device_of(device)
    if problem.pool > 1 and unpooled is None:
        raise ValueError("measure_entry: a layer with a pool must come with its measurement without; got None.")
    operands = random_operands(problem, device)
    images = checked_images(problem.batch, device)
    checked = operands.from_images(images) if which == "grad_w" else operands
    expected = expected_results(which, problem, operands, images)

    def agrees(results: Results) -> bool:
        some = results if which == "grad_w" else tuple(result[images] for result in results)
        pairs = zip(some, expected, strict=True) if problem.pool == 1 else windows(problem, some, expected)
        return all(compare(*pair, precision)[1] for pair in pairs)

    def other(operands: Operands) -> Callable[[], Results]:
        if unpooled is None:
            return _library(which, problem, operands)
        return _pooled_apart(problem, operands, unpooled, precision, this)

    def blame(who: str, advice: str) -> None:
        message = (
            f"measure_entry: {who} {which} of {problem.to_dict()} must run and agree with float64; it does not. "
            f"Please report this with your versions of {advice}."
        )
        if fault is None:
            raise RuntimeError(message)
        fault(message)

    library_ms = math.inf
    if agrees(other(checked)()):
        library_ms = time_ms(other(operands))
    else:
        blame("the library's", "PyTorch and cuDNN")
    times: dict[Config, float] = {}
    failures: Counter[str] = Counter()
    default, *others = candidates(which, problem, this.chip, precision, triton_version(), this.processors)
    for config in (default, *others) if thorough else (default,):
        try:
            if agrees(_kernels(which, problem, checked, config, precision, this)()):
                times[config] = time_ms(_kernels(which, problem, operands, config, precision, this))
            else:
                failures["wrong"] += 1
        except (TritonError, RuntimeError):  # too large for this chip, or not to be built
            failures["cannot run"] += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # raises if the GPU itself failed: nothing after that can be trusted
    if default not in times:
        blame("our kernel's", "the GPU, PyTorch and Triton")
    best = min(times, key=lambda config: times[config], default=None)
    if report is not None:
        report(_line(which, problem, precision, None if best is None else (best, times[best]), library_ms, failures))
    return None if best is None else Entry(which, problem, precision, best, times[best], library_ms)


def tune_layers(
    problems: Iterable[Problem],
    path: Path,
    *,
    device: torch.device | None = None,
    thorough: bool = True,
    timer: Timer | None = None,
    report: Callable[[str], None] | None = None,
    fault: Callable[[str], None] | None = None,
) -> list[Entry]:
    """Measure every pass of every layer that a table lacks, and write the table after each, so that none is lost.

    Float32 products are measured in the precision that PyTorch is set to. Choices made so far are forgotten.

    Args:
        problems: layers; those of one shape are measured once.
        path: the table, `choice.table_paths(...)[0]` to be found by this user's programs.
        device: default: the current GPU.
        thorough: every candidate configuration, not only the default one.
        timer: milliseconds of a call. Default: `gpu_ms`.
        report: gets one line a measurement.
        fault: gets one line for each result that is wrong, see `measure_entry`.
    Returns:
        All entries of the table, the old ones first.
    Raises:
        RuntimeError: Triton kernels cannot run on the device; or as `measure_entry`.
        ValueError: `path` is another kind of file.
    """
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    problems = list(dict.fromkeys(problems))
    for problem in problems:
        reason = unavailable(device, problem.dtype)
        if reason is not None:
            raise RuntimeError(f"tune: device must be able to run Triton kernels; {reason}. Nothing was measured.")
    wanted = [(which, problem.of_pass(which), precision_of(problem)) for problem in problems for which in PASSES]
    return complete(path, wanted, device, thorough=thorough, timer=timer, report=report, fault=fault)


def complete(
    path: Path,
    wanted: Iterable[tuple[str, Problem, str]],
    device: torch.device,
    *,
    thorough: bool = True,
    timer: Timer | None = None,
    report: Callable[[str], None] | None = None,
    fault: Callable[[str], None] | None = None,
) -> list[Entry]:
    """As `tune_layers`, for some passes: (pass, layer, precision) each, PyTorch being set to that precision."""
    entries = {(entry.which, entry.problem, entry.precision): entry for entry in read_table(path)}
    for which, problem, precision in _with_unpooled(wanted):
        if (which, problem, precision) in entries:
            continue
        options = {"thorough": thorough, "time_ms": timer or gpu_ms, "report": report, "fault": fault}
        if problem.pool > 1:
            options["unpooled"] = entries.get((which, problem.unpooled, precision))
            if options["unpooled"] is None:
                continue  # nothing ran, and that has been reported
        entry = measure_entry(which, problem, device, precision, **options)
        if entry is not None:
            entries[which, problem, precision] = entry
            write_table(path, entries.values(), device_of(device))
    forget()
    return list(entries.values())


def _with_unpooled(wanted: Iterable[tuple[str, Problem, str]]) -> Iterable[tuple[str, Problem, str]]:
    """Before a layer with a pool, the same without: it is what the pool in the epilogue has to beat."""
    for which, problem, precision in wanted:
        if problem.pool > 1:
            yield which, problem.unpooled, precision
        yield which, problem, precision


def write_table(path: Path, entries: Iterable[Entry], device: Device) -> None:
    """Replace a table as a whole: a reader finds the old one or the new one, never a part."""
    about = {
        "format_version": FORMAT_VERSION,
        "device": device.name,
        "torch": torch.__version__,
        "triton": ".".join(map(str, triton_version())),
        "cudnn": torch.backends.cudnn.version(),
    }
    head = "".join(f' "{key}": {json.dumps(value)},\n' for key, value in about.items())
    lines = ",\n".join(f"  {json.dumps(entry.to_dict())}" for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(f'{{\n{head} "entries": [\n{lines}\n ]\n}}\n', encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _library(which: str, problem: Problem, operands: Operands) -> Callable[[], Results]:
    from ttfs_kernels.triton_backend import library

    x, weight, pair = operands.x, operands.weight, operands.pair
    neuron = neuron_of(problem)
    if which == "forward":
        return lambda: _present(library.forward(problem, x, weight, operands.bias, neuron, True, *operands.delayed))
    if which == "grad_x":
        return lambda: (library.grad_x(problem, pair, x, weight, neuron),)
    return lambda: (library.grad_w(problem, pair, x, weight).view(weight.shape),)


def _kernels(
    which: str, problem: Problem, operands: Operands, config: Config, precision: str, device: Device
) -> Callable[[], Results]:
    """A call of one plan, whose outputs are allocated once."""
    from ttfs_kernels.triton_backend import passes

    x, weight, h = operands.x, operands.weight, operands.h
    neuron = neuron_of(problem)
    if which == "forward":
        options = neuron, True, config, precision, device.chip
        plan = passes.forward(problem, x, weight, operands.bias, *options, *operands.delayed)
    elif which == "grad_x":
        plan = passes.grad_x(problem, h, x, weight, config, precision, operands.slope_h, neuron, device.processors)
    else:
        plan = passes.grad_w(problem, h, operands.slope_h, x, config, precision, device)
    return lambda: _present(plan.run())


def _pooled_apart(
    problem: Problem, operands: Operands, unpooled: Entry, precision: str, device: Device
) -> Callable[[], Results]:
    """The faster provider of all neurons, then the kernel that pools."""
    from ttfs_kernels.triton_backend import passes

    spikes: Callable[[], Results]
    if unpooled.library_ms < unpooled.triton_ms:
        spikes = _library("forward", problem.unpooled, operands)
    else:
        spikes = _kernels("forward", problem.unpooled, operands, unpooled.config, precision, device)

    def run() -> Results:
        y, *gain = spikes()
        return _present(passes.pool(problem, y, gain[0] if gain else None, True).run())

    return run


def _present(results: Sequence[Tensor | None]) -> Results:
    return tuple(result for result in results if result is not None)


def _line(
    which: str,
    problem: Problem,
    precision: str,
    best: tuple[Config, float] | None,
    library_ms: float,
    failures: Counter[str],
) -> str:
    size = f"{problem.in_channels}→{problem.out_channels}"
    others = "apart" if problem.pool > 1 else "library"
    if not problem.is_matrix_product:
        size += f" {'×'.join(map(str, problem.kernel))} on {problem.height}×{problem.width}"
    dtype = "tf32" if precision == "tf32" else str(problem.dtype).removeprefix("torch.")
    ours = "no kernel"
    if best is not None:
        config, time_ms = best
        blocks = f"{config.block_m}×{config.block_n}×{config.block_k}"
        ours = f"{time_ms:.4f} ms ({blocks}, {config.num_warps} warps, {config.num_stages} stages)"
    left_out = "".join(f", {count} {kind}" for kind, count in failures.items())
    if problem.surrogate:
        dtype += ", surrogate"
    library = "wrong" if math.isinf(library_ms) else f"{library_ms:.4f} ms"
    if problem.pool > 1:
        which += " and pool"
    if problem.skip:
        which += " with skip"
    return f"{which} {size}, batch {problem.batch}, {dtype}: ours {ours}, {others} {library}{left_out}"
