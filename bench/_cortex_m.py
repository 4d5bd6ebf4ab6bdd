"""Runs exported C on a Cortex-M4 in QEMU: classes, instructions per image, bytes of memory."""

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from ttfs_triton.export.compare import raw_bytes

TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm", "arm-none-eabi-size")

# With -icount shift=0, QEMU's clock gains 1 ns per instruction; this board's timer counts down at 25 MHz, in 24 bits.
INSTRUCTIONS_PER_TICK = 40
MACHINE = "-M mps2-an386 -icount shift=0 -semihosting -nographic -monitor none -serial none -kernel main.elf".split()
COMPILER = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-mcpu=cortex-m4", "-mthumb", "-O2")

PROGRAM = """
#include "net.c"
static const uint8_t images[][NET_IMAGE_BYTES] = {IMAGES};
static volatile uint32_t *const timer = (volatile uint32_t *)0xe000e010;
static void semihosting(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}
static void print(uint32_t number)
{
    char text[12] = {0}, *first = text + 10;
    *first = ' ';
    do
        *--first = (char)('0' + number % 10);
    while (number /= 10);
    semihosting(0x04, first);                      /* SYS_WRITE0 */
}
void start(void)
{
    timer[1] = 0xffffff, timer[2] = 0, timer[0] = 5;
    for (unsigned i = 0; i < sizeof images / sizeof *images; i++) {
        uint32_t before = timer[2];
        int class = net_classify(images[i]);
        uint32_t ticks = (before - timer[2]) & 0xffffff;
        print((uint32_t)class), print(ticks);
    }
    semihosting(0x18, (const void *)0x20026);      /* SYS_EXIT: the program has ended */
}
__attribute__((section(".vectors"), used)) static const void *const vectors[] = {(void *)0x20400000, (void *)start};
"""
MEMORY = """
SECTIONS {
    . = 0; .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) }
    . = 0x20000000; .data : { *(.data*) *(.bss*) *(COMMON) }
}
"""


def run_on_cortex_m4(source: str, pixels: Tensor) -> tuple[list[int], dict[str, int]]:
    """Classes of images [N, C, height, width] uint8; instructions per image (mean, up to 6.7e8), bytes of net.c."""
    rows = (", ".join(map(str, raw_bytes(image[None]))) for image in pixels)
    files = {"net.c": source, "memory.ld": MEMORY}
    files["main.c"] = PROGRAM.replace("IMAGES", ",\n".join(f"{{{row}}}" for row in rows))
    with TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="ascii")
        subprocess.run([TOOLS[0], *COMPILER, "-c", "net.c"], cwd=folder, check=True)
        sizes = subprocess.check_output([TOOLS[2], "net.o"], cwd=folder, text=True).split()  # a row of titles first
        linked = ["-ffreestanding", "-nostartfiles", "-T", "memory.ld", "main.c", "-o", "main.elf"]
        subprocess.run([TOOLS[0], *COMPILER, *linked], cwd=folder, check=True)
        printed = subprocess.check_output([TOOLS[1], *MACHINE], cwd=folder, stderr=subprocess.STDOUT, timeout=300)
    numbers, (flash, data, zeros) = [*map(int, printed.split())], map(int, sizes[6:9])
    instructions = round(INSTRUCTIONS_PER_TICK * sum(numbers[1::2]) / len(pixels))
    return numbers[::2], {"instructions": instructions, "flash": flash + data, "ram": data + zeros}
