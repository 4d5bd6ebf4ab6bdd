"""Passes that are planned once for a shape and then repeated by addresses alone.

Planning a pass and finding its compiled kernels again through Triton's front end take longer than many a kernel. What
both return depends on shapes, dtypes, options and the device, and on whether addresses are multiples of 16, as those
of fresh tensors are. So the first call of a pass goes through both and writes down, for each launch, the compiled
kernel, the grid and the arguments with the places of their tensors; later calls allocate, fill in the addresses and
call the compiled kernels. In Triton's interpreter there is nothing to call: every call is planned anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from triton import knobs

from ttfs_kernels.direct import below
from ttfs_kernels.triton_backend.launch import interpreting
from ttfs_kernels.triton_backend.passes import Plan

ALIGNMENT = 16  # bytes; Triton builds other code for other addresses
ALLOCATED = 256  # bytes between tensors in one allocation
# Where Triton's launchers take the stream, and after how many arguments the kernel's own.
STREAM, OWN = 3, 9
LIMIT = 1024  # remembered passes, so that ever new shapes do not fill the memory

Results = tuple[Tensor | None, ...]


class Repeated:
    """A pass: planned at its first call, repeated at later ones.

    Args:
        plan: from the operands of a call to its launches and outputs. All calls must have operands of one shape,
            dtype, device and contiguous memory format; what else the plan depends on must not change.
    """

    def __init__(self, plan: Callable[..., Plan]) -> None:
        self.plan = plan
        self.program: Program | None = None

    def __call__(self, *operands: Tensor | None) -> Results:
        if self.program is not None:
            results = self.program(operands)
            if results is not None:
                return results
        return self.plan_and_run(*operands)

    @below
    def plan_and_run(self, *operands: Tensor | None) -> Results:
        plan = self.plan(*operands)
        kernels = [launch.run() for launch in plan.launches]
        if self.program is None and not interpreting():
            self.program = _program(plan, operands, kernels)
        return plan.outputs


class Call(NamedTuple):
    """A compiled kernel on its grid.

    Attributes:
        launcher: of the kernel. `kernel[grid](...)` comes down to it, but first asks who wants to hear of launches.
        arguments: what the launcher takes, without the stream and addresses.
        addresses: (position, source, bytes) of each address among them.
        tuples: (position, ((source, bytes), ...)) of each tuple of addresses.
        kernel, grid: for the long way, where somebody wants to hear.
    """

    launcher: Callable[..., None]
    arguments: list[Any]
    addresses: tuple[tuple[int, int, int], ...]
    tuples: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    kernel: Any
    grid: tuple[int, ...]

    @staticmethod
    def of(kernel: Any, grid: tuple[int, ...], own: list[Any], place: Callable[[Tensor], tuple[int, int]]) -> Call:
        """From the kernel's own arguments, and where their tensors are: source and bytes."""
        grid = (*grid, 1, 1)[:3]
        hooks = launch_metadata = None
        arguments = [*grid, None, kernel.function, kernel.packed_metadata, launch_metadata, hooks, hooks, *own]
        addresses, tuples = [], []
        for position, value in enumerate(arguments):
            if isinstance(value, Tensor):
                addresses.append((position, *place(value)))
            elif isinstance(value, tuple) and value and isinstance(value[0], Tensor):
                tuples.append((position, tuple(place(tensor) for tensor in value)))
        for position, *_ in (*addresses, *tuples):
            arguments[position] = None
        return Call(kernel.run, arguments, tuple(addresses), tuple(tuples), kernel, grid)


class Allocation(NamedTuple):
    """A tensor that a pass makes."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Output(NamedTuple):
    """An allocation, seen with other sizes where `size` is not None."""

    allocation: int
    size: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0


class Program(NamedTuple):
    """The calls of a plan, for operands that are elsewhere in memory. Holds no tensor.

    Attributes:
        driver, device_index: of the device, as Triton has them.
        device: of all tensors.
        calls: in order; sources of their addresses are the operands, then the allocations.
        allocations, outputs: what the plan makes, and what of it is returned.
    """

    driver: Any
    device_index: int
    device: torch.device
    calls: tuple[Call, ...]
    allocations: tuple[Allocation, ...]
    outputs: tuple[Output | None, ...]

    def __call__(self, operands: Sequence[Tensor | None]) -> Results | None:
        """The outputs, or None, with nothing done, if an operand's address is not a multiple of 16."""
        driver, index, device, calls, allocations, outputs = self
        addresses, all_bits = [], 0
        for tensor in operands:
            address = 0 if tensor is None else tensor.data_ptr()
            all_bits |= address
            addresses.append(address)
        if all_bits % ALIGNMENT:
            return None
        made = [torch.empty_strided(size, stride, dtype=dtype, device=device) for size, stride, dtype in allocations]
        addresses += [tensor.data_ptr() for tensor in made]
        # Triton launches on the current device, which need not be the tensors'.
        elsewhere = driver.get_current_device() != index
        with torch.cuda.device(device) if elsewhere else nullcontext():
            stream, reported = driver.get_current_stream(index), launches_are_reported()
            for launcher, arguments, places, tuples, kernel, grid in calls:
                arguments = arguments.copy()
                arguments[STREAM] = stream
                for position, source, offset in places:
                    arguments[position] = addresses[source] + offset
                for position, several in tuples:
                    arguments[position] = tuple([addresses[source] + offset for source, offset in several])
                if reported:
                    kernel[grid](*arguments[OWN:], stream=stream)
                else:
                    launcher(*arguments)
        return tuple([None if output is None else _output(output, made) for output in outputs])


def launches_are_reported() -> bool:
    """Whether somebody, such as a profiler of Triton's kernels, wants to hear of launches."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any([getattr(hook, "calls", hook) for hook in hooks])


def _output(output: Output, made: list[Tensor]) -> Tensor:
    allocation, size, stride, offset = output
    return made[allocation] if size is None else made[allocation].as_strided(size, stride, offset)


def _program(plan: Plan, operands: Sequence[Tensor | None], kernels: Sequence[Any]) -> Program | None:
    """What the launches of a plan, which have just run, come down to; None if these operands do not tell."""
    present = [tensor for tensor in operands if tensor is not None]
    places = {tensor.data_ptr(): index for index, tensor in enumerate(operands) if tensor is not None}
    empty = any(tensor.numel() == 0 for tensor in (*present, *plan.outputs) if tensor is not None)
    # Of two operands in one place, it is not known which one an argument is.
    if empty or len(places) < len(present) or any(address % ALIGNMENT for address in places):
        return None
    if not all(hasattr(kernel, "packed_metadata") for kernel in kernels):
        _warn_once(kernels)
        return None
    arguments = [[launch.arguments[name] for name in launch.kernel.arg_names] for launch in plan.launches]
    given = [value if isinstance(value, tuple) else (value,) for values in arguments for value in values]
    tensors = [tensor for values in given for tensor in values if isinstance(tensor, Tensor)]
    memories = {_memory(tensor): tensor.data_ptr() for tensor in present}
    parts = [tensor for tensor in tensors if _memory(tensor) in memories and tensor.data_ptr() not in places]
    if parts and len(memories) < len(present):  # nor whose part it is
        return None
    made = [tensor for tensor in tensors if _memory(tensor) not in memories]
    allocations, outputs, sources = _allocations(made, plan.outputs, len(operands))

    def place(tensor: Tensor) -> tuple[int, int]:
        address, memory = tensor.data_ptr(), _memory(tensor)
        if address in places:
            return places[address], 0
        if memory in memories:
            return places[memories[memory]], address - memories[memory]
        source, offset = sources[memory]
        return source, offset + address - memory

    launched = zip(plan.launches, kernels, arguments, strict=True)
    calls = [Call.of(kernel, launch.grid, values, place) for launch, kernel, values in launched]
    from triton.runtime import driver

    device = present[0].device
    active: Any = driver.active
    index = active.get_current_device() if device.index is None else device.index
    return Program(active, index, device, tuple(calls), allocations, outputs)


def _memory(tensor: Tensor) -> int:
    """Address of all that a tensor and its views are in."""
    return tensor.untyped_storage().data_ptr()


def _allocations(
    made: Sequence[Tensor], outputs: Sequence[Tensor | None], first: int
) -> tuple[tuple[Allocation, ...], tuple[Output | None, ...], dict[int, tuple[int, int]]]:
    """How to make what a plan made: allocations, outputs, and (source, bytes) of each memory by its address.

    Memory that is no output's is taken in one allocation, the last. `first` is the source of the first allocation.
    """
    by_memory: dict[int, list[int]] = {_memory(tensor): [] for tensor in made}
    for i, output in enumerate(outputs):
        if output is not None:
            by_memory[_memory(output)].append(i)
    storages = {_memory(tensor): tensor for tensor in made}
    allocations: list[Allocation] = []
    found: list[Output | None] = [None] * len(outputs)
    sources: dict[int, tuple[int, int]] = {}
    hidden = 0
    for memory, seen in by_memory.items():
        tensor = storages[memory]
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        if not seen:
            sources[memory] = (-1, hidden)
            hidden += -(-tensor.untyped_storage().nbytes() // ALLOCATED) * ALLOCATED
            continue
        sources[memory] = (first + len(allocations), 0)
        views = {i: output for i in seen if (output := outputs[i]) is not None}
        whole = len(seen) == 1 and views[seen[0]].numel() == elements
        for i, view in views.items():
            found[i] = Output(len(allocations))
            if not whole:
                offset = int(view.storage_offset())
                found[i] = Output(len(allocations), tuple(view.shape), view.stride(), offset)
        allocations.append(
            Allocation(tuple(views[seen[0]].shape), views[seen[0]].stride(), tensor.dtype)
            if whole
            else Allocation((elements,), (1,), tensor.dtype)
        )
    if hidden:
        last = first + len(allocations)
        sources = {memory: (last if source < 0 else source, at) for memory, (source, at) in sources.items()}
        allocations.append(Allocation((hidden,), (1,), torch.uint8))
    return tuple(allocations), tuple(found), sources


_warned = False


def _warn_once(kernels: Sequence[Any]) -> None:
    global _warned
    if not _warned:
        _warned = True
        kinds = ", ".join(sorted({type(kernel).__name__ for kernel in kernels}))
        warnings.warn(
            f"ttfs_kernels: a launch must return a compiled kernel; got {kinds}. Every call goes through Triton's "
            "front end, which takes longer. Please report this with your version of Triton.",
            stacklevel=2,
        )


_remembered: dict[Hashable, Any] = {}
T = TypeVar("T")


def remembered(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` returned for a key. In the interpreter nothing is remembered."""
    found = _remembered.get(key)
    if found is None:
        found = make()
        if not interpreting():
            if len(_remembered) >= LIMIT:
                _remembered.clear()
            _remembered[key] = found
    return found


def forget() -> None:
    """Plan every pass anew."""
    _remembered.clear()
