"""Passes that are repeated by addresses alone give what planned ones give, for any operands.

Without a GPU, a compiled kernel is stood in for by the interpreter at the same addresses; and in a process of its own
by Triton's real compilation for a GPU that is not there, up to the launcher.
"""

import ctypes
import gc
import os
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from triton import knobs
from triton.runtime import driver

from tests.kernels.test_operators import KINDS, PERSISTENCES, apply
from tests.kernels.triton.test_operators import on
from ttfs_kernels import Neuron, backend, dft_linear, ops, standardise_weights
from ttfs_kernels.triton_backend import choice, launch, programs
from ttfs_kernels.triton_backend.elementwise import stack_mask
from ttfs_kernels.triton_backend.passes import Plan
from ttfs_kernels.triton_backend.programs import Repeated

ROOT = Path(__file__).parents[3]


@dataclass
class About:
    """A tensor without its place."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Compiled:
    """A launch that can be made again, by addresses: in memory, as the interpreter runs it."""

    def __init__(self, launched: launch.Launch) -> None:
        self.kernel, self.options = launched.kernel, launched.options
        self.names = list(launched.arguments)
        self.tensors = {name: value for name, value in launched.arguments.items() if not without_tensors(value)}
        self.tensors = tree_map(lambda tensor: About(tuple(tensor.shape), tensor.dtype), self.tensors)

    function, packed_metadata = 3, "metadata"

    def run(self, x: int, y: int, z: int, stream: int, function: int, metadata: str, *rest: Any) -> None:
        assert (stream, function, metadata, rest[:3]) == (7, 3, "metadata", (None, None, None))
        arguments = dict(zip(self.kernel.arg_names, rest[3:], strict=True))
        assert without_tensors(rest)
        memory = {name: self.memory(arguments[name], about) for name, about in self.tensors.items()}
        self.kernel[x, y, z](**(arguments | memory), **self.options)

    def memory(self, addresses: Any, about: Any) -> Any:
        if isinstance(about, About):
            return at_address(addresses, about.shape, about.dtype)
        return tuple(self.memory(*pair) for pair in zip(addresses, about, strict=True))


def without_tensors(values: Any) -> bool:
    """Whether there are no tensors in nested tuples."""
    return not any(isinstance(leaf, Tensor) for leaf in tree_leaves(values))


def at_address(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor over memory that others own."""
    count = torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype=dtype).view(shape)


@pytest.fixture
def repeating(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Launches return `Compiled`, and passes are repeated; the kernels that are planned are listed."""
    if torch.cuda.is_available():
        pytest.skip("a GPU has compiled kernels of its own")
    planned: list[str] = []
    real_run = launch.Launch.run

    def run(self: launch.Launch) -> Compiled:
        planned.append(self.kernel.__name__)
        real_run(self)
        return Compiled(self)

    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 7)
    monkeypatch.setattr(driver, "_active", active)
    monkeypatch.setattr(programs, "interpreting", lambda: False)
    monkeypatch.setattr(launch.Launch, "run", run)
    return planned


def results(kind: str, tensors: tuple[Tensor, Tensor, Tensor], **options: Any) -> list[Tensor]:
    """Activations and gradients, from a gradient that is the same in every call."""
    y = apply(kind, *tensors, **options)
    grad = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return [y, *torch.autograd.grad(y, tensors, grad)]


def operands(device: torch.device, kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    x, weight, bias = on(device, kind)
    assert bias is not None
    return x, weight, bias


@KINDS
@PERSISTENCES
@pytest.mark.parametrize("surrogate_width", [0.0, 0.5])
@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_repeated_passes_equal_planned_ones(
    device, monkeypatch, repeating, kind, psp_persistence, surrogate_width, backend
):
    """On other numbers, elsewhere in memory; "auto" takes the library for the contractions."""
    monkeypatch.setattr(ops, "operators_for", lambda *_: ("per_pass", backend))
    options = {"neuron": Neuron(psp_persistence, surrogate_width=surrogate_width)}
    kept = [operands(device, kind, seed) for seed in range(3)]
    first = results(kind, kept[0], **options)
    expected = []
    for tensors in kept:
        choice.forget()
        expected.append(results(kind, tensors, **options))
    choice.forget()
    results(kind, kept[0], **options)
    repeating.clear()
    for tensors, wanted in zip(kept, expected, strict=True):
        for ours, theirs in zip(results(kind, tensors, **options), wanted, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
            assert ours.dtype == theirs.dtype
    assert repeating == []
    assert all(torch.equal(*pair) for pair in zip(first, expected[0], strict=True))


def test_repeated_standardisation_equals_a_planned_one(device, repeating):
    """Tuples of tensors; layers in both layouts."""
    backend("triton")
    shapes = ((3, 5), (8, 4, 3, 3), (4, 16))

    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        made = [torch.randn(shape) for shape in shapes]
        made[1] = made[1].contiguous(memory_format=torch.channels_last)
        return [weight.to(device).requires_grad_() for weight in made]

    def standardised(weights: list[Tensor]) -> list[Tensor]:
        gains = [torch.ones(len(weight), device=device).requires_grad_() for weight in weights]
        out = standardise_weights(weights, gains)
        return [*out, *torch.autograd.grad(out, [*weights, *gains], [weight.detach() ** 2 for weight in out])]

    kept, expected = [weights(seed) for seed in range(3)], []
    for tensors in kept:
        choice.forget()
        expected.append(standardised(tensors))
    repeating.clear()
    for tensors, wanted in zip(kept, expected, strict=True):
        for ours, theirs in zip(standardised(tensors), wanted, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
    assert repeating == []


def test_a_profiler_of_kernels_hears_of_launches(device, monkeypatch, repeating):
    """By Triton's own way of launching."""
    x, weight = torch.rand(8, 16, device=device), torch.rand(16, 16, device=device)
    y = dft_linear(x, weight, backend="triton")
    heard: list[tuple[int, ...]] = []

    def by_grid(self: Compiled, grid: tuple[int, int, int]):
        heard.append(grid)
        return lambda *values, stream: self.run(*grid, stream, 3, "metadata", None, None, None, *values)

    monkeypatch.setattr(Compiled, "__getitem__", by_grid, raising=False)
    assert torch.equal(dft_linear(x, weight, backend="triton"), y)
    assert heard == []
    monkeypatch.setattr(knobs.runtime.launch_enter_hook, "calls", [print])
    assert torch.equal(dft_linear(x, weight, backend="triton"), y)
    assert heard == [(1, 1, 1)]


@KINDS
def test_outputs_are_not_made_in_memory_that_is_still_used(device, repeating, kind):
    tensors = operands(device, kind, 0)
    calls = [results(kind, tensors, backend="triton") for _ in range(3)]
    places = [tensor.untyped_storage().data_ptr() for call in calls[1:] for tensor in call]
    assert len(set(places)) == len(places)


def test_programs_hold_no_tensors(device, repeating):
    x = torch.rand(8, 16, device=device)
    weight = torch.rand(16, 16, device=device)
    dft_linear(x, weight, backend="triton")
    y = dft_linear(x, weight, backend="triton")
    watched = [weakref.ref(tensor) for tensor in (x, weight, y)]
    del x, weight, y
    gc.collect()
    assert [reference() for reference in watched] == [None] * 3


def test_what_a_plan_depends_on_is_planned_anew(device, repeating):
    def planned(rows: int = 8, outputs: int = 16, dtype: torch.dtype = torch.float32, **options: Any) -> list[str]:
        repeating.clear()
        x, weight = torch.rand(rows, 16, device=device).to(dtype), torch.rand(outputs, 16, device=device).to(dtype)
        bias = torch.rand(outputs, device=device) if options.pop("bias", False) else None
        dft_linear(x.requires_grad_(options.pop("grad", False)), weight, bias, backend="triton", **options)
        return list(repeating)

    assert planned() == ["linear_forward"]
    assert planned() == []
    others: tuple[dict[str, Any], ...] = (
        {"rows": 9},
        {"outputs": 17},
        {"dtype": torch.float16},
        {"bias": True},
        {"grad": True},
        {"neuron": Neuron(0.5)},
        {"neuron": Neuron(0.0)},
        {"neuron": Neuron(surrogate_width=0.5)},
    )
    for other in others:
        assert planned(**other) == ["linear_forward"]
        assert planned(**other) == []
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert planned() == ["linear_forward"]
    choice.forget()
    assert planned() == ["linear_forward"]


def test_addresses_that_are_no_multiples_of_16_go_through_the_front_end(device, repeating):
    """Triton builds other code for them."""
    weight = torch.rand(16, 16, device=device)
    memory = torch.rand(8 * 16 + 1, device=device)
    x, shifted = memory[:-1].view(8, 16), memory[1:].view(8, 16)
    dft_linear(shifted, weight, backend="triton")
    dft_linear(x, weight, backend="triton")
    repeating.clear()
    assert torch.equal(
        dft_linear(shifted, weight, backend="triton"), dft_linear(shifted.clone(), weight, backend="triton")
    )
    assert repeating == ["linear_forward"]


def test_operands_in_one_place_do_not_decide_which_is_which(device, repeating):
    x, weight = torch.rand(16, 16, device=device), torch.rand(16, 16, device=device)
    dft_linear(x, x, backend="triton")
    ours = [dft_linear(x, weight, backend="triton") for _ in range(2)]
    torch.testing.assert_close(ours[0], dft_linear(x, weight, backend="torch"))
    assert torch.equal(*ours)


def test_a_kernel_may_take_a_part_of_an_operand(device, repeating):
    """Unless two operands share their memory: then it is not known of which it is a part."""

    def plan(first: Tensor, _: Tensor) -> Plan:
        part = first[10:]
        stacked = part.new_empty(2 * len(part))
        arguments = {"x_ptr": part, "stacked_ptr": stacked, "size": len(part), "persistence": 0.5, "BLOCK": 64}
        return Plan([launch.Launch(stack_mask, (1,), arguments)], (stacked,))

    def check(run: Repeated, first: Tensor, second: Tensor) -> None:
        (stacked,) = run(first, second)
        assert stacked is not None
        assert torch.equal(stacked, torch.cat([first[10:], 0.5 * (first[10:] > 0)]))

    apart, together = Repeated(plan), Repeated(plan)
    for _ in range(2):
        check(apart, torch.randn(32, device=device), torch.randn(32, device=device))
        check(together, *torch.randn(64, device=device).tensor_split(2))
    assert apart.program is not None
    assert together.program is None


def test_a_launch_that_returns_no_kernel_is_reported_once(device, monkeypatch, repeating):
    """Another Triton may have another front end: then it is used for every call, and said."""
    monkeypatch.setattr(programs, "_warned", False)
    monkeypatch.setattr(launch.Launch, "run", lambda self: self.kernel[self.grid](**self.arguments, **self.options))
    x, weight = torch.rand(8, 16, device=device), torch.rand(16, 16, device=device)
    with pytest.warns(UserWarning, match="a launch must return a compiled kernel; got NoneType"):
        y = dft_linear(x, weight, backend="triton")
    assert torch.equal(dft_linear(x, weight, backend="triton"), y)
    torch.testing.assert_close(y, dft_linear(x, weight, backend="torch"))


def test_the_number_of_remembered_passes_is_bounded(monkeypatch):
    monkeypatch.setattr(programs, "interpreting", lambda: False)
    monkeypatch.setattr(programs, "LIMIT", 3)
    made = []

    def remember(key: int) -> int:
        return programs.remembered(key, lambda: made.append(key) or (lambda: key))()

    assert [remember(key) for key in (1, 2, 3, 3, 4, 4)] == [1, 2, 3, 3, 4, 4]
    assert made == [1, 2, 3, 4]
    assert len(programs._remembered) == 1


@pytest.mark.slow
def test_launches_reach_the_launcher():
    """Compiled by Triton for a GPU that is not there: the second call hands over what the first one did."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    code = f"from {__name__} import hand_over; hand_over()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["linear", "conv2d"]


def hand_over() -> None:
    """In a process where Triton compiles: two equal calls of each operator, forward and backward."""
    from tests.kernels.test_operators import arguments
    from tests.kernels.triton import absent_gpu

    absent_gpu.pretend()
    for kind in ("linear", "conv2d"):
        torch.manual_seed(0)
        x, weight, bias = (t.detach() for t in arguments(kind) if t is not None)
        tensors = tuple(tensor.requires_grad_() for tensor in (x.half(), weight.half(), bias))
        kept = []
        for _ in range(2):
            absent_gpu.launched.clear()
            y = apply(kind, *tensors, backend="triton")
            grads = torch.autograd.grad(y, tensors, torch.ones_like(y))
            kept.append((list(absent_gpu.launched), [y, *grads]))
        (first, _), (second, made) = kept
        assert len(first) == len(second) == 5, first
        for planned, repeated in zip(first, second, strict=True):
            assert planned[:2] == repeated[:2]
            assert planned.arguments.keys() == repeated.arguments.keys()
            for name, value in planned.arguments.items():
                given = repeated.arguments[name]
                if isinstance(value, Tensor):
                    assert isinstance(given, int)
                    assert given % 16 == value.data_ptr() % 16
                else:
                    assert given == value or given is value, name
        forward, *backward = second
        assert forward.arguments["y_ptr"] == backward[0].arguments["y_ptr"] == made[0].data_ptr()
        assert backward[0].arguments["h_ptr"] == backward[2].arguments["h_ptr"] == backward[3].arguments["h_ptr"]
        assert backward[1].arguments["parts_ptr"] == backward[0].arguments["bias_sum_ptr"]
        assert [backward[i].arguments[name] for i, name in ((2, "grad_x_ptr"), (3, "out_ptr"), (1, "out_ptr"))] == [
            tensor.data_ptr() for tensor in made[1:]
        ]
        print(kind)


def test_a_pass_without_launches_is_planned_every_time(device, repeating):
    empty = torch.empty(0, 16, device=device), torch.rand(4, 16, device=device)
    assert [dft_linear(*empty, backend="triton").shape for _ in range(2)] == [(0, 4)] * 2
    assert all(run.program is None for run in programs._remembered.values() if isinstance(run, Repeated))
