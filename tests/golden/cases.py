"""The values: operators, networks, counts, energies, simulations and training runs, by public functions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import astuple, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Flatten, Module, Sequential

from tests.golden.record import DEVICE, Value
from tests.train.runs import At
from ttfs_kernels import dft_conv2d, dft_linear
from ttfs_triton import TTFSModel, nn
from ttfs_triton.chip import simulate
from ttfs_triton.data.images import load_images
from ttfs_triton.energy import count, dense_ann, estimate
from ttfs_triton.nn import Faults, Grid, NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.train import Callback, Interrupted, TrainConfig, Trainer, train

Values = Iterator[tuple[str, Value]]
Options = dict[str, Any]

SIGMAS = (0.0, 0.25, 1.0)
# Backends and types: Triton's interpreter multiplies bfloat16 wrongly.
WAYS = (("torch", "float32"), ("torch", "bfloat16"), ("triton", "float32"), ("triton", "float16"))
WIDE = Neuron(surrogate_width=0.5)

OPERATORS: dict[str, Options] = {
    "conv2d-padded": {"padding": 1, "neuron": WIDE},
    "conv2d-strided": {"stride": (2, 1), "padding": (1, 2), "neuron": Neuron(derivative_clip=None)},
    "conv2d-grouped": {"groups": 2, "dilation": 2, "neuron": WIDE},
    "conv2d-skip": {"padding": 1, "skip": True},
    "linear": {"neuron": WIDE},
    "linear-skip": {"skip": True},
}

SMALL: Options = {"in_channels": 2, "image_size": (12, 12), "classes": 4, "initial_gain": 1.0}
PLAIN: Options = {"weight_standardisation": False, **SMALL}
COLOURS: Options = {"mean": (0.4, 0.5), "std": (0.3, 0.2)}
NETWORKS = {
    "start": NetworkConfig("4C3-P2-6C3p0-P3s2-8", **SMALL),
    "end": NetworkConfig("4C5s2-6C3-8-6", readout="potential_end", neuron=WIDE, **PLAIN),
    "first-spike": NetworkConfig("4C3-P2-8", readout="first_spike", bias=False, **SMALL),
    "skips": NetworkConfig("4C3-(4C3-4C3)-(6C3s2-6C3)-8-(8-8)", neuron=WIDE, **SMALL),
    "averages": NetworkConfig("4C3-A2-6C3-A", readout="potential_end", **PLAIN),
    "analog": NetworkConfig("4C3-P2-6C3-8", encoder="analog", **COLOURS, **SMALL),
    "signed": NetworkConfig("4C3-P2-6C3-8", encoder="signed", bias=False, neuron=WIDE, **COLOURS, **PLAIN),
    "dropout": NetworkConfig("4C3-P2-8-8", dropout=0.25, **SMALL),
    "grid": NetworkConfig("4C3-P2-(6C3-6C3)-8", grid=Grid(8, 4, per_channel=False, state_bits=12), **SMALL),
}
OWN = "own"
ON_TRITON = ("start", OWN)
# Networks that sum real numbers before time stamps, so that rounding may move spikes of a simulation by a step.
REAL_INPUTS = ("analog", "signed", "vgg9-cifar10")
BUNDLED = {"cnn1-mnist": (1, 0), "vgg9-cifar10": (3, 2)}  # channels, and the border that the bundled images lack
GRID = Grid(time_steps=16, weight_bits=8)
FAULTS = Faults(spike_jitter=0.05, weight_noise=0.1, dead_neurons=0.05, stuck_neurons=0.05, lost_spikes=0.05)

CHIPS = ("loihi", "lemaire45:int8")
COUNTED = (
    *("neurons", "inputs", "synapses", "weights", "biases", "spikes", "saturated", "silent", "never_active"),
    *("spikes_delivered", "active_inputs", "synaptic_operations", "nonzero_macs", "analog_macs", "dense_macs"),
    "without_input",
)

RUN: Options = {"epochs": 1, "batch_size": 32, "validation_fraction": 0.0, "cpu": True}
SAMPLE: Options = {"dataset": "sample", "max_train_samples": 96, "max_test_samples": 32, "model": "4C5-P4-16"}
SAMPLE |= {"psp_persistence": 0.25, "surrogate_width": 0.5}
AUGMENTED: Options = {"auto_augment": True, "crop_padding": 2, "flip": True, "shift": 1, "cutout": 4}
RUNS: dict[str, Options] = {  # three steps each
    "adamw": {"weight_decay": 1e-2},
    "sgd": {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-3, "schedule": "cosine"},
    "average": {"ema_decay": 0.9, "gradient_clip": 1.0, "label_smoothing": 0.1},
    "augmented": AUGMENTED,
    "grid": {"time_steps": 16, "weight_bits": 8},
    "target": {"target_sparsity": 0.3, "gradient_accumulation": 2},
}


def uniform(*shape: int, seed: int) -> Tensor:
    """In [0, 1]: a fifth is 0, a tenth is 1."""
    return (1.4 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.28).clamp(0, 1)


def operators() -> Values:
    """Activations and gradients of both operators."""
    for (backend, dtype), sigma, (case, options) in product(WAYS, SIGMAS, OPERATORS.items()):
        neuron = replace(options.get("neuron", Neuron()), psp_persistence=sigma)
        options = options | {"neuron": neuron, "backend": backend}
        yield from _operator(f"operators/{case}/{sigma}/{dtype}/{backend}", dtype, **options)


def _operator(name: str, dtype: str, *, skip: bool = False, **options: Any) -> Values:
    operator, inputs, sizes = dft_linear, (2, 5, 20), (6, 20)
    if "conv2d" in name:
        operator, inputs, sizes = dft_conv2d, (2, 4, 9, 8), (6, 4 // options.get("groups", 1), 3, 3)
    torch.manual_seed(0)
    weight = 1.5 * torch.randn(sizes) / torch.Size(sizes[1:]).numel() ** 0.5
    operands = {"x": uniform(*inputs, seed=1), "weight": weight, "bias": 0.2 * torch.randn(sizes[0])}
    shape = operator(**operands, **options | {"backend": "torch"}).shape
    if skip:
        operands |= {"skip": uniform(*shape, seed=2), "skip_weight": torch.randn(sizes[0])}
    device = DEVICE if options["backend"] == "triton" else "cpu"
    operands = {key: value.to(device, getattr(torch, dtype)).requires_grad_() for key, value in operands.items()}
    activations = operator(**operands, **options)
    activations.backward(torch.randn(activations.shape).to(activations))
    yield f"{name}/activations", activations
    for key, operand in operands.items():
        assert operand.grad is not None
        yield f"{name}/gradient of {key}", operand.grad


def network_of(case: str, sigma: float, backend: str = "torch") -> Module:
    """A network of the tables, in training mode, each parameter moved from where it starts."""
    torch.manual_seed(0)
    if case == OWN:
        options: Options = {"neuron": replace(WIDE, psp_persistence=sigma), "backend": backend}
        network: Module = Sequential(
            nn.LatencyEncoder(),
            nn.DFTConv2d(2, 6, 3, padding=1, **options),
            nn.DFTConv2d(6, 6, 3, stride=2, padding=2, dilation=2, groups=3, **options),
            nn.EarliestSpikePool2d(2),
            Flatten(),
            nn.DFTLinear(54, 8, **options),
            nn.Readout(8, 4, neuron=options["neuron"], at="first_spike"),
        )
    else:
        neuron = replace(NETWORKS[case].neuron, psp_persistence=sigma)
        network = TTFSNetwork(NETWORKS[case].replace(neuron=neuron), backend=backend)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


IMAGES, LABELS = uniform(2, 2, 12, 12, seed=3), torch.arange(2)


def networks() -> Values:
    """Logits and gradients of small networks; on a grid, off it again, and with faults."""
    for (backend, dtype), sigma in product(WAYS, SIGMAS):
        for case in (*NETWORKS, OWN) if backend == "torch" else ON_TRITON:
            name, device = f"networks/{case}/{sigma}/{dtype}/{backend}", DEVICE if backend == "triton" else "cpu"
            yield from _passes(name, network_of(case, sigma, backend).to(device), IMAGES, LABELS, dtype)
    for sigma in SIGMAS:
        network = network_of(OWN, sigma)
        for case, grid, faults in (("grid", GRID, None), ("grid/faulty", GRID, FAULTS), ("float32/again", None, None)):
            nn.put_on_grid(network, grid)
            nn.train_for(network, faults)
            yield from _passes(f"networks/{OWN}/{sigma}/{case}", network, IMAGES, LABELS, "float32")


def _passes(name: str, network: Module, images: Tensor, labels: Tensor, dtype: str) -> Values:
    device = next(network.parameters()).device
    images = images.to(device, copy=True).requires_grad_()
    network.zero_grad()
    torch.manual_seed(1)
    with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        logits = network(images)
    F.cross_entropy(logits.float(), labels.to(device)).backward()
    assert images.grad is not None
    yield f"{name}/logits", logits
    between = (images > 0) & (images < 1)  # at the borders PyTorch 2.13 and 2.15 differentiate `clamp` otherwise
    yield f"{name}/gradient of images", images.grad * between
    for parameter, value in network.named_parameters():
        if value.grad is not None:
            yield f"{name}/gradient of {parameter}", value.grad


def bundled_images(name: str) -> tuple[Tensor, Tensor]:
    """Two of the bundled images, as a bundled network takes them, and their labels."""
    data, (channels, border) = load_images("sample", split="test", max_samples=2), BUNDLED[name]
    return F.pad(data.images.float() / 255, [border] * 4).repeat(1, channels, 1, 1), data.labels


def bundled() -> Values:
    """Logits, gradients and classes of the bundled networks."""
    for name in BUNDLED:
        images, labels = bundled_images(name)
        network = TTFSModel.from_pretrained(f"bundled:{name}")
        for dtype in ("float32", "bfloat16"):
            yield from _passes(f"bundled/{name}/{dtype}", network, images, labels, dtype)
        yield f"bundled/{name}/classes", ", ".join(answer.class_name for answer in network.classify(images))


def hardware() -> Values:
    """Counts, energies and simulations, in evaluation mode."""
    cases: list[tuple[str, Module, Tensor]] = [
        (name, TTFSModel.from_pretrained(f"bundled:{name}"), bundled_images(name)[0]) for name in BUNDLED
    ]
    kinds = product((*NETWORKS, OWN), SIGMAS)
    cases += [(f"{case}/{sigma}", network_of(case, sigma).eval(), IMAGES) for case, sigma in kinds]
    for name, network, images in cases:
        yield from _counted(f"hardware/{name}", network, images)
        yield from _simulated(f"hardware/{name}/simulated", network, images, name.split("/")[0] not in REAL_INPUTS)


def _counted(name: str, network: Module, images: Tensor) -> Values:
    decision, counts = nn.decide(network, images), count(network, [images])
    yield f"{name}/decisions", decision.prediction
    yield f"{name}/float32/spike times", decision.spike_times.nan_to_num(posinf=-1.0)
    yield f"{name}/input/spikes", counts.input.spikes
    for layer in counts.layers:
        for key in COUNTED:
            yield f"{name}/{layer.name}/{key}", getattr(layer, key)
    energies = {chip: estimate(counts, chip, steps=16, gating=False) for chip in CHIPS}
    energies["dense ANN"] = dense_ann(counts, CHIPS[1])
    for case, energy in energies.items():
        for bound in ("low", "high"):
            yield f"{name}/energy_pj/{case}/{bound}", getattr(energy.total, bound)
        for layer, part in energy.by_layer().items():
            yield f"{name}/energy_pj/{case}/{layer}", part.nominal if part is not None else "unknown"


def _simulated(name: str, network: Module, images: Tensor, exact: bool) -> Values:
    simulated = simulate(network, [images], steps=16, weight_bits=8, state_bits=None, keep_spike_times=True)
    yield f"{name}/decisions", simulated.predictions
    yield f"{name}/first spike", simulated.first_spike_predictions
    if exact:
        assert simulated.spike_steps is not None
        yield f"{name}/latency", simulated.latency_steps
        for stage, steps in simulated.spike_steps.items():
            yield f"{name}/{stage}/spike times", steps
        for layer in simulated.activity:
            yield f"{name}/{layer.name}/work", ", ".join(map(str, astuple(layer)))
        faulty = simulate(network, [images], steps=16, state_bits=None, faults=FAULTS, seed=1)
        yield f"{name}/faulty", faulty.counts.total()["spikes"]


def training() -> Values:
    """Weights after three steps, and after six of a run that was stopped in between, or not."""
    with TemporaryDirectory() as folder:
        for case, options in RUNS.items():
            path = Path(folder) / case
            with contextlib.redirect_stdout(io.StringIO()):
                train(TrainConfig(**RUN | SAMPLE | options, output_dir=path))
            yield f"training/{case}/trained", _weights(TTFSModel.from_pretrained(path))
        yield "training/uninterrupted/trained", _weights(_trained(Path(folder) / "uninterrupted"))
        with contextlib.suppress(Interrupted):
            _trained(Path(folder) / "resumed", At(2))
        yield "training/resumed/trained", _weights(_trained(Path(folder) / "resumed", resume=True))


def _trained(path: Path, *callbacks: Callback, resume: bool = False) -> Module:
    torch.manual_seed(0)
    network = TTFSNetwork(NetworkConfig("4C5-P4-16-16", dropout=0.1, neuron=replace(WIDE, psp_persistence=0.25)))
    training = load_images("sample", max_samples=96)
    test = load_images("sample", split="test", like=training, max_samples=32)
    options: Options = AUGMENTED | {"epochs": 2, "ema_decay": 0.9, "resume": resume, "output_dir": path}
    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(network, (training, test), TrainConfig(**RUN | options), callbacks=callbacks).train()
    return network


def _weights(network: Module) -> Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


GROUPS = {function.__name__: function for function in (operators, networks, bundled, hardware, training)}


def compute(group: str) -> dict[str, Any]:
    """The values of a group by name, computed by one thread, so that bits do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    values = dict(GROUPS[group]())
    torch.set_num_threads(threads)
    return values
