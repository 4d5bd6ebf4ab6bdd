"""Time our training step beside that of the same network as an ANN, and as the composition that a user would write.

    python bench/train_step.py --batch-size 64 --dtypes float32 --fuse --compiled    # eager, compiled and fused

All contenders have the same weights and see the same batch. First the gradients are compared with float64; nothing is
timed if they disagree. Then the contenders take turns, round by round; ratios are medians of the rounds' ratios.
The floor is the number of contractions divided by the ANN's three per layer: 5/3 at σ = 1, 4/3 with the gradients that
recipes have ("as trained"). Ratios can lie below the floor: on a CPU, PyTorch's convolution is slow for small maps with
many weights, where ours multiplies matrices. The contender with σ = 0, an ANN with our contractions, shows by how much.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import _bench as bench
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_kernels import fuse_passes
from ttfs_triton.nn import DFTConv2d, DFTLinear, Neuron, TTFSNetwork, networks
from ttfs_triton.nn.trace import float32_products
from ttfs_triton.train.device import freed_memory_kept

ANN = "ANN"
COMPOSITION = "composition σ=1"
CLIP = 1e30  # bound on derivatives: computed as in training, but never reached, so gradients are exact
EXACT, TRAINED = Neuron(derivative_clip=CLIP), Neuron(1.0, CLIP, surrogate_width=0.5, split_gradient=0.0)
FEW, PARTS = 4, 5  # number of images that are compared at a time, and largest number of comparisons
SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)


class Batch(NamedTuple):
    """Images, labels, and the dtype of autocast, which is off for float32 and float64."""

    images: Tensor
    labels: Tensor
    dtype: torch.dtype

    def loss(self, network: nn.Module) -> Tensor:
        with torch.autocast(self.images.device.type, self.dtype, enabled=self.dtype.itemsize < 4):
            logits = network(self.images)
        return F.cross_entropy(logits.float(), self.labels)


@dataclasses.dataclass
class Contender:
    """A network to train."""

    name: str  # name in tables
    network: Any
    floor: float  # its contractions per layer, divided by an ANN's three
    twin: TTFSNetwork | None = None  # another contender's network that must compute the same
    fused: bool = False  # let PyTorch's compiler fuse the passes over neurons
    optimizer: torch.optim.Optimizer | None = None

    def step(self, batch: Batch) -> None:
        """Run forward, loss, backward and, with an optimizer, update; gradients stay in the parameters."""
        self.network.zero_grad(set_to_none=True)
        fuse_passes(self.fused)
        batch.loss(self.network).backward()
        if self.optimizer is not None:
            self.optimizer.step()

    def peak_mib(self, batch: Batch) -> float:
        """Peak memory in MiB of a step's tensors: parameters, optimizer, activations, gradients, scratch.

        Scratch memory inside libraries and the tensors of other contenders are not counted.
        """
        self.step(batch)  # makes the optimizer's state
        held = {id(tensor): tensor for tensor in (*self.network.parameters(), *self.network.buffers())}
        for state in self.optimizer.state.values() if self.optimizer is not None else ():
            held |= {id(value): value for value in state.values() if isinstance(value, Tensor)}
        self.network.zero_grad(set_to_none=True)
        transient = bench.transient_bytes(lambda: self.step(batch), batch.images.device)
        return (sum(tensor.nbytes for tensor in held.values()) + transient) / 2**20


def fire_by_cases(A: Tensor, W: Tensor, neuron: Neuron = EXACT) -> Tensor:
    """Eq. 7 case by case, differentiated by autograd, without a derivative clip; `neuron` is EXACT or TRAINED."""
    end, silent = A + W, 0.0
    crosses = (A < 1) & (end > 0)
    divisor = torch.where(crosses, 1 + W, 1.0)  # made safe before the division, or autograd would return 0 · inf
    if neuron.has_surrogate:
        divisor, gain = divisor.detach(), torch.where(W > -0.5, 1 / (1 + W), 2.0)
        derivative = (1 + end / neuron.surrogate_width).clamp_min(0) * gain
        silent = derivative.detach() * (end - end.detach())
    return torch.where(A >= 1, 1.0, torch.where(crosses, end / divisor, silent))


def normalise(A: Tensor, W: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Batch norm of potentials: A and W by one factor, from the statistics of A + W over the batch."""
    places = [dim for dim in range(A.dim()) if dim != 1]
    variance, mean = torch.var_mean(A + W, places, correction=0, keepdim=True)
    scale = norm.weight.view_as(mean) * (variance + norm.eps).rsqrt()
    return scale * (A - mean) + norm.bias.view_as(mean), scale * W


class Composed(nn.Module):
    """A layer of an ANN or of spiking neurons as a PyTorch user would write it, with the parameters of our layer.

    Gradients of the spiking layer differ at silent inputs, where ours are 0.
    """

    def __init__(self, layer: DFTConv2d | DFTLinear, ann: bool) -> None:
        super().__init__()
        self.layer, self.ann = layer, ann

    def forward(self, x: Tensor) -> Tensor:
        layer, weight = self.layer, self.layer.effective_weight()
        contract = partial(F.conv2d, **layer.geometry) if isinstance(layer, DFTConv2d) else F.linear
        mask, values = (x > 0).to(x.dtype), x
        if layer.neuron.has_surrogate:
            derivative = (1 - x / layer.neuron.surrogate_width).clamp_min(0)
            mask = mask + derivative.detach() * (x - x.detach())
            values = torch.where(x > 0, x, 0.0)  # silent inputs have the mask's gradient alone
        potential, norm = contract(values, weight, layer.bias), layer.batch_norm
        if self.ann:
            if norm is not None:
                potential = F.batch_norm(potential, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
            return F.hardtanh(potential, 0.0, 1.0)
        slope = layer.neuron.psp_persistence * contract(mask, weight)
        if norm is not None:
            potential, slope = normalise(potential, slope, norm)
        return fire_by_cases(potential, slope, layer.neuron)


def compose(network: TTFSNetwork, *, ann: bool = False) -> TTFSNetwork:
    """Replace the operators of all hidden layers but the encoder; parameters stay the same, in the same order."""
    for name, layer in network.features.named_children():
        if isinstance(layer, DFTConv2d | DFTLinear) and layer.neuron is not None:
            setattr(network.features, name, Composed(layer, ann))
    return network


def build(
    model: str, *, fuse: bool = False, compiled: bool = False, backends: Sequence[str] = ("auto",), **options
) -> list[Contender]:
    """All contenders, the ANN first, with the same weights.

    `model` names a function of `ttfs_triton.nn.networks`, `options` are fields of its configuration. A backend other
    than "auto" is appended to the contender's name. `fuse` adds our networks with fused passes over neurons, `compiled`
    adds all others under torch.compile.
    """

    def make(neuron: Neuron, **how: Any) -> TTFSNetwork:
        return getattr(networks, model)(neuron=neuron, **how, **options)

    ann = compose(make(Neuron(0.0)), ann=True)
    composition = Contender(COMPOSITION, compose(make(EXACT)), 5 / 3)
    ours = (
        ("σ=0", Neuron(0.0), 1.0, ann),
        ("σ=1", EXACT, 5 / 3, composition.network),
        ("σ=1 as trained", TRAINED, 4 / 3, compose(make(TRAINED))),
    )
    contenders = [Contender(ANN, ann, 1.0)]
    for backend, (name, neuron, floor, twin) in product(backends, ours):
        for fused in (False, True) if fuse else (False,):
            suffix = ("" if backend == "auto" else f" {backend}") + (" fused" if fused else "")
            network = make(neuron, backend=backend)
            contenders.append(Contender(f"DFT {name}{suffix}", network, floor, twin, fused))
    contenders.append(composition)
    for network in [ours[-1][-1], *(contender.network for contender in contenders)]:
        # Parameters are paired by position, since those of a composed network have other names.
        for source, target in zip(ann.parameters(), network.parameters(), strict=True):
            target.data.copy_(source.data)
    for plain in [contender for contender in contenders if not contender.fused] if compiled else ():
        # A module is compiled in place, so a copy is compiled; the network that it copies is checked.
        network = copy.deepcopy(plain.network)
        network.compile(dynamic=False)
        contenders.append(dataclasses.replace(plain, name=f"{plain.name}, compiled", network=network, twin=None))
    return contenders


def check(contender: Contender, batch: Batch) -> float | None:
    """Compare loss and gradients in float32 with the twin's in float64; returns the gradients' relative error.

    A rounding error that lets one neuron fire changes all layers behind it. Among millions of neurons this is bound to
    happen, so a few images at a time are compared, until some agree. Returns None if there is no twin.
    """
    if contender.twin is None:
        return None
    exact, error, of_loss = copy.deepcopy(contender.twin).to(batch.images.device, torch.float64), math.nan, math.nan
    fuse_passes(contender.fused)
    for images, labels in list(zip(batch.images.split(FEW), batch.labels.split(FEW), strict=True))[:PARTS]:
        expected, theirs = _gradients(exact, Batch(images.double(), labels, torch.float64))
        with float32_products():
            loss, ours = _gradients(contender.network, Batch(images, labels, torch.float32))
        error, of_loss = ((ours - theirs).norm() / theirs.norm()).item(), abs(loss / expected - 1)
        if error <= 1e-3 and of_loss <= 1e-4:
            return error
    raise bench.DisagreementError(
        f"check: {contender.name} must agree with its twin in float64; got a loss {of_loss:.2g} and gradients "
        f"{error:.2g} apart, relatively."
    )


def _gradients(network: TTFSNetwork, batch: Batch) -> tuple[float, Tensor]:
    """Loss, and all gradients as one float64 vector."""
    network.zero_grad(set_to_none=True)
    loss = batch.loss(network)
    loss.backward()
    gradients = [p.grad.flatten().double() for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    return loss.item(), torch.cat(gradients)


@dataclasses.dataclass
class Options:
    """Time a training step: forward, loss, backward, update."""

    device: Literal["cpu", "cuda"] = "cpu"
    model: tuple[Literal["vgg16", "vgg11", "cnn1", "cifarnet"], ...] = ("cifarnet", "vgg16")
    batch_norm: bool = True  # normalise potentials, as recipes for CIFAR do
    batch_size: int = 32
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")  # bfloat16 is autocast
    backends: tuple[Literal["auto", "triton", "torch"], ...] | None = None  # default: triton and torch on a GPU
    width: float = 1.0  # factor on the size of every hidden layer
    fuse: bool = False  # on the CPU, also time ours with passes fused by PyTorch's compiler, as in training
    compiled: bool = False  # also time every network under torch.compile, which takes minutes
    repeats: int = 15  # measured rounds
    output: Path = bench.RESULTS  # folder of the CSV file


def run(options: Options) -> None:
    """Check and time all contenders, print the tables and write the result file."""
    device = bench.device_of(options.device)
    torch.backends.cudnn.benchmark = True
    about, rows = bench.environment(device), []
    print(bench.machine_line(about))
    for model, dtype in product(options.model, options.dtypes):
        torch.compiler.reset()  # or it would refuse to compile the same lines for ever more layers
        with freed_memory_kept() if device.type == "cpu" else nullcontext():  # as training does
            measured = measure(options, model, device, getattr(torch, dtype))
        times = {"": "{provider}", "step ms": "{ms_p50:.1f}", "p20–p80": "{ms_p20:.1f}–{ms_p80:.1f}"}
        ratios = {"×ANN": "{ratio_to_ann:.2f}", "×comp": "{ratio_to_composition:.2f}", "floor": "{floor_ratio:.2f}"}
        columns = times | ratios | {"MiB": "{peak_mib:.1f}"}
        bench.print_rows(measured, columns, title=f"{measured[0]['case']}, {dtype}")
        rows += measured
    bench.write(options.output, f"train_step-{options.device}", rows, about)


def measure(options: Options, model: str, device: torch.device, dtype: torch.dtype) -> list[bench.Row]:
    """Check, then time, all contenders of one network in one dtype; returns rows for the table."""
    torch.manual_seed(0)
    network: dict[str, Any] = {"width": options.width, "batch_norm": options.batch_norm}
    if not options.batch_norm:
        network |= {"weight_standardisation": False, "bias": False}
    backends = options.backends or (("triton", "torch") if device.type == "cuda" else ("auto",))
    contenders = build(model, fuse=options.fuse, compiled=options.compiled, backends=backends, **network)
    config = contenders[0].network.config
    images = torch.rand(options.batch_size, config.in_channels, *config.image_size).to(device)
    labels = torch.randint(0, config.classes, (options.batch_size,)).to(device)
    batch = Batch(images.contiguous(memory_format=torch.channels_last), labels, dtype)
    for contender in contenders:
        contender.optimizer = SGD(contender.network.to(device).parameters())
    errors = [check(contender, batch) for contender in contenders]
    torch.compiler.reset()  # the checks' passes in float32 would count against the compiler's limit of versions
    peaks = [contender.peak_mib(batch) for contender in contenders]
    steps = {contender.name: partial(contender.step, batch) for contender in contenders}
    ms = bench.time_in_turns(steps, options.repeats, device, warm_up=0)  # warm by now
    shared = {"op": "train_step", "case": f"{model}-b{options.batch_size}-w{options.width:g}"}
    shared |= {"dtype": str(dtype).removeprefix("torch."), "layout": "channels_last", "pass": "step"}
    rows = []
    for (name, times), contender, peak, error in zip(ms.items(), contenders, peaks, errors, strict=True):
        row = shared | {"provider": name} | bench.percentiles(times)
        row |= {"ratio_to_ann": bench.ratio(times, ms[ANN])}
        row |= {"ratio_to_composition": bench.ratio(times, ms[COMPOSITION])}
        row |= {"floor_ratio": round(contender.floor, 3), "floor_ms": round(contender.floor * median(ms[ANN]), 2)}
        rows.append(row | {"peak_mib": round(peak, 1), "gradient_error": "" if error is None else f"{error:.1e}"})
    return rows


main = partial(bench.run_script, Options, run, __doc__)

if __name__ == "__main__":
    main()
