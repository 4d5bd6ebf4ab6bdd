"""Compiles a launch for a chip that need not be present, and reads the machine code; needs no GPU and no driver.

Triton must not be interpreting (TRITON_INTERPRET unset). Its bundled assembler and disassembler are used.
"""

import bisect
import contextlib
import io
import math
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ttfs_kernels.triton.common import Chip, Launch

# Warnings of ptxas that it serialised asynchronous products.
SERIALISED = re.compile(r"C75(?:1[0-7])")
TENSOR_CORE = re.compile(r"^(HGMMA|HMMA|IMMA|UTCHMMA|UTCOMMA|v_mfma_\w+|v_smfmac_\w+)")
MULTIPLY_ADD = re.compile(r"^(FFMA2?|v_(pk_)?fmac?_f32\w*)$")
SPILL = re.compile(r"^(LDL|STL|scratch_\w+)$")


@dataclass(frozen=True)
class MachineCode:
    """Properties of a compiled kernel."""

    registers: int  # registers per thread
    spilled_bytes: int  # bytes that a thread spills and loads back, where every place in the code counts once
    shared_kib: float  # shared memory per program
    programs_per_processor: int | None  # programs that fit at once, 0 if none does; None if `LIMITS` lacks the chip
    tensor_core: int  # tensor-core instructions of the whole kernel
    loop: Counter[str] = field(repr=False)  # instructions of the main loop by opcode, without modifiers
    loop_register_operands: int  # HGMMA of the main loop whose first operand is in registers
    loop_shared_operands: int  # HGMMA of the main loop whose first operand is in shared memory
    loop_spills: int  # loads and stores of spilled registers in the main loop
    serialised: tuple[str, ...]  # codes of the assembler's warnings that it serialised products

    @property
    def loop_tensor_core(self) -> int:
        """Tensor-core instructions of the main loop."""
        return sum(count for name, count in self.loop.items() if TENSOR_CORE.match(name))

    @property
    def others_per_product(self) -> float:
        """Other instructions of the main loop per tensor-core instruction in it; inf without any."""
        products = self.loop_tensor_core
        return (self.loop.total() - products) / products if products else float("inf")

    @property
    def mixes_operands(self) -> bool:
        """Whether the main loop feeds some products from registers and some from shared memory: the racing form."""
        return self.loop_register_operands > 0 and self.loop_shared_operands > 0


def _compile_for(chip: Chip) -> None:
    """Make Triton compile for a chip that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget(chip.vendor, chip.architecture, 64 if chip.vendor == "hip" else 32)
    # Compiled kernels are cached by the device.
    driver_of: Any = SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: chip)
    driver_of.get_current_stream = lambda _: 0
    driver.set_active(driver_of)


def specialisation(launch: Launch, chip: Chip) -> str:
    """What Triton's code for a launch depends on: types, constants, arguments that 16 divides, and options."""
    _compile_for(chip)
    _, kinds, options = launch.kernel.device_caches[chip][-1](*launch.values, **launch.options)
    return str((kinds, options))


def compile_launch(launch: Launch, chip: Chip) -> tuple[Any, str]:
    """(Triton's compiled kernel, the assembler's log), as `common.launch` would build it; tensors may be on meta."""
    import triton
    from triton import knobs

    if not isinstance(launch.kernel, triton.JITFunction):
        raise RuntimeError("compile_launch: kernels must not be interpreted; start without TRITON_INTERPRET.")
    _compile_for(chip)
    launch.kernel.device_caches.pop(chip, None)
    log = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        compiled = launch.kernel.warmup(*launch.values, grid=launch.grid, **launch.options)
    return compiled, log.getvalue()


# Limits of a processor: registers, unit in which a thread takes them, warps, programs, KiB of shared memory, KiB of
# these that the system takes per program, columns of tensor memory. Sources: CUDA's programming guide, compute
# capabilities; LLVM's guide to AMDGPU: gfx942 has four units with 512 registers per thread and 8 warps in a unit.
LIMITS: dict[int | str, tuple[int, ...]] = {
    80: (65536, 8, 64, 32, 164, 1, 0),
    86: (65536, 8, 48, 16, 100, 1, 0),
    89: (65536, 8, 48, 24, 100, 1, 0),
    90: (65536, 8, 64, 32, 228, 1, 0),
    100: (65536, 8, 64, 32, 228, 1, 512),
    "gfx942": (4 * 512 * 64, 8, 32, 16, 64, 0, 0),
}


def fitting(chip: Chip, registers: int, warps: int, shared: int, columns: int = 0) -> int | None:
    """How many programs fit on a processor at once; 0 if not even one, None if `LIMITS` lacks the chip.

    `registers` are those of a thread; `warps`, bytes of `shared` memory and `columns` of tensor memory of a program.
    """
    if chip.architecture not in LIMITS:
        return None
    all_registers, unit, all_warps, programs, kib, reserved, all_columns = LIMITS[chip.architecture]
    taken = math.ceil(registers / unit) * unit * (64 if chip.vendor == "hip" else 32) * warps
    fit = [programs, all_warps // warps, all_registers // max(1, taken)]
    fit.append(1024 * kib // max(1, shared + 1024 * reserved))
    return min(*fit, *([all_columns // columns] if columns else []))


class Line(NamedTuple):
    address: int
    opcode: str
    text: str  # the instruction without predicate


class Listing(NamedTuple):
    """A kernel's disassembly; `spans` holds the indices of the loops' first and last lines."""

    lines: list[Line]
    spans: list[tuple[int, int]]
    registers: int
    spilled_bytes: int


def inspect(launch: Launch, chip: Chip) -> MachineCode:
    """Compile a launch and read its machine code."""
    compiled, log = compile_launch(launch, chip)
    code = _read_amdgcn(compiled.asm["amdgcn"]) if chip.vendor == "hip" else _read_cubin(compiled.asm["cubin"], log)
    loop = main_loop(code.lines, code.spans)
    products = [line.text for line in loop if line.opcode == "HGMMA"]
    in_registers = sum(re.match(r"\S+ R\d+, R\d+", text) is not None for text in products)
    metadata = compiled.metadata
    columns = getattr(metadata, "tmem_size", 0)  # only chips with tensor memory have it
    return MachineCode(
        registers=code.registers,
        spilled_bytes=code.spilled_bytes,
        shared_kib=metadata.shared / 1024,
        programs_per_processor=fitting(chip, code.registers, metadata.num_warps, metadata.shared, columns),
        tensor_core=sum(TENSOR_CORE.match(line.opcode) is not None for line in code.lines),
        loop=Counter(line.opcode for line in loop),
        loop_register_operands=in_registers,
        loop_shared_operands=len(products) - in_registers,
        loop_spills=sum(SPILL.match(line.opcode) is not None for line in loop),
        serialised=tuple(sorted(set(SERIALISED.findall(log)))),
    )


def main_loop(lines: list[Line], spans: list[tuple[int, int]]) -> list[Line]:
    """The innermost loop with the most tensor-core instructions, or with the most multiply-adds if there are none.

    All lines are returned if no loop holds a product: a kernel of a single step has no loop.
    """

    def products(loop: list[Line]) -> tuple[int, int]:
        tensor_core, multiply_add = (
            sum(pattern.match(line.opcode) is not None for line in loop) for pattern in (TENSOR_CORE, MULTIPLY_ADD)
        )
        return tensor_core, 0 if tensor_core else multiply_add

    loops = [lines[first : last + 1] for first, last in spans]
    best = max(loops, key=lambda loop: (products(loop), -len(loop)), default=[])
    return best if any(products(best)) else lines


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"the compiler's output must match {pattern!r}; got {text[:500]!r}")
    return int(match[1])


def _read_cubin(cubin: bytes, log: str) -> Listing:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = []
    for address, code in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.MULTILINE):
        code = re.sub(r"^@!?U?P\w+\s+", "", code.strip())
        line = Line(int(address, 16), re.split(r"[.\s]", code)[0], code)
        lines += [line] if line.opcode != "NOP" else []
    addresses, spans = [line.address for line in lines], []
    for index, line in enumerate(lines):
        target = re.search(r"0x([0-9a-f]+)$", line.text) if line.opcode == "BRA" else None
        if target is not None and int(target[1], 16) < line.address:
            spans.append((bisect.bisect_left(addresses, int(target[1], 16)), index))
    spilled = _number(r"(\d+) bytes spill stores", log) + _number(r"(\d+) bytes spill loads", log)
    return Listing(lines, spans, _number(r"Used (\d+) registers", log), spilled)


def _read_amdgcn(text: str) -> Listing:
    lines: list[Line] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"^(\.LBB\w+):", line):
            labels[label[1]] = len(lines)
        elif code := re.match(r"^\t([a-z]\w+)(.*)", line):
            lines.append(Line(len(lines), code[1], f"{code[1]} {code[2].strip()}"))
    spans = []
    for index, opcode, code in lines:
        target = re.search(r"(\.LBB\w+)", code) if opcode.startswith(("s_cbranch", "s_branch")) else None
        if target is not None and labels.get(target[1], index) < index:
            spans.append((labels[target[1]], index))
    # vgpr_count includes the registers for accumulators (agpr_count).
    registers, spilled = _number(r"\.vgpr_count:\s*(\d+)", text), _number(r"\.vgpr_spill_count:\s*(\d+)", text)
    return Listing(lines, spans, registers, 4 * spilled)
