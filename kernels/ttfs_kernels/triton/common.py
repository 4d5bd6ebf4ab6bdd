"""What all kernels share: the chip, the launch, and functions of Triton, among them the firing rule.

The rule repeats `ttfs_kernels.rule` operation by operation, so that both backends decide alike at the borders.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

SMALLEST_CAPABILITY = 80

# Whether kernels run in Triton's interpreter. Triton reads TRITON_INTERPRET when it is first imported; later changes of
# the variable have no effect.
INTERPRETING = not isinstance(tl.zeros, triton.JITFunction)


class Chip(NamedTuple):
    """A GPU: vendor ("cuda" or "hip"), architecture (90 for sm_90, "gfx942"), number of its processors."""

    vendor: str
    architecture: int | str
    processors: int

    @property
    def has_wgmma(self) -> bool:
        """Whether products are asynchronous and span whole warp groups (Hopper)."""
        return self.vendor == "cuda" and self.architecture == 90

    @property
    def has_tensor_memory(self) -> bool:
        """Whether accumulators are outside the registers (data-centre Blackwell, sm_100 to sm_110)."""
        return self.vendor == "cuda" and isinstance(self.architecture, int) and 100 <= self.architecture < 120

    @property
    def inputs_first(self) -> bool:
        """Whether inputs are the first operand of the products in the forward pass and in grad_w.

        With `mma.sync` (and on AMD) the first operand comes through registers, where the spike mask is made anyway. On
        sm_90, a product whose first operand is in registers overlaps with the product before it, and the compiler may
        overwrite those registers too early: a silent race, in every Triton version so far. With weights first, or the
        neurons in grad_w, all operands are in shared memory. Then grad_w has two accumulators: products chained into
        one would drain the pipeline in mid-step.
        """
        return not (self.has_wgmma or self.has_tensor_memory)

    def __str__(self) -> str:
        return f"sm_{self.architecture}" if self.vendor == "cuda" else str(self.architecture)


_chips: dict[torch.device, Chip] = {}  # a plain dictionary: torch.compile traces through `unavailable`


def chip_of(device: torch.device) -> Chip:
    """The chip of a device; anything but a GPU is the interpreter, planned for as a small sm_90."""
    if torch.compiler.is_compiling():  # a dictionary that fills while it is traced breaks its guard
        return _chip(device)
    if device not in _chips:
        _chips[device] = _chip(device)
    return _chips[device]


def _chip(device: torch.device) -> Chip:
    if device.type != "cuda":
        return Chip("cuda", 90, 4)
    properties = torch.cuda.get_device_properties(device)
    kind = ("cuda", 10 * properties.major + properties.minor)
    if torch.version.hip is not None:
        kind = ("hip", properties.gcnArchName.split(":")[0])
    return Chip(*kind, properties.multi_processor_count)


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels cannot run on a device with a dtype, or None if they can. Triton must be installed."""
    if dtype == torch.float64:
        return "float64 has no Triton kernel; use float32, or the torch backend"
    if device.type not in ("cpu", "cuda"):
        return f"device {device.type!r} is not a CUDA or ROCm GPU"
    if device.type == "cpu" and not INTERPRETING:
        return "tensors are on the CPU, and TRITON_INTERPRET=1 was not set before the start"
    if INTERPRETING and dtype == torch.bfloat16:  # on a GPU too
        return "Triton's interpreter multiplies bfloat16 wrongly; use float16 or float32 there"
    chip = chip_of(device)
    if chip.vendor == "cuda" and int(chip.architecture) < SMALLEST_CAPABILITY:
        return f"{chip} is older than sm_{SMALLEST_CAPABILITY}"
    return None


class Launcher:
    """A kernel with its grid, sizes and constants, which follow the arguments that `launch` takes.

    Attributes:
        options: sizes, constants and options of the compiler. Without fused multiply-add, the firing rule rounds as in
            PyTorch.
        compiled: compiled kernels, by device, Triton's modes, and dtypes and alignment of the arguments.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], sizes: dict[str, Any]) -> None:
        self.kernel, self.grid = kernel, (*grid, 1, 1)[:3]
        self.sizes = tuple(sizes[name] for name in kernel.arg_names if name in sizes)
        self.options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False} | sizes
        self.compiled: dict[tuple[Any, ...], Any] = {}


class Launch(NamedTuple):
    """A kernel's launch that did not run: the kernel, its grid, its arguments and options."""

    kernel: Any
    grid: tuple[int, ...]
    values: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments by name, sizes and compile-time constants too."""
        return dict(zip(self.kernel.arg_names, self.values, strict=False)) | self.options


_planned: list[Launch] | None = None


@contextmanager
def planned() -> Iterator[list[Launch]]:
    """Launches in the `with` block, in any thread, which do not run."""
    global _planned
    _planned, before = [], _planned
    try:
        yield _planned
    finally:
        _planned = before


def launch(launcher: Launcher, *arguments: Any) -> None:
    """Launch a kernel on the current stream of its first tensor's device; nothing if it has no programs.

    Nothing is launched on the fake tensors of PyTorch's compiler, which have no memory: it wants outputs allocated but
    not computed. A repeated launch avoids Triton's binding of arguments, which takes longer than the launch.
    """
    tensor = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
    if _planned is not None:
        _planned.append(Launch(launcher.kernel, launcher.grid, arguments, launcher.options))
    if _planned is not None or 0 in launcher.grid or tensor.untyped_storage().device.type == "meta":
        return
    modes = knobs.compilation.instrumentation_mode, knobs.runtime.debug  # a profiler may change them
    kinds = tensor.get_device(), *modes, *_kinds(arguments)
    # Triton launches on the current device, which need not be the tensor's. A number needs no lookup in PyTorch.
    with torch.cuda.device(tensor.get_device()) if tensor.is_cuda else nullcontext():
        if (compiled := launcher.compiled.get(kinds)) is not None:
            compiled[launcher.grid](*arguments, *launcher.sizes)
        else:  # the interpreter compiles nothing; a kernel may have been compiled in another thread
            compiled = launcher.kernel[launcher.grid](*arguments, **launcher.options)
            launcher.compiled[kinds] = compiled.result() if hasattr(compiled, "result") else compiled


def _kinds(arguments: tuple[Any, ...]) -> list[Any]:
    """What Triton compiles arguments for. (On AMD also for memory below 2 GiB, which changes no result of a shape.)"""
    kinds: list[Any] = []
    for value in arguments:
        if isinstance(value, Tensor):
            kinds += (value.dtype,) if value.data_ptr() % 16 == 0 else (value.dtype, "unaligned")
        elif isinstance(value, tuple):
            kinds += _kinds(value)
        else:
            kinds.append(value if type(value) is int else type(value))
    return kinds


@triton.jit
def at_most(value, bound):
    """The smaller of both; NaN stays NaN, which `tl.minimum` would hide."""
    return tl.where(value > bound, bound, value)


@triton.jit
def bounded(A, W):
    """(1 − A, 1 + W), bounded below as the rule divides them: A ≥ 1 is decided here, however large A and W are."""
    smallest: tl.constexpr = 5.9604644775390625e-08  # distance from 1 to the next smaller float32
    missing = 1 - A
    speed = 1 + W
    return tl.where(missing < 0, 0.0, missing), tl.where(speed < smallest, smallest, speed)


@triton.jit
def fire(A, W):
    """Activation of a block of neurons (Eq. 7); float32, any shape. NaN stays NaN.

    A: membrane potential at the window's start. W: slope inside the window, times the PSP persistence.
    """
    missing, speed = bounded(A, W)
    return 1 - at_most(tl.div_rn(missing, speed), 1.0)


@triton.jit
def derivatives(A, W, properties, SURROGATE: tl.constexpr):
    """∂a/∂A and ∂a/∂W, as of `ttfs_kernels.rule.fire_with_derivatives`; NaN where A or W is.

    The only division is 1/(1 + W). A neuron is silent where 1 − A ≥ 1 + W, as `fire` decides: there alone their
    quotient rounds to 1 or more, but not always the product with the inverse. properties: `Neuron.numbers`.
    """
    missing, speed = bounded(A, W)
    gain = tl.div_rn(1.0, speed)
    crossing = at_most(missing * gain, 1.0)
    by_A = tl.where((crossing <= 0) | (missing >= speed), 0.0, gain)
    by_W = by_A * (crossing * properties.split_gradient + (1 - properties.split_gradient))
    if SURROGATE:
        bound: tl.constexpr = 2.0  # SURROGATE_BOUND of `ttfs_kernels.rule`
        near = (A + (1 + W) - (1 - properties.surrogate_width)) * properties.inverse_width
        near = tl.minimum(tl.maximum(near, 0.0), 1.0) * tl.minimum(gain, bound)
        near = tl.where(missing >= speed, near, 0.0)
        by_A += near
        by_W += near
    by_A = tl.where(crossing == crossing, at_most(by_A, properties.derivative_clip), crossing)
    return by_A, tl.where(crossing == crossing, at_most(by_W, properties.derivative_clip), crossing)


@triton.jit
def clamp_to_window(A):
    """Activation at σ = 0: A clamped to [0, 1]. NaN stays NaN."""
    A = tl.where(A < 0, 0.0, A)
    return tl.where(A > 1, 1.0, A)


@triton.jit
def spike_mask(x):
    """1 where an input spikes, else 0, in the dtype of x. This form compiles to four instructions for two elements."""
    return tl.where(x > 0, 1.0, 0.0).to(x.dtype)


@triton.jit
def at_inputs(by_activation, by_mask, x, properties, SURROGATE: tl.constexpr):
    """Gradient of inputs: `by_activation` where they spike, plus `by_mask` where a spike may appear or vanish.

    SURROGATE: `by_mask` has the factor 1 − x/δ where x < δ, as in `ttfs_kernels.rule.vanishing`; else it is not used.
    """
    total = tl.where(x <= 0, 0.0, by_activation)
    if SURROGATE:
        total += by_mask * tl.maximum(1 - x.to(tl.float32) * properties.inverse_width, 0.0)
    return total


@triton.jit
def add_product(w, x, total, INPUTS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """total += x·w with INPUTS_FIRST, else w·x with all three transposed."""
    if INPUTS_FIRST:
        total = tl.dot(x, w, total, input_precision=PRECISION)
    else:
        total = tl.dot(w, x, total, input_precision=PRECISION)
    return total


@triton.jit
def accumulate(x, w, A, W, INPUTS_FIRST: tl.constexpr, WITH_SLOPE: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the forward pass: A += w·x, W += w·[x > 0].

    x is [positions, depth] and w [depth, channels]; without INPUTS_FIRST both are transposed.
    """
    A = add_product(w, x, A, INPUTS_FIRST, PRECISION)  # first: the mask is made while this runs
    if WITH_SLOPE:
        W = add_product(w, spike_mask(x), W, INPUTS_FIRST, PRECISION)
    return A, W


@triton.jit
def block_position(pid, ROWS, COLUMNS, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of a program's block: GROUP rows of blocks are walked column by column, to reuse the cache."""
    row_blocks = tl.cdiv(ROWS, BLOCK_ROWS)
    column_blocks = tl.cdiv(COLUMNS, BLOCK_COLUMNS)
    in_group = GROUP * column_blocks
    first = (pid // in_group) * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    return first + (pid % in_group) % height, (pid % in_group) // height


@triton.jit
def multiple(size, UNIT: tl.constexpr):
    """`size`, written so that the compiler knows that UNIT divides it: Triton itself detects only multiples of 16."""
    return size // UNIT * UNIT


@triton.jit
def load_channels(ptr, ROW: tl.constexpr, n, N):
    """Row ROW of [rows, N] at the channels n, as a row of a block."""
    return tl.load(ptr + ROW * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def at_row(ptr, row, stride):
    """Pointer to a row. Offsets from there fit into 32 bits, however large the tensor is."""
    return ptr + tl.cast(row, tl.int64) * stride  # the interpreter counts loops in Python's integers


@triton.jit
def taps_inside(start, SIZE, TAPS, GAP: tl.constexpr):
    """(first, count, 1 if there are any, else 0) of the taps with 0 ≤ start + tap·GAP < SIZE.

    If there are taps but none is inside, the count is 1 all the same, so that no loop runs zero times.
    """
    first = (tl.maximum(-start, 0) + GAP - 1) // GAP
    end = tl.minimum((tl.maximum(SIZE - start, 0) + GAP - 1) // GAP, TAPS)
    some = tl.minimum(tl.maximum(end - first, 0), 1)
    return tl.maximum(tl.minimum(first, TAPS - 1), 0), tl.maximum(end - first, tl.minimum(TAPS, 1)), some
