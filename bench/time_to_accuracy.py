"""Minutes of training until a network reaches an accuracy: this package, PyTorch, SpikingJelly and snnTorch.

    pip install -e '.[peers]'
    python bench/time_to_accuracy.py --data-dir CIFAR10 --runs RUNS
    python bench/time_to_accuracy.py --data-dir CIFAR10 --runs RUNS --contenders ann snntorch --library-epochs 8

All contenders train the same network, `cifarnet`, on the same images, with the same augmentation, batch size and
held-out images, in bfloat16 on one device. They differ in the neurons between layers:

- `sigma-0`, `sigma-1`: our neurons, by `ttfs train cifarnet-cifar10 --preset best` and `rel_psp`, fused or graphed;
- `ann`: PyTorch's convolution, batch norm and ReLU, eager, with our initial means in front of pools;
- `spikingjelly`, `snntorch`: leaky integrate-and-fire neurons instead of ReLU. Half of the potential leaks in a time
  step, the threshold is 1, the surrogate derivative is the arctangent's. The image is repeated in T time steps, the
  first convolution is computed once, logits are means over time. SpikingJelly runs in multi-step mode, snnTorch as a
  loop over time. A batch is split into T parts, so that it takes as much memory as the other contenders' batches.

Ours and the ANN follow the recipe. Its learning rates make integrate-and-fire neurons diverge, so these are trained as
their users begin: Adam at a peak rate of 2e-3 and the same warm-up, learned gains of batch norm, PyTorch's initial
weights. Nothing was tuned for them. Their epochs take as long as T epochs of the ANN, so they have fewer epochs
(`--library-epochs`), with a schedule of that length.
A contender's metrics lie in RUNS/NAME/metrics.jsonl. A stopped run of ours is resumed, a stopped run of the others
starts anew. Times cover training alone, without start-up and validation.
"""

import copy
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import _bench as bench
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peers import LIBRARIES, Library
from torch import Tensor, nn

from ttfs_triton.atomic import write_text
from ttfs_triton.evaluate import EvaluationBatches
from ttfs_triton.evaluate.batches import load_batches
from ttfs_triton.nn import cifarnet, whiten
from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.train import TrainConfig
from ttfs_triton.train.config import make_config, read_recipe
from ttfs_triton.train.data import EpochBatches, RunData, load_data, train_loader
from ttfs_triton.train.device import freed_memory_kept
from ttfs_triton.train.learner import STATISTICS_IMAGES
from ttfs_triton.train.optimisation import look_ahead, rate_factor

RECIPE = bench.ROOT / "ttfs_triton" / "recipes" / "cifarnet-cifar10.yaml"
OURS = {"sigma-0": "best", "sigma-1": "rel_psp"}  # presets of the recipe
TITLES = {"sigma-0": "ours, σ = 0", "sigma-1": "ours, σ = 1", "ann": "ANN, PyTorch"}
TITLES |= {"spikingjelly": "SpikingJelly, T = {}", "snntorch": "snnTorch, T = {}"}
GOALS = (0.80, 0.85, 0.90, 0.93)
LIBRARY_RATE = 2e-3
NORM_BIAS_RATE = 64.0  # the recipe has 7 for neurons that saturate at 1, not at 3 standard deviations: 7 · 3²

Contender = Literal["sigma-0", "sigma-1", "ann", "spikingjelly", "snntorch"]


@dataclasses.dataclass
class Options:
    """Train a network with several libraries, and measure how long they take to reach an accuracy."""

    data_dir: Path  # folder of CIFAR-10's parquet files
    runs: Path  # folder that gets one folder per contender
    contenders: tuple[Contender, ...] = get_args(Contender)
    epochs: int = 8  # epochs of ours and of the ANN
    library_epochs: int = 4  # epochs of spikingjelly and snntorch
    time_steps: int = 4  # time steps T of spikingjelly and snntorch
    cpu: bool = False  # use the CPU even if there is a GPU
    output: Path = bench.RESULTS  # folder of the CSV file


class Network(nn.Module):
    """`cifarnet` of a library's layers and neurons, or of PyTorch's layers and ReLU, behind our whitened encoder."""

    def __init__(self, encoder: AnalogEncoder, library: Library | None, time_steps: int) -> None:
        super().__init__()
        self.unroll, self.time_steps = library and library.unroll, time_steps
        layers, neuron = (library.layers, library.neuron) if library else (nn, nn.ReLU)
        self.mean, self.std = nn.Buffer(encoder.mean.clone()), nn.Buffer(encoder.std.clone())
        self.encoder = nn.Conv2d(3, 24, 2)
        with torch.no_grad():
            self.encoder.weight.copy_(encoder.weight / encoder.initial_gain).requires_grad_(False)
            assert self.encoder.bias is not None
            self.encoder.bias.zero_()
        body: list[nn.Module] = [neuron()]
        before = 24
        for channels in (64, 256, 256):
            for pools in (True, False):
                convolution = layers.Conv2d(before, channels, 3, padding=1, bias=False)
                norm = layers.BatchNorm2d(channels)
                if library is None:
                    nn.init.dirac_(convolution.weight[:before])
                    norm.weight.requires_grad_(False)
                body += [convolution, norm, neuron(), *([layers.MaxPool2d(2)] if pools else [])]
                before = channels
        self.readout = layers.Linear(before, 10, bias=False)
        self.body = nn.Sequential(*body, layers.MaxPool2d(3), layers.Flatten(), self.readout)
        if library:
            library.prepare(self.body)

    def forward(self, images: Tensor) -> Tensor:
        images = (images - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        current = self.encoder(images.contiguous(memory_format=torch.channels_last))
        if self.unroll is None:
            return self.body(current) / 9  # airbench94's factor
        return self.unroll(self.body, current, self.time_steps)


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


class Training:
    """A contender's training by the recipe."""

    def __init__(self, library: Library | None, config: TrainConfig, data: RunData, accelerator: Accelerator, T: int):
        self.config, self.data, self.accelerator = config, data, accelerator
        torch.manual_seed(config.seed)
        ours = cifarnet().features
        encoder = ours.get_submodule("conv1")
        assert isinstance(encoder, AnalogEncoder)
        whiten(encoder, data.train.images_at(data.train_indices[:5000]).float() / 255)
        self.parts = T if library else 1
        network = Network(encoder, library, T)
        self.network = network.to(accelerator.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        kinds = nn.Conv2d | nn.BatchNorm2d | nn.Linear
        self.weighted = nn.ModuleList(module for module in network.modules() if isinstance(module, kinds))
        self.average = copy.deepcopy(self.weighted)
        self.looks_ahead = library is None
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if library is None:
            norms = norms_of(self.network)
            for norm, started in zip(norms, norms_of(ours), strict=True):
                norm.bias.data = started.bias.data / started.weight.data
            biases = [norm.bias for norm in norms] + [self.network.encoder.bias]
            weights = [parameter for parameter in trained if all(parameter is not bias for bias in biases)]
            decay = config.weight_decay
            groups = [{"params": weights, "weight_decay": decay}, {"params": biases, "lr": config.lr * NORM_BIAS_RATE}]
            self.optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=True)
        else:
            self.optimizer = torch.optim.Adam(trained, lr=LIBRARY_RATE, fused=True)
        self.steps_per_epoch = len(data.train_indices) // config.batch_size
        self.total = config.epochs * self.steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate_factor(config, self.total))

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train an epoch; returns its metrics."""
        start = bench.now(self.accelerator.device)
        loss = self._train(epoch)
        seconds = bench.now(self.accelerator.device) - start
        utc = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        return {"epoch": epoch, "train_loss": loss, "val_accuracy": self._validate(), "seconds": seconds, "utc": utc}

    def _train(self, epoch: int) -> float:
        config, device = self.config, self.accelerator.device
        batches = EpochBatches(self.data, epoch, config)
        sum_of_losses = torch.zeros((), device=device)
        self.network.train()
        with closing(train_loader(batches, device)) as loaded:
            for step, (images, labels) in enumerate(loaded, 1 + (epoch - 1) * self.steps_per_epoch):
                self.optimizer.zero_grad()
                for some, classes in zip(images.chunk(self.parts), labels.chunk(self.parts), strict=True):
                    with self.accelerator.autocast():
                        logits = self.network(some)
                    loss = F.cross_entropy(logits.float(), classes, label_smoothing=config.label_smoothing) / self.parts
                    loss.backward()
                    sum_of_losses += loss.detach()
                self.optimizer.step()
                self.schedule.step()
                if self.looks_ahead and step % config.lookahead == 0:
                    look_ahead(self.average, self.weighted, config.lookahead, step / self.total)
        return float(sum_of_losses / self.steps_per_epoch)

    @torch.no_grad()
    def _validate(self) -> float:
        """Accuracy on held-out images, with batch-norm statistics measured on training images, as in our training."""
        norms = norms_of(self.network)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a mean over batches
        self._decide(self.data.train_indices[:STATISTICS_IMAGES])
        self.network.eval()
        right = self._decide(self.data.validation_indices) / len(self.data.validation_indices)
        for norm in norms:
            norm.momentum = 0.1
        return right

    def _decide(self, indices: Tensor) -> float:
        """Number of images that are classified correctly."""
        right = torch.zeros((), device=self.accelerator.device)
        batches = EvaluationBatches(self.data.train, indices, self.config.batch_size // self.parts)
        with closing(load_batches(batches, self.accelerator.device)) as loaded, self.accelerator.autocast():
            for images, labels in loaded:
                right += (self.network(images).argmax(1) == labels).sum()
        return float(right)


def run(options: Options) -> None:
    """Train what has not been trained yet, print the times and write the rows."""
    for name in options.contenders:
        epochs = options.library_epochs if name in LIBRARIES else options.epochs
        if len(read_metrics(name, options)) < epochs:
            print(f"{name}: {epochs} epochs")
            train_ours(name, options) if name in OURS else train_other(name, epochs, options)
    rows = [row for name in options.contenders for row in rows_of(name, options)]
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    print_results(rows)
    bench.write(options.output, f"time_to_accuracy-{device.type}", rows, bench.environment(device))


def train_ours(name: str, options: Options) -> None:
    """Train by the recipe's command; a run that was stopped is resumed."""
    folder = options.runs / name
    command = [sys.executable, "-m", "ttfs_triton.ttfs", "train", "cifarnet-cifar10", "--preset", OURS[name]]
    command += ["--epochs", str(options.epochs), "--data-dir", str(options.data_dir), "--output-dir", str(folder)]
    command += [*(["--cpu"] if options.cpu else []), *(["--resume"] if (folder / "config.yaml").is_file() else [])]
    subprocess.run(command, check=True)


def train_other(name: str, epochs: int, options: Options) -> None:
    """Train in this process, with the recipe's settings."""
    folder = options.runs / name
    folder.mkdir(parents=True, exist_ok=True)
    keys = {"epochs": epochs, "data_dir": str(options.data_dir), "output_dir": str(folder)}
    config = make_config(read_recipe(RECIPE).values("best") | keys | {"cpu": options.cpu}, str(RECIPE))
    accelerator = Accelerator(cpu=options.cpu, mixed_precision=config.mixed_precision)
    data = load_data(config, accelerator)
    library = LIBRARIES[name](accelerator.device, torch.bfloat16) if name in LIBRARIES else None
    training = Training(library, config, data, accelerator, options.time_steps)
    lines = []
    with freed_memory_kept():  # as in our training
        for epoch in range(1, config.epochs + 1):
            lines.append(training.epoch(epoch))
            print(lines[-1])
            write_text(folder / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def read_metrics(name: str, options: Options) -> list[dict[str, Any]]:
    """Metrics of a contender's epochs so far."""
    path = options.runs / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def rows_of(name: str, options: Options) -> Iterator[bench.Row]:
    """One row per epoch: minutes of training so far, and accuracy on held-out images."""
    minutes, title = 0.0, TITLES[name].format(options.time_steps)
    for metrics in read_metrics(name, options):
        minutes += metrics["seconds"] / 60
        row = {"contender": title, "epoch": metrics["epoch"], "minutes": round(minutes, 2)}
        yield row | {"val_accuracy": round(metrics["val_accuracy"], 4)}


def print_results(rows: list[bench.Row]) -> None:
    """Print the minutes to the accuracies in `GOALS`; a dash for one that was not reached."""
    lines = []
    for title, group in groupby(rows, lambda row: row["contender"]):
        some = list(group)
        reached = [
            next((f"{row['minutes']:.1f}" for row in some if row["val_accuracy"] >= goal), "–") for goal in GOALS
        ]
        best = max(row["val_accuracy"] for row in some)
        lines.append((title, *reached, f"{best:.2%}", len(some), f"{some[-1]['minutes']:.1f}"))
    headings = ("", *(f"{goal:.0%}" for goal in GOALS), "best", "epochs", "minutes")
    bench.print_table(headings, lines, title="minutes of training until an accuracy on held-out images")


main = partial(bench.run_script, Options, run, __doc__)

if __name__ == "__main__":
    main()
