"""Time our training step against the same network as an ANN and as the composition that a user would write.

    python bench/train_step.py --device cpu
    python bench/train_step.py --model cifarnet --batch-size 64 --dtypes float32 --fuse --compiled
    python bench/train_step.py --model vgg11 --width 0.5 --batch-size 128 --dtypes bfloat16 --no-batch-norm

All contenders have the same weights and see the same batch. First the gradients are compared; nothing is timed if they
disagree. Then the contenders take turns, round by round; ratios are medians over the rounds' own ratios. The floor is
the number of contractions divided by the ANN's three per layer (5/3 for σ > 0). Ratios can lie below the floor: on a
CPU, PyTorch's convolution is slow for small maps with many weights, where ours multiplies matrices. The contender with
σ = 0, an ANN with our contractions, shows by how much.
"""

import copy
import dataclasses
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import _bench as bench
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_kernels import fuse_passes
from ttfs_triton.memory import freed_memory_kept
from ttfs_triton.nn import DFTConv2d, DFTLinear, Neuron, TTFSNetwork, networks

ANN = "ANN"
COMPOSITION = "composition σ=1"
FLOOR = 5 / 3  # contractions of a spiking layer's step, two forward and three backward, over an ANN's three
FEW, PARTS = 2, 5  # images that are compared at a time, and number of comparisons
WARM_UP = 2
OPTIMIZERS = {
    # Fused optimizers, as in training.
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A network to train."""

    name: str  # name in tables
    network: Any  # on the CPU
    floor: float  # its contractions per layer, divided by an ANN's three
    twin: TTFSNetwork | None = None  # another network that must compute the same, with weights of its own
    fused: bool = False  # let PyTorch's compiler fuse the passes over neurons


def fire_by_cases(A: Tensor, W: Tensor) -> Tensor:
    """Eq. 7 case by case, differentiated by autograd: exact gradients, without a derivative clip."""
    inside = (A < 1) & (A + W > 0)
    divisor = torch.where(inside, 1 + W, 1.0)  # made safe before the division, or autograd would return 0 · inf
    return torch.where(A >= 1, 1.0, torch.where(inside, (A + W) / divisor, 0.0))


def normalise(A: Tensor, W: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Batch norm of potentials: A and W by one factor, from the statistics of A + W over the batch."""
    places = [dim for dim in range(A.dim()) if dim != 1]
    variance, mean = torch.var_mean(A + W, places, correction=0, keepdim=True)
    scale = norm.weight.view_as(mean) * (variance + norm.eps).rsqrt()
    return scale * (A - mean) + norm.bias.view_as(mean), scale * W


class Composed(nn.Module):
    """A layer of an ANN or of spiking neurons as a PyTorch user would write it, with the parameters of one of ours.

    Gradients of the spiking layer differ at silent inputs, where ours are 0.
    """

    def __init__(self, layer: DFTConv2d | DFTLinear, ann: bool) -> None:
        super().__init__()
        self.layer, self.ann = layer, ann

    def forward(self, x: Tensor) -> Tensor:
        layer, weight = self.layer, self.layer.effective_weight()
        contract = partial(F.conv2d, **layer.geometry) if isinstance(layer, DFTConv2d) else F.linear
        potential, norm = contract(x, weight, layer.bias), layer.batch_norm
        if self.ann:
            if norm is not None:
                potential = F.batch_norm(potential, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
            return F.hardtanh(potential, 0.0, 1.0)
        slope = layer.neuron.psp_persistence * contract((x > 0).to(x.dtype), weight)
        if norm is not None:
            potential, slope = normalise(potential, slope, norm)
        return fire_by_cases(potential, slope)


def compose(network: TTFSNetwork, *, ann: bool = False) -> TTFSNetwork:
    """Replace the operators of all hidden layers but the encoder; parameters stay the same, in the same order."""
    for name, layer in network.features.named_children():
        if isinstance(layer, DFTConv2d | DFTLinear):
            setattr(network.features, name, Composed(layer, ann))
    return network


def build(
    model: str, *, fuse: bool = False, compiled: bool = False, backends: Sequence[str] = ("auto",), **options
) -> list[Contender]:
    """All contenders, the ANN first, with the same weights.

    Args:
        model: a function of `ttfs_triton.nn.networks`.
        fuse: also add ours with passes over neurons fused by PyTorch's compiler.
        compiled: also add all that are not fused under torch.compile.
        backends: backends of our layers; a name other than "auto" is appended to the contender's name.
        **options: fields of `NetworkConfig`.
    """
    make = getattr(networks, model)
    ann = compose(make(neuron=Neuron(psp_persistence=0.0), **options), ann=True)
    contenders = [Contender(ANN, ann, 1.0)]
    for backend in backends:
        suffix = "" if backend == "auto" else f" {backend}"
        for psp_persistence, floor in ((0.0, 1.0), (1.0, FLOOR)):
            neuron = Neuron(psp_persistence)
            twin = compose(make(neuron=neuron, **options)) if neuron.has_slope else ann
            for fused in (False, True) if fuse else (False,):
                name = f"DFT σ={psp_persistence:g}{suffix}{' fused' if fused else ''}"
                ours = make(neuron=neuron, backend=backend, **options)
                contenders.append(Contender(name, ours, floor, twin, fused))
    contenders.append(Contender(COMPOSITION, compose(make(**options)), FLOOR))
    for contender in contenders:
        for network in (contender.network, contender.twin or ann):
            # By position: parameters of a composed network have other names.
            for theirs, ours in zip(ann.parameters(), network.parameters(), strict=True):
                ours.data.copy_(theirs.data)
    for plain in [each for each in contenders if not each.fused] if compiled else ():
        # A module is compiled in place: the compiled one is a copy.
        network = copy.deepcopy(plain.network)
        network.compile(dynamic=False)
        contenders.append(dataclasses.replace(plain, name=f"{plain.name}, compiled", network=network))
    return contenders


@dataclasses.dataclass
class Step:
    """A contender's training step on one batch: forward, loss, backward and update."""

    contender: Contender
    images: Tensor
    labels: Tensor
    dtype: torch.dtype
    optimizer: torch.optim.Optimizer | None = None
    forward_backward_ms: list[float] = dataclasses.field(default_factory=list)  # one entry per round
    step_ms: list[float] = dataclasses.field(default_factory=list)

    def forward_backward(self) -> None:
        """Run forward, loss and backward; gradients stay in the parameters."""
        network = self.contender.network
        network.zero_grad(set_to_none=True)
        fuse_passes(self.contender.fused)
        loss_of(network, self.images, self.labels, self.dtype).backward()

    def update(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()

    def run(self) -> None:
        self.forward_backward()
        self.update()

    def time(self) -> None:
        """Run once and note the times."""
        start = bench.now(self.images.device)
        self.forward_backward()
        middle = bench.now(self.images.device)
        self.update()
        end = bench.now(self.images.device)
        self.forward_backward_ms.append((middle - start) * 1e3)
        self.step_ms.append((end - start) * 1e3)

    def forget(self, rounds: int) -> None:
        """Leave out the first rounds, which warm up."""
        del self.step_ms[:rounds], self.forward_backward_ms[:rounds]

    def peak_mib(self) -> float:
        """Peak memory in MiB of a step's tensors: parameters, optimizer, activations, gradients, scratch.

        Scratch memory inside libraries and the tensors of other contenders are not counted.
        """
        self.run()  # makes the optimizer's state
        network = self.contender.network
        held = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        for state in self.optimizer.state.values() if self.optimizer is not None else ():
            held |= {id(value): value for value in state.values() if isinstance(value, Tensor)}
        network.zero_grad(set_to_none=True)
        transient = bench.transient_bytes(self.run, self.images.device)
        return (sum(tensor.nbytes for tensor in held.values()) + transient) / 2**20


def loss_of(network: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Cross entropy, with autocast unless dtype is float32."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits = network(images)
    return F.cross_entropy(logits.float(), labels)


def check(step: Step) -> float | None:
    """Compare a step's loss and gradients with its twin's; returns the gradients' relative error, None without a twin.

    In float32 both agree up to rounding, except that a neuron may fire just before its window ends in one and not in
    the other. With millions of neurons this is bound to happen, and the gradients of that image differ. So a few images
    at a time are compared, and the median counts. In bfloat16 step and twin need not agree, since a rounded potential
    decides whether a neuron fires; the step's gradients may then be little farther from the float32 gradients than the
    twin's.

    Raises:
        DisagreementError: loss or gradients disagree.
    """
    if step.contender.twin is None:
        return None
    exact = step.dtype == torch.float32
    parts = torch.arange(len(step.images)).split(FEW)[:PARTS] if exact else [slice(None)]
    found = sorted((_compare(step, some) for some in parts), key=lambda part: (math.isnan(part[1]), part[1]))
    losses, error, allowed = found[len(found) // 2]
    if not (error <= allowed and abs(losses[0] - losses[1]) <= (1e-4 if exact else 0.05) * abs(losses[1])):
        raise bench.DisagreementError(
            f"{step.contender.name} must agree with its twin in {step.dtype}; got losses {losses[0]:.6g} and "
            f"{losses[1]:.6g}, gradients {error:.2g} apart (at most {allowed:.2g}). Nothing was timed."
        )
    return error


def _compare(step: Step, some: Tensor | slice) -> tuple[tuple[float, float], float, float]:
    """Losses of a step and its twin on some images, the distance of their gradients, and the allowed distance."""
    assert step.contender.twin is not None
    labels = torch.full_like(step.labels, -100)  # cross entropy leaves these out; batch and kernels stay the same
    labels[some] = step.labels[some]
    batch = step.images, labels
    twin = step.contender.twin.to(step.images.device)
    expected_loss, expected = _gradients(twin, *batch, torch.float32)
    loss, gradients = _gradients(step.contender.network, *batch, step.dtype)
    allowed = 1e-3
    if step.dtype != torch.float32:
        allowed = 1.25 * _distance(_gradients(twin, *batch, step.dtype)[1], expected) + 0.02
    return (loss, expected_loss), _distance(gradients, expected), allowed


def _gradients(network: TTFSNetwork, images: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[float, Tensor]:
    """Loss, and all gradients as one float64 vector; exact ones, without the bound on derivatives."""
    layers = [module for module in network.modules() if isinstance(module, DFTConv2d | DFTLinear)]
    neurons = [layer.neuron for layer in layers]
    for layer in layers:
        layer.neuron = dataclasses.replace(layer.neuron, derivative_clip=None)
    network.zero_grad(set_to_none=True)
    loss = loss_of(network, images, labels, dtype)
    loss.backward()
    for layer, neuron in zip(layers, neurons, strict=True):
        layer.neuron = neuron
    gradients = [p.grad.flatten().double() for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    return loss.item(), torch.cat(gradients)


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative distance of gradients; NaN, which no bound admits, if both are zero."""
    return ((ours - theirs).norm() / theirs.norm()).item()


@dataclasses.dataclass
class Options:
    """Time a training step: forward, loss, backward, update."""

    device: Literal["cpu", "cuda"] = "cpu"
    model: Literal["vgg16", "vgg11", "cnn1", "cifarnet"] = "vgg16"
    batch_norm: bool = True  # normalise potentials, as recipes for CIFAR do
    batch_size: int = 32
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """bfloat16 is autocast with float32 parameters."""
    backends: tuple[Literal["auto", "triton", "torch"], ...] | None = None
    """Backends of our layers. Default: triton and torch on a GPU; auto on the CPU, where it is torch."""
    width: float = 1.0  # factor on the size of every hidden layer
    weight_standardisation: bool = False
    """Standardise weights in all contenders, and give neurons an initial potential as in training."""
    fuse: bool = False
    """On the CPU, also time ours with passes over neurons fused by PyTorch's compiler, as in long trainings."""
    compiled: bool = False  # also time every network under torch.compile, which takes minutes
    optimizer: Literal["sgd", "adamw"] = "sgd"
    repeats: int = 15  # measured rounds
    output: Path = bench.RESULTS  # folder of the CSV file


def main() -> None:
    import tyro  # here, since `gpu.py` calls `run` also where tyro is missing

    run(tyro.cli(Options, description=__doc__))


def run(options: Options) -> None:
    """Check and time all contenders, print the tables and write the result file."""
    device = bench.device_of("train_step", options.device)
    torch.backends.cudnn.benchmark = True
    try:
        with freed_memory_kept() if device.type == "cpu" else nullcontext():  # as training does
            rows = [row for dtype in options.dtypes for row in measure(options, device, getattr(torch, dtype))]
    except bench.DisagreementError as error:
        sys.exit(f"train_step: {error}")
    about = bench.environment(device)
    print(bench.machine_line(about))
    for dtype in options.dtypes:
        show([row for row in rows if row["dtype"] == dtype])
    bench.write(options.output, f"train_step-{options.device}-{options.model}", rows, about)


def measure(options: Options, device: torch.device, dtype: torch.dtype) -> list[bench.Row]:
    """Check, then time, every contender in one dtype: rows for the table."""
    steps = make_steps(options, device, dtype)
    errors = [check(step) for step in steps]
    peaks = [step.peak_mib() for step in steps]
    for step in bench.in_turns(steps, WARM_UP + options.repeats):
        step.time()
    for step in steps:
        step.forget(WARM_UP)
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
            name, floor = step.contender.name, step.contender.floor
            row = shared | {"pass": passes, "provider": name} | bench.percentiles(times[name])
            row |= {"ratio_to_ann": bench.ratio(times[name], times[ANN])}
            row |= {"ratio_to_composition": bench.ratio(times[name], times[COMPOSITION])}
            row |= {"floor_ratio": round(floor, 3), "floor_ms": round(floor * median(times[ANN]), 2)}
            rows.append(row | {"peak_mib": round(peak, 1), "gradient_error": "" if error is None else f"{error:.1e}"})
    return rows


def make_steps(options: Options, device: torch.device, dtype: torch.dtype) -> list[Step]:
    """Every contender with its optimizer, on one random batch."""
    torch.manual_seed(0)
    standardised = options.weight_standardisation
    network: dict[str, Any] = {"width": options.width, "batch_norm": options.batch_norm}
    if not options.batch_norm:
        network |= {"weight_standardisation": standardised, "bias": standardised}
    backends = options.backends or (("triton", "torch") if device.type == "cuda" else ("auto",))
    contenders = build(options.model, fuse=options.fuse, compiled=options.compiled, backends=backends, **network)
    config = contenders[0].network.config
    images = torch.rand(options.batch_size, config.in_channels, *config.image_size).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, config.classes, (options.batch_size,)).to(device)
    return [
        Step(
            contender,
            images,
            labels,
            dtype,
            OPTIMIZERS[options.optimizer](list(contender.network.to(device).parameters())),
        )
        for contender in contenders
    ]


def show(rows: list[bench.Row]) -> None:
    """Print the table of one dtype, one line per contender."""
    steps, passes = ([row for row in rows if row["pass"] == name] for name in ("step", "forward_backward"))
    headings = ("", "step ms", "p20–p80", "×ANN", "×comp", "fwd+bwd", "×ANN", "floor", "MiB")
    lines = [
        (
            step["provider"],
            bench.digits(step["ms_p50"]),
            f"{bench.digits(step['ms_p20'])}–{bench.digits(step['ms_p80'])}",
            f"{step['ratio_to_ann']:.2f}",
            f"{step['ratio_to_composition']:.2f}",
            bench.digits(both["ms_p50"]),
            f"{both['ratio_to_ann']:.2f}",
            f"{step['floor_ratio']:.2f}",
            bench.digits(step["peak_mib"]),
        )
        for step, both in zip(steps, passes, strict=True)
    ]
    bench.print_table(headings, lines, title=f"{rows[0]['case']}, {rows[0]['dtype']}")


if __name__ == "__main__":
    main()
