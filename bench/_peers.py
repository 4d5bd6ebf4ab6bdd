"""The network of `peers.py` in libraries that step through time: SpikingJelly and snnTorch, both optional.

Both: leaky integrate-and-fire neurons, half of the potential leaks in a step, threshold 1, reset by subtraction without
a gradient, arctangent surrogate (α = 2). SpikingJelly subtracts at once, snnTorch in the next step behind the leak: its
default, and its fastest. Direct coding: the image drives the first convolution in all T steps; as that has no state, it
is computed once. Pooling takes the maximum of spikes; logits are the last layer's currents, averaged over time.
"""

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from _contenders import Composed
from torch import Tensor, nn

from ttfs_triton.nn import ANNConv2d, ANNLinear, EarliestSpikePool2d, TTFSNetwork

# Our initial weights leave integrate-and-fire neurons silent behind two layers; at four times these weights
# 16 to 40 % of the neurons of every layer fire in a step (VGG16 at width 0.25, T = 8).
GAIN = 4.0
LEAK = 0.5

Layout = Literal["channels_last", "contiguous"]


class Simulation(nn.Module):
    """A network to be simulated for any number of time steps.

    Args:
        layers: the convolution that reads the images, then everything behind it, neurons included.
    Attributes:
        title: the library's, in tables.
        distribution: the library's name on PyPI.
        major: oldest major version that has what we use.
        backend: what computes the neurons.
        layout: memory format of images and weights; see `use_layout`.
    """

    title: ClassVar[str]
    distribution: ClassVar[str]
    major: ClassVar[int]
    backend: str = "torch"
    layout: Layout = "contiguous"

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.first, self.rest = layers[0], nn.Sequential(*layers[1:])

    @classmethod
    def missing(cls) -> str:
        """What has to be installed to use the library; empty if nothing has to be."""
        try:
            found = version(cls.distribution)
        except PackageNotFoundError:
            found = "none"
        if found != "none" and int(found.split(".")[0]) >= cls.major:
            return ""
        return (
            f"{cls.distribution} must be {cls.major}.0 or newer; found {found}. Its rows are left out. "
            "Run: pip install -e '.[peers]'"
        )

    def use_layout(self, layout: Layout) -> None:
        self.layout = layout
        self.to(memory_format=self._memory_format())  # pyright: ignore[reportCallIssue]

    def current(self, images: Tensor) -> Tensor:
        """Input current of the first neurons, the same in every step."""
        return self.first(images.contiguous(memory_format=self._memory_format()))

    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format


class SpikingJelly(Simulation):
    """Multi-step mode: each layer computes all time steps at once, the neurons in one fused kernel where there is one.

    SpikingJelly picks the kernel for the device itself: CUDA if built from source, else Triton; PyTorch on a CPU. Its
    Triton neurons take bfloat16 only if asked for by its precision interface.
    """

    title, distribution, major = "SpikingJelly", "spikingjelly", 2

    def __init__(self, ann: TTFSNetwork, device: torch.device, dtype: torch.dtype) -> None:
        library = importlib.import_module("spikingjelly.activation_based")
        layer, neuron, surrogate, functional = (
            importlib.import_module(f"{library.__name__}.{name}")
            for name in ("layer", "neuron", "surrogate", "functional")
        )

        def leaky() -> nn.Module:
            return neuron.LIFNode(
                tau=1 / LEAK,
                decay_input=False,
                v_reset=None,
                detach_reset=True,
                surrogate_function=surrogate.ATan(alpha=2.0),
            )

        super().__init__(mirror(ann, layer, leaky))
        functional.set_step_mode(self.rest, "m")
        self._reset: Callable[[nn.Module], None] = functional.reset_net
        self.backend = functional.neuron_implementation("lif", device)["implementation"]
        if device.type == "cuda" and dtype == torch.bfloat16:
            precision = importlib.import_module(f"{library.__name__}.precision")
            config = precision.PrecisionConfig(mode="bf16", neuron_storage="bf16")
            precision.prepare_model_for_precision(self.rest, device, config)
            self.backend = "triton"

    def forward(self, images: Tensor, time_steps: int) -> Tensor:
        current = self.current(images)
        logits = self.rest(current.expand(time_steps, *current.shape)).mean(0)
        self._reset(self.rest)
        return logits


class SnnTorch(Simulation):
    """A loop over time, as in snnTorch's tutorials: neurons keep their potential from call to call."""

    title, distribution, major = "snnTorch", "snntorch", 1

    def __init__(self, ann: TTFSNetwork, device: torch.device, dtype: torch.dtype) -> None:
        library = importlib.import_module("snntorch")
        gradient = importlib.import_module("snntorch.surrogate").atan(alpha=2.0)
        super().__init__(mirror(ann, nn, lambda: library.Leaky(beta=LEAK, spike_grad=gradient, init_hidden=True)))
        self._neurons: list[Any] = [module for module in self.rest if isinstance(module, library.Leaky)]

    def forward(self, images: Tensor, time_steps: int) -> Tensor:
        for neurons in self._neurons:
            neurons.reset_mem()
        current = self.current(images)
        return torch.stack([self.rest(current) for _ in range(time_steps)]).mean(0)


class Unrolled(nn.Module):
    """A simulation of `time_steps` steps: images [N, C, height, width] to logits [N, classes]."""

    def __init__(self, simulation: Simulation, time_steps: int) -> None:
        super().__init__()
        self.simulation, self.time_steps = simulation, time_steps

    def forward(self, images: Tensor) -> Tensor:
        return self.simulation(images, self.time_steps)


Library = type[SpikingJelly] | type[SnnTorch]
LIBRARIES: tuple[Library, ...] = (SpikingJelly, SnnTorch)


def mirror(ann: TTFSNetwork, kinds: ModuleType, neurons: Callable[[], nn.Module]) -> list[nn.Module]:
    """Layers of the sizes and, times `GAIN`, with the weights of an ANN without biases; neurons for its ReLUs.

    Args:
        ann: a `TTFSNetwork` of neuron "ann".
        kinds: has Conv2d, Linear, MaxPool2d and Flatten.
        neurons: makes the neurons of one layer.
    """
    layers: list[nn.Module] = []
    for module in (*ann.features, ann.readout):
        module = module.layer if isinstance(module, Composed) else module
        if isinstance(module, EarliestSpikePool2d):
            layers.append(kinds.MaxPool2d(module.kernel_size, module.stride))
        elif isinstance(module, nn.Flatten):
            layers.append(kinds.Flatten())
        elif isinstance(module, ANNConv2d):
            geometry = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
            layers += [with_weights(kinds.Conv2d(*geometry, bias=False), module), neurons()]
        else:
            layers.append(with_weights(kinds.Linear(module.in_features, module.out_features, bias=False), module))
            if isinstance(module, ANNLinear):
                layers.append(neurons())
    return layers


@torch.no_grad()
def with_weights(layer: nn.Module, source: Any) -> nn.Module:
    """`layer` with `GAIN` times the weights of `source`."""
    layer.get_parameter("weight").copy_(GAIN * source.effective_weight())
    return layer
