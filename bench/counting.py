"""What counting costs: evaluation with and without it, and what the layers' own statistics cost.

    python bench/counting.py --device cpu

Evaluation is the trainer's: images from uint8 in memory, forward pass, loss, decisions, the layers' own statistics.
Counting around it adds operations, figures by sample and histograms (of a tenth of the samples). "forward" is the pass
alone, the least that counting can be compared with. All take turns, round by round; ratios are medians over the rounds'
own ratios, of time by the clock and of time on the processor: on a CPU that other programs use too, the second tells
more. Weights are random: counting costs the same whatever the neurons do.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro
from _record import ROOT, environment, write
from accelerate import Accelerator
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ttfs_triton.hardware import counting
from ttfs_triton.nn import Neuron, cnn1, vgg11, vgg16
from ttfs_triton.scoring.batches import EvaluationBatches
from ttfs_triton.scoring.evaluate import evaluate

MODELS = {"cnn1": cnn1, "vgg11": vgg11, "vgg16": vgg16}
PLAIN, FORWARD = "evaluation", "forward"


@dataclasses.dataclass
class Images:
    """Images [N, channels, height, width], uint8, and labels [N]."""

    images: Tensor
    labels: Tensor
    in_memory = True

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, height, width)."""
        n, channels, height, width = self.images.shape
        return n, channels, height, width

    def images_at(self, indices: Tensor) -> Tensor:
        return self.images[indices]


@dataclasses.dataclass
class Options:
    """Time evaluation with and without counting."""

    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    models: tuple[Literal["cnn1", "vgg11", "vgg16"], ...] = ("cnn1", "vgg16")
    sigma: tuple[float, ...] = (1.0, 0.0)
    """Share of the slope that persists; at 0 the network costs least, so that counting weighs most."""
    batch_size: int | None = None
    """Default: 500 for cnn1, 50 for the others."""
    batches: int = 4
    """Batches of one evaluation."""
    rounds: int = 15
    threads: int | None = None
    """CPU threads. Default: PyTorch's choice."""
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("counting: --device cuda must have a GPU that PyTorch can use; found none. Use --device cpu.")
    for name in ("batches", "rounds", "batch_size", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            sys.exit(f"counting: --{name.replace('_', '-')} must be at least 1; got {value}.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    about = environment(device)
    rows = [row for model in options.models for sigma in options.sigma for row in measure(options, model, sigma)]
    shared = {key: about[key] for key in ("device", "threads", "torch", "commit", "utc")}
    show(rows, f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {about['utc']} UTC")
    about["options"] = {key: value for key, value in dataclasses.asdict(options).items() if key != "output"}
    for path in write(options.output, f"counting-{options.device}", [row | shared for row in rows], about):
        print(f"written: {path}")


def measure(options: Options, model: str, sigma: float) -> list[dict[str, Any]]:
    """Rows of one network: plain evaluation, then each way of counting."""
    torch.manual_seed(0)
    network = MODELS[model](neuron=Neuron(sigma)).to(options.device).eval()
    size = options.batch_size or (500 if model == "cnn1" else 50)
    samples = size * options.batches
    shape = (samples, network.config.in_channels, *network.config.image_size)
    data = Images(torch.randint(0, 256, shape, dtype=torch.uint8), torch.randint(0, 10, (samples,)))
    batches, accelerator = EvaluationBatches(data, None, size), Accelerator(cpu=options.device == "cpu")
    images = [batch.to(options.device) for batch, _ in batches]

    def forward() -> None:
        for batch in images:
            network(batch)

    def evaluation() -> None:
        evaluate(network, batches, accelerator)

    def counted(work: Callable[[], None], **how: Any) -> Callable[[], None]:
        def run() -> None:
            with counting(network, **how) as counter:
                work()
            counter.counts()

        return run

    tenth = {"histogram_samples": samples // 10}
    contenders: dict[str, Callable[[], None]] = {
        PLAIN: evaluation,
        "evaluation, counted": counted(evaluation, **tenth),
        FORWARD: forward,
        "forward, counted": counted(forward, **tenth),
        "forward, counted, no histograms": counted(forward, histogram_bins=0),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in track(range(options.rounds + 1), f"{model}, σ = {sigma:g}", transient=True):
        # In turns forwards and backwards: how the one before left the memory is worth percents.
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            seconds = seconds_of(contenders[name], options.device == "cuda")
            if number:  # the first round warms up
                times[name].append(seconds)
    rows = []
    for name, own in times.items():
        clock, processor = zip(*own, strict=True)
        clock_ratio, processor_ratio = ratios(own, times[name.split(",")[0]])
        row = {"model": model, "sigma": sigma, "batch_size": size, "contender": name}
        row |= {"ms_p50": round(1e3 * median(clock), 3), "images_per_second": round(samples / median(clock), 1)}
        row |= {"ratio": clock_ratio, "cpu_ms_p50": round(1e3 * median(processor), 3), "cpu_ratio": processor_ratio}
        rows.append(row)
    return rows


def ratios(own: list[tuple[float, float]], base: list[tuple[float, float]]) -> tuple[float, float]:
    """Medians over rounds of each round's ratio, by the clock and on the processor."""
    clock, processor = zip(
        *([a / b for a, b in zip(*pair, strict=True)] for pair in zip(own, base, strict=True)), strict=True
    )
    return round(median(clock), 4), round(median(processor), 4)


@torch.no_grad()
def seconds_of(work: Callable[[], None], cuda: bool) -> tuple[float, float]:
    """Seconds until it is done, on the device, too: by the clock, and of all processor cores in this program."""
    start = time.perf_counter(), time.process_time()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def show(rows: list[dict[str, Any]], note: str) -> None:
    """The rows as a table."""
    table = Table("network", "", "ms", "images / s", "ratio", "CPU ms", "ratio", title=note, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            f"{row['model']}, σ = {row['sigma']:g}, batch {row['batch_size']}",
            row["contender"],
            f"{row['ms_p50']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['ratio']:.3f}",
            f"{row['cpu_ms_p50']:.1f}",
            f"{row['cpu_ratio']:.3f}",
        )
    console = Console()
    console.print(table)


if __name__ == "__main__":
    main()
