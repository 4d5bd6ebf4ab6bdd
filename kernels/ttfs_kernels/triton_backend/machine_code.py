"""Compile a launch for a chip that need not be there, and read the machine code: no GPU, no driver.

Triton must not be interpreting (TRITON_INTERPRET unset), and its bundled assembler and disassembler are used.
"""

from __future__ import annotations

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

POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
# Shared memory of a processor and of one program, KiB; registers and warps are the same on all.
SHARED_KIB = {80: (164, 163), 86: (100, 99), 89: (100, 99), 90: (228, 227), 100: (228, 227), 120: (100, 99)}
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32
# ptxas: asynchronous products were serialised, for one reason or another.
SERIALISED = re.compile(r"C75(?:1[0-7])")
TENSOR_CORE = re.compile(r"^(HGMMA|HMMA|IMMA|UTCHMMA|UTCOMMA|v_mfma_\w+|v_smfmac_\w+)")


@dataclass(frozen=True)
class MachineCode:
    """What was built.

    Attributes:
        registers: a thread.
        spilled_bytes: a thread; None where the compiler does not say.
        shared_kib: of a program.
        programs_per_processor: that fit at once by registers, shared memory and warps; None if not modelled.
        tensor_core: tensor-core instructions of the whole kernel.
        loop: instructions of the main loop by opcode (without modifiers).
        loop_register_operands, loop_shared_operands: HGMMA of the main loop, by where their first operand is.
        loop_spills: loads and stores of spilled registers in the main loop.
        serialised: messages of the assembler that say so.
    """

    registers: int
    spilled_bytes: int | None
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
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list] = {}
    for index, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        # As at a launch: None and 1 become constants, multiples of 16 and fresh allocations are known to be aligned.
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i64" if value >= 2**31 else "i32"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
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
    if chip.vendor == "hip":
        return _read_amdgcn(compiled.asm["amdgcn"], compiled.metadata.shared)
    return _read_cubin(compiled.asm["cubin"], log, compiled.metadata.shared, launch.num_warps, chip)


def _read_cubin(cubin: bytes, log: str, shared: int, num_warps: int, chip: Chip) -> MachineCode:
    registers = int(_found(r"Used (\d+) registers", log))
    spilled = int(_found(r"(\d+) bytes spill stores", log)) + int(_found(r"(\d+) bytes spill loads", log))
    lines = [line for line in _disassemble(cubin) if line[1] != "NOP"]
    loop = _main_loop(lines)
    products = [text for _, name, text in loop if name == "HGMMA"]
    in_registers = sum(re.match(r"\S+ R\d+, R\d+", text) is not None for text in products)
    return MachineCode(
        registers,
        spilled,
        shared / 1024,
        _programs_per_processor(registers, shared, num_warps, chip),
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


def _main_loop(lines: list[Line]) -> list[Line]:
    """The innermost loop with the most tensor-core instructions, or with the most multiply-adds if there are none."""
    loops = []
    for address, name, text in lines:
        target = re.search(r"0x([0-9a-f]+)$", text) if name == "BRA" else None
        if target is not None and int(target[1], 16) < address:
            start = int(target[1], 16)
            loops.append([line for line in lines if start <= line[0] <= address])

    def products(loop: list[Line]) -> tuple[int, int, int]:
        tensor_core = sum(TENSOR_CORE.match(name) is not None for _, name, _ in loop)
        return tensor_core, sum(name == "FFMA" for _, name, _ in loop), -len(loop)

    return max(loops, key=products, default=[])


def _programs_per_processor(registers: int, shared: int, num_warps: int, chip: Chip) -> int | None:
    if chip.architecture not in SHARED_KIB:
        return None
    processor, program = SHARED_KIB[int(chip.architecture)]
    if shared > program * 1024:
        return 0
    # Registers come in 256 a warp; a program reserves 1 KiB of shared memory for the system.
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * num_warps)
    return min(by_registers, processor * 1024 // (shared + 1024), WARPS // num_warps, PROGRAMS)


def _read_amdgcn(text: str, shared: int) -> MachineCode:
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
    loops = []
    for index, name, code in lines:
        target = re.search(r"(\.LBB\w+)", code) if name.startswith(("s_cbranch", "s_branch")) else None
        if target is not None and labels.get(target[1], index) < index:
            loops.append(lines[labels[target[1]] : index + 1])
    loop = max(
        loops,
        key=lambda loop: (sum(TENSOR_CORE.match(name) is not None for _, name, _ in loop), -len(loop)),
        default=[],
    )
    return MachineCode(
        metadata("vgpr_count") + metadata("agpr_count"),
        4 * metadata("vgpr_spill_count"),
        shared / 1024,
        None,
        sum(TENSOR_CORE.match(name) is not None for _, name, _ in lines),
        Counter(name for _, name, _ in loop),
        0,
        0,
        sum(name.startswith("scratch_") for _, name, _ in loop),
        (),
    )
