"""Time a training step of ours against the same network as an ANN and as the composition a user would write.

    python bench/train_step.py --device cpu
    python bench/train_step.py --model vgg11 --width 0.5 --batch-size 128 --dtypes bfloat16 --statistics

All contenders have the same weights and see the same batch. First the gradients are compared; nothing is timed if they
disagree. Then the contenders take turns, round by round, so that noise of the machine hits all alike; ratios are
medians over the rounds' own ratios. The floor is the number of contractions against the ANN's three per layer (5/3 for
σ > 0). Times can lie below it: for small maps with many weights ours multiplies matrices where PyTorch's convolution is
slow on a CPU. σ = 0, an ANN with our contractions, shows by how much.
"""

import dataclasses
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from _contenders import ANN, COMPOSITION, Contender, build
from _measure import DisagreementError, Step, check, peak_mib
from _record import ROOT, environment, write
from rich import box
from rich.console import Console
from rich.table import Table

from ttfs_triton.memory import freed_memory_kept

WARM_UP = 2
OPTIMIZERS = {
    # Fused, as training has them.
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
}


@dataclasses.dataclass
class Options:
    """Time a training step: forward, loss, backward, update."""

    device: Literal["cpu", "cuda"] = "cpu"
    model: Literal["vgg16", "vgg11", "cnn1"] = "vgg16"
    batch_size: int = 32
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """bfloat16 is autocast with float32 parameters."""
    backends: tuple[Literal["auto", "triton", "torch"], ...] | None = None
    """Kernels of ours. Default: all three on a GPU; auto on the CPU, where it is torch."""
    width: float = 1.0
    """Factor on the size of every hidden layer."""
    image_size: int | None = None
    """Side of the images. Default: the model's own, 32 or 28."""
    weight_standardisation: bool = False
    """Standardise weights in all contenders, and give neurons an initial potential as in training."""
    statistics: bool = False
    """Also time ours with spikes counted in every step."""
    fuse: bool = False
    """On the CPU, also time ours with passes over neurons fused by PyTorch's compiler, as long trainings have them."""
    optimizer: Literal["none", "sgd", "adamw"] = "sgd"
    repeats: int = 15
    """Rounds that count."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's choice. Beside other programs take fewer: a thread that waits delays all."""
    seed: int = 0
    output: Path = ROOT / "bench" / "results"
    """Folder of the CSV file."""


def main() -> None:
    import tyro  # here: `gpu.py` calls `run` where there is none

    run(tyro.cli(Options, description=__doc__))


def run(options: Options) -> None:
    """Check, time, show and write."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("train_step: --device cuda must have a GPU that PyTorch can use; found none. Use --device cpu.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    try:
        with freed_memory_kept() if device.type == "cpu" else nullcontext():  # as training does
            rows = [row for dtype in options.dtypes for row in measure(options, device, getattr(torch, dtype))]
    except DisagreementError as error:
        sys.exit(f"train_step: {error}")
    about = environment(device)
    rows = [row | {key: about[key] for key in ("device", "threads", "torch", "cudnn", "commit", "utc")} for row in rows]
    show(about, rows)
    about["options"] = {key: value for key, value in dataclasses.asdict(options).items() if key != "output"}
    write(options.output, f"train_step-{options.device}-{options.model}", rows, about)


def measure(options: Options, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Check, then time, every contender in one dtype: rows for the table."""
    torch.manual_seed(options.seed)
    contenders = build(
        options.model,
        options.image_size,
        width=options.width,
        statistics=options.statistics,
        fuse=options.fuse,
        backends=options.backends or (("auto", "triton", "torch") if device.type == "cuda" else ("auto",)),
        weight_standardisation=options.weight_standardisation,
        bias=options.weight_standardisation,
    )
    steps = make_steps(options, contenders, device, dtype)
    errors = [check(step) for step in steps]
    peaks = [peak_mib(step) for step in steps]
    for round_ in range(WARM_UP + options.repeats):
        for step in steps[round_ % len(steps) :] + steps[: round_ % len(steps)]:
            step.time()
    for step in steps:
        del step.step_ms[:WARM_UP], step.forward_backward_ms[:WARM_UP]
    shared = {
        "op": "train_step",
        "case": f"{options.model}-b{options.batch_size}-w{options.width:g}",
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "channels_last",
    }
    rows = []
    for passes in ("step", "forward_backward"):
        times = {step.contender.name: getattr(step, f"{passes}_ms") for step in steps}
        for step, peak, error in zip(steps, peaks, errors, strict=True):
            row = shared | {"pass": passes, "provider": step.contender.name}
            row |= timing(times, step.contender.name, step.contender.floor)
            rows.append(row | {"peak_mib": round(peak, 1), "gradient_error": "" if error is None else f"{error:.1e}"})
    return rows


def timing(times: dict[str, list[float]], name: str, floor: float) -> dict[str, Any]:
    """One contender's times and ratios; `times` has one entry a round for each contender."""
    own = torch.tensor(times[name])
    low, high = own.quantile(torch.tensor([0.2, 0.8])).tolist()
    ann = median(times[ANN])
    return {
        "ms_p50": round(median(times[name]), 2),
        "ms_p20": round(low, 2),
        "ms_p80": round(high, 2),
        "ratio_to_ann": round(ratio(times, name, ANN), 3),
        "ratio_to_composition": round(ratio(times, name, COMPOSITION), 3),
        "floor_ratio": round(floor, 3),
        "floor_ms": round(floor * ann, 2),
    }


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median over rounds of the time against another contender's in the same round."""
    return median(own / other for own, other in zip(times[name], times[base], strict=True))


def make_steps(options: Options, contenders: list[Contender], device: torch.device, dtype: torch.dtype) -> list[Step]:
    """Every contender with its optimizer, on one random batch."""
    config = contenders[0].network.config
    images = torch.rand(options.batch_size, config.in_channels, *config.image_size).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, config.classes, (options.batch_size,)).to(device)
    steps = []
    for contender in contenders:
        parameters = list(contender.network.to(device).parameters())
        optimizer = OPTIMIZERS[options.optimizer](parameters) if options.optimizer != "none" else None
        steps.append(Step(contender, images, labels, dtype, optimizer))
    return steps


def show(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """One table for each dtype."""
    console = Console()
    console.print(
        f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {about['utc']} UTC", soft_wrap=True
    )
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        chosen = [row for row in rows if row["dtype"] == dtype]
        table = Table(
            title=f"{chosen[0]['case']}, {dtype}",
            title_justify="left",
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for heading in ("", "step ms", "p20–p80", "×ANN", "×comp", "fwd+bwd", "×ANN", "floor", "MiB"):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for step, passes in zip(*(by_pass(chosen, name) for name in ("step", "forward_backward")), strict=True):
            table.add_row(
                step["provider"],
                digits(step["ms_p50"]),
                f"{digits(step['ms_p20'])}–{digits(step['ms_p80'])}",
                f"{step['ratio_to_ann']:.2f}",
                f"{step['ratio_to_composition']:.2f}",
                digits(passes["ms_p50"]),
                f"{passes['ratio_to_ann']:.2f}",
                f"{step['floor_ratio']:.2f}",
                digits(step["peak_mib"]),
            )
        console.print(table)


def digits(value: float) -> str:
    """Three digits or more, no exponent."""
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f}"


def by_pass(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["pass"] == name]


if __name__ == "__main__":
    main()
