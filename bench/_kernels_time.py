"""A layer's passes by every contender: compared with float64, then timed in turns, against measured ceilings.

A pass is what autograd runs for it: grad_x is the backward pass when only the input needs a gradient, grad_b, the
local gradients and their sum, when only the bias needs one. On a GPU, times are those of the GPU (see
`_kernels_measure`): its caches are cold and Python is not waited for.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch
from _kernels_cases import FORMATS, Layer, Number
from _kernels_contenders import AUTO, OURS, Contender, clamped, composed, contenders, is_linear
from _kernels_measure import gpu_times_ms
from _kernels_trial import checked_images, compare, random_operands
from _measure import transient_bytes
from torch import Tensor

from ttfs_kernels.triton_backend.problem import PASSES, Problem

WANTED = {"forward": (0, 1, 2), "grad_x": (0,), "grad_w": (1,), "grad_b": (2,), "forward_backward": (0, 1, 2)}
CALLS = {"cuda": 10, "cpu": 1}  # a round


class Ceilings(NamedTuple):
    """The most that was measured on this machine in this run: of a large matrix product, and of a large copy."""

    tflops: float
    gb_per_s: float


class Batch(NamedTuple):
    """A layer's tensors in PyTorch's layouts, channels last; `images` are those compared with float64."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    grad: Tensor
    checked_grad: Tensor
    images: Tensor


@dataclass
class Pass:
    """One pass of one contender."""

    name: str
    contender: Contender
    batch: Batch
    ms: list[float] = field(default_factory=list)
    power_w: float | None = None
    tensors: list[Tensor] = field(init=False)
    y: Tensor | None = None

    def __post_init__(self) -> None:
        wanted = WANTED[self.name]
        self.tensors = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(self.batch[:3])]

    def prepare(self) -> None:
        """What comes before the pass."""
        self.y = None
        if self.name in ("grad_x", "grad_w", "grad_b"):
            self.y = self.contender.forward(*self.tensors)

    def run(self) -> None:
        self.results(self.batch.grad)

    def results(self, grad: Tensor) -> dict[str, Tensor]:
        """Activations and gradients, as far as they belong to the pass."""
        y = self.contender.forward(*self.tensors) if self.y is None else self.y
        if self.name == "forward":
            return {"forward": y}
        grads = torch.autograd.grad(y, [self.tensors[i] for i in WANTED[self.name]], grad)
        named = zip([("grad_x", "grad_w", "grad_b")[i] for i in WANTED[self.name]], grads, strict=True)
        return ({} if self.y is not None else {"forward": y}) | dict(named)

    def time(self, calls: int) -> None:
        """Run and note the times of some calls."""
        device = self.batch.x.device
        self.ms += times_ms(self.run, self.prepare, calls, device)
        self.y, self.power_w = None, power_w(device)

    def peak_mib(self) -> float:
        """Inputs, weights, and the most that a forward pass and this pass hold beside them."""

        def run() -> None:
            self.prepare()
            self.run()
            self.y = None

        run()
        held = sum(tensor.nbytes for tensor in self.tensors)
        return (held + transient_bytes(run, self.batch.x.device)) / 2**20


def measure(
    layer: Layer,
    number: Number,
    sigma: float,
    device: torch.device,
    *,
    batch_size: int,
    rounds: int,
    calls: int,
    compiled: bool,
    ceilings: Ceilings,
) -> list[dict[str, Any]]:
    """Rows of one layer: every pass of every contender; those that fail their check are not timed."""
    torch.compiler.reset()  # or compiled graphs of earlier layers count against the limit of a function
    problem = layer.problem(batch_size, number, sigma)
    batch = random_batch(problem, device)
    references = {spiking: expected(problem, sigma, batch, spiking) for spiking in (True, False)}
    rows, running = [], []
    for contender in contenders(problem, device, sigma, compiled):
        for name in WANTED:
            one = Pass(name, contender, batch)
            error, verdict = check(one, references[contender.spiking], FORMATS[number].precision)
            rows.append(
                {
                    "op": "dft_linear" if is_linear(problem) else "dft_conv2d",
                    "case": f"{layer.name}-b{batch_size}",
                    "pass": name,
                    "provider": contender.name,
                    "dtype": FORMATS[number].name,
                    "layout": "rows" if is_linear(problem) else "channels_last",
                    "sigma": sigma,
                    "max_err": "" if error is None else f"{error:.1e}",
                    "check": verdict,
                }
            )
            running.append(one if verdict == "passed" else None)
    peaks = [None if one is None else one.peak_mib() for one in running]
    for round_ in range(rounds):
        for name in WANTED:
            turns = [one for one in running if one is not None and one.name == name]
            for one in turns[round_ % max(1, len(turns)) :] + turns[: round_ % max(1, len(turns))]:
                one.time(calls)
    for row, one, peak in zip(rows, running, peaks, strict=True):
        row |= timing(one, peak, problem, ceilings)
        row["choice"] = choice_text(row, problem, device, FORMATS[number].precision)
    return rows


def random_batch(problem: Problem, device: torch.device) -> Batch:
    operands = random_operands(problem, device)
    images = checked_images(problem.batch, device)

    def layout(rows: Tensor) -> Tensor:
        return rows.flatten(1) if is_linear(problem) else rows.permute(0, 3, 1, 2)

    grads = layout(operands.h), layout(operands.from_images(images).h)
    return Batch(layout(operands.x), layout(operands.weight), operands.bias, *grads, images)


def expected(problem: Problem, sigma: float, batch: Batch, spiking: bool) -> dict[str, Tensor]:
    """Float64 results of the composition, or of the layer as an ANN, on the images that are compared."""
    sample = batch.x[batch.images], batch.weight, batch.bias
    x, weight, bias = (tensor.double().requires_grad_() for tensor in sample)
    spiking_forward = composed(problem, sigma) if sigma > 0 else clamped(problem)
    y = (spiking_forward if spiking else clamped(problem))(x, weight, bias)
    grads = torch.autograd.grad(y, (x, weight, bias), batch.grad[batch.images].double())
    return {"forward": y.detach()} | dict(zip(("grad_x", "grad_w", "grad_b"), grads, strict=True))


def check(one: Pass, reference: dict[str, Tensor], precision: str) -> tuple[float | None, str]:
    """Largest error of a pass in units of the results' root mean square (None if it does not run), and the verdict."""
    batch, worst = one.batch, 0.0
    try:
        one.prepare()
        results = one.results(batch.checked_grad)
    except Exception as error:  # compilers have many; the others' rows must not be lost
        return None, f"failed: {type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    finally:
        one.y = None
    agreed = True
    for name, result in results.items():
        wanted = reference[name]
        found = result.detach()
        if name in ("forward", "grad_x"):
            found = found[batch.images]
        if name == "grad_x" and one.contender.masked:
            wanted = wanted * (batch.x[batch.images] > 0)
        # The bias's gradient is float32, a sum of values rounded to the layer's dtype.
        largest, agrees = compare(found.to(batch.x.dtype) if name == "grad_b" else found, wanted, precision)
        worst, agreed = max(worst, largest), agreed and agrees
    return worst, "passed" if agreed else "failed"


def timing(one: Pass | None, peak: float | None, problem: Problem, ceilings: Ceilings) -> dict[str, Any]:
    """Columns of times and floors; empty for what was not timed."""
    columns = ("ms_p50", "ms_p20", "ms_p80", "peak_mib", "floor_ms", "tflops", "percent_of_ceiling", "power_w")
    if one is None or peak is None:
        return dict.fromkeys(columns, "")
    own = problem if one.contender.spiking else dataclasses.replace(problem, with_slope=False)
    passes = PASSES if one.name == "forward_backward" else (one.name,)
    low, high = torch.tensor(one.ms).quantile(torch.tensor([0.2, 0.8])).tolist()
    tflops = sum(own.flops(name) for name in passes) / median(one.ms) / 1e9
    values = (
        *(round(value, 5) for value in (median(one.ms), low, high)),
        round(peak, 3),
        round(sum(floor_ms(own, name, ceilings) for name in passes), 6),
        round(tflops, 3),
        round(100 * tflops / ceilings.tflops, 1),
        "" if one.power_w is None else round(one.power_w),
    )
    return dict(zip(columns, values, strict=True))


def floor_ms(problem: Problem, which: str, ceilings: Ceilings) -> float:
    """No provider can be faster: all operations at the ceiling, or all bytes."""
    return max(problem.flops(which) / ceilings.tflops / 1e9, problem.bytes(which) / ceilings.gb_per_s / 1e6)


def measure_ceilings(device: torch.device, number: Number, *, quick: bool = False) -> Ceilings:
    """Of the better of a few calls; on a CPU with smaller operands, and with tiny ones if quick."""
    side, size = (8192, 1 << 30) if device.type == "cuda" else (1024, 1 << 26)
    if quick:
        side, size = 64, 1 << 16
    left, right = (torch.randn(side, side, device=device).to(FORMATS[number].dtype) for _ in range(2))
    product = min(times_ms(lambda: left @ right, None, 5, device))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = min(times_ms(lambda: target.copy_(source), None, 5, device))
    return Ceilings(2 * side**3 / product / 1e9, 2 * size / copy / 1e6)


def times_ms(
    run: Callable[[], object], prepare: Callable[[], object] | None, calls: int, device: torch.device
) -> list[float]:
    """Times of `run`; `prepare` runs before each and is not counted."""
    if device.type == "cuda":
        return gpu_times_ms(run, prepare, calls)
    times = []
    for _ in range(calls):
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def power_w(device: torch.device) -> float | None:
    """Power that the GPU drew just now, if its driver says."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.power_draw(device) / 1e3
    except Exception:  # NVML is optional and fails in many ways
        return None


def choice_text(row: dict[str, Any], problem: Problem, device: torch.device, precision: str) -> str:
    """What our operators ran in a pass."""
    if row["provider"] not in (OURS, AUTO) or row["pass"] not in PASSES:
        return ""
    from ttfs_kernels.triton_backend.choice import choose
    from ttfs_kernels.triton_backend.launch import device_of

    backend = "triton" if row["provider"] == OURS else "auto"
    config, reason = choose(row["pass"], problem, device_of(device), precision, backend)
    if config is None:
        return f"library ({reason})"
    blocks = f"{config.block_m}×{config.block_n}×{config.block_k}"
    return f"{blocks} w{config.num_warps} s{config.num_stages} {config.form.name.lower()} ({reason})"
