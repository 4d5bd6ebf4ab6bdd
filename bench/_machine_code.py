"""Compile a launch for a chip that need not be there, and read the machine code: no GPU, no driver.

Triton must not be interpreting (TRITON_INTERPRET unset), and its bundled assembler and disassembler are used.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.launch import Launch
from ttfs_kernels.triton_backend.occupancy import fitting

POINTERS = {
    **{torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"},
    **{torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64"},
}
# ptxas: asynchronous products were serialised, for one reason or another.
SERIALISED = re.compile(r"C75(?:1[0-7])")
TENSOR_CORE = re.compile(r"^(HGMMA|HMMA|IMMA|UTCHMMA|UTCOMMA|v_mfma_\w+|v_smfmac_\w+)")
MULTIPLY_ADD = re.compile(r"^(FFMA2?|v_(pk_)?fmac?_f32\w*)$")


@dataclass(frozen=True)
class MachineCode:
    """What was built.

    Attributes:
        registers: a thread.
        spilled_bytes: a thread stores and loads, each place in the code counted once.
        shared_kib: of a program.
        programs_per_processor: that fit at once by registers, shared memory, tensor memory and warps; 0 if a program
            does not fit; None if the chip's limits are not known here.
        tensor_core: tensor-core instructions of the whole kernel.
        loop: instructions of the main loop by opcode (without modifiers); of the whole kernel if it has one step only.
        loop_register_operands, loop_shared_operands: HGMMA of the main loop, by where their first operand is.
        loop_spills: loads and stores of spilled registers in the main loop.
        serialised: messages of the assembler that say so.
    """

    registers: int
    spilled_bytes: int
    shared_kib: float
    programs_per_processor: int | None
    tensor_core: int
    loop: Counter[str] = field(repr=False)
    loop_register_operands: int
    loop_shared_operands: int
    loop_spills: int
    serialised: tuple[str, ...]

    @property
    def loop_instructions(self) -> int:
        """Instructions of the main loop."""
        return sum(self.loop.values())

    @property
    def loop_tensor_core(self) -> int:
        """Tensor-core instructions of the main loop."""
        return sum(count for name, count in self.loop.items() if TENSOR_CORE.match(name))

    @property
    def others_per_product(self) -> float:
        """Other instructions of the main loop for each of its tensor-core instructions; inf without any."""
        products = self.loop_tensor_core
        return (self.loop_instructions - products) / products if products else float("inf")

    @property
    def mixes_operands(self) -> bool:
        """Whether the main loop feeds some products from registers and some from shared memory: the racing form."""
        return self.loop_register_operands > 0 and self.loop_shared_operands > 0


def compile_launch(launch: Launch, chip: Chip) -> Any:
    """Compile exactly what `launch.run()` would build on a chip; tensors may be on the meta device.

    Returns:
        (Triton's compiled kernel, the assembler's log).
    Raises:
        RuntimeError: Triton is interpreting.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("compile_launch: kernels must not be interpreted; start without TRITON_INTERPRET.")
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list] = {}

    def describe(value: Any, path: tuple[int, ...], constant: bool, special: bool = True) -> Any:
        # As at a launch: None and 1 become constants, multiples of 16 and fresh allocations are known to be aligned.
        # Of sizes that follow from the batch, kernels want to know none of this.
        if isinstance(value, tuple):
            parts = [describe(part, (*path, index), constant) for index, part in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if constant or value is None or (special and isinstance(value, int) and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return POINTERS[value.dtype]
        if isinstance(value, float):
            return "fp32"
        if special and value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i64" if value >= 2**31 else "i32"

    for index, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        signature[parameter.name] = describe(value, (index,), parameter.is_constexpr, not parameter.do_not_specialize)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget(chip.vendor, chip.architecture, chip.warp_size)
    log = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=target, options=launch.options)
    return compiled, log.getvalue()


def inspect(launch: Launch, chip: Chip) -> MachineCode:
    """Compile a launch and read what came out."""
    compiled, log = compile_launch(launch, chip)
    read = _read_amdgcn if chip.vendor == "hip" else _read_cubin
    return read(compiled, log, chip)


def _read_cubin(compiled: Any, log: str, chip: Chip) -> MachineCode:
    registers = int(_found(r"Used (\d+) registers", log))
    spilled = int(_found(r"(\d+) bytes spill stores", log)) + int(_found(r"(\d+) bytes spill loads", log))
    lines = [line for line in _disassemble(compiled.asm["cubin"]) if line[1] != "NOP"]
    loop = _main_loop(lines, _backward_branches(lines))
    products = [text for _, name, text in loop if name == "HGMMA"]
    in_registers = sum(re.match(r"\S+ R\d+, R\d+", text) is not None for text in products)
    return MachineCode(
        registers,
        spilled,
        compiled.metadata.shared / 1024,
        programs_per_processor(chip, registers, compiled.metadata),
        sum(TENSOR_CORE.match(name) is not None for _, name, _ in lines),
        Counter(name for _, name, _ in loop),
        in_registers,
        len(products) - in_registers,
        sum(name in ("LDL", "STL") for _, name, _ in loop),
        tuple(sorted(set(SERIALISED.findall(log)))),
    )


def _found(pattern: str, log: str) -> str:
    found = re.search(pattern, log)
    if found is None:
        raise RuntimeError(f"the assembler's log must hold {pattern!r}; got {log[:500]!r}")
    return found[1]


Line = tuple[int, str, str]  # address, opcode, instruction without predicate


def _disassemble(cubin: bytes) -> list[Line]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = []
    for address, code in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.MULTILINE):
        code = re.sub(r"^@!?U?P\w+\s+", "", code.strip())
        lines.append((int(address, 16), re.split(r"[.\s]", code)[0], code))
    return lines


def _backward_branches(lines: list[Line]) -> list[tuple[int, int]]:
    addresses = [address for address, _, _ in lines]
    spans = []
    for index, (_, name, text) in enumerate(lines):
        target = re.search(r"0x([0-9a-f]+)$", text) if name == "BRA" else None
        if target is not None and int(target[1], 16) < addresses[index]:
            spans.append((bisect.bisect_left(addresses, int(target[1], 16)), index))
    return spans


def _main_loop(lines: list[Line], spans: list[tuple[int, int]]) -> list[Line]:
    """The innermost loop with the most tensor-core instructions, or with the most multiply-adds if there are none.

    All lines if no loop holds a product: those of a single step are no loop.

    Args:
        lines: of the whole kernel.
        spans: indices of the first and last line of each loop.
    """

    def products(loop: list[Line]) -> tuple[int, int]:
        tensor_core, multiply_add = (
            sum(pattern.match(name) is not None for _, name, _ in loop) for pattern in (TENSOR_CORE, MULTIPLY_ADD)
        )
        return tensor_core, 0 if tensor_core else multiply_add

    loops = [lines[first : last + 1] for first, last in spans]
    best = max(loops, key=lambda loop: (products(loop), -len(loop)), default=[])
    return best if any(products(best)) else lines


def programs_per_processor(chip: Chip, registers: int, metadata: Any) -> int | None:
    """How many programs fit on a processor at once.

    Args:
        chip: which limits.
        registers: a thread.
        metadata: Triton's; num_warps, shared (bytes) and tmem_size (columns, where there is tensor memory).
    """
    columns = getattr(metadata, "tmem_size", 0)
    return fitting(chip, registers, metadata.num_warps, metadata.shared, columns)


def _read_amdgcn(compiled: Any, log: str, chip: Chip) -> MachineCode:
    text = compiled.asm["amdgcn"]

    def metadata(key: str) -> int:
        return int(_found(rf"\.{key}:\s*(\d+)", text))

    lines: list[Line] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = re.match(r"^(\.LBB\w+):", line)
        if label is not None:
            labels[label[1]] = len(lines)
        elif code := re.match(r"^\t([a-z]\w+)(.*)", line):
            lines.append((len(lines), code[1], f"{code[1]} {code[2].strip()}"))
    spans = []
    for index, name, code in lines:
        target = re.search(r"(\.LBB\w+)", code) if name.startswith(("s_cbranch", "s_branch")) else None
        if target is not None and labels.get(target[1], index) < index:
            spans.append((labels[target[1]], index))
    loop = _main_loop(lines, spans)
    registers = metadata("vgpr_count")  # those for accumulators (agpr_count) included
    return MachineCode(
        registers,
        4 * metadata("vgpr_spill_count"),
        compiled.metadata.shared / 1024,
        programs_per_processor(chip, registers, compiled.metadata),
        sum(TENSOR_CORE.match(name) is not None for _, name, _ in lines),
        Counter(name for _, name, _ in loop),
        0,
        0,
        sum(name.startswith("scratch_") for _, name, _ in loop),
        (),
    )
