"""Counts and energy of rate-coded networks of other libraries, over all their time steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ttfs_kernels import Neuron
from ttfs_triton.energy.chip import Chip
from ttfs_triton.energy.counter import images_and_labels
from ttfs_triton.energy.counts import Counts, LayerActivity, LayerCounts
from ttfs_triton.energy.estimate import Estimate, RunOptions
from ttfs_triton.energy.models import Terms
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.trace import evaluating

Library = Literal["snntorch", "spikingjelly"]
# Base classes of spiking neurons, compared by name: only the user's code imports the library.
NEURONS: dict[str, set[str]] = {"snntorch": {"SpikingNeuron"}, "spikingjelly": {"BaseNode", "SimpleBaseNode"}}
SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
COUNTED = {"linear", "conv1d", "conv2d", "conv3d"}
CONTRACTIONS = COUNTED | {"matmul", "__matmul__", "mm", "bmm", "einsum", "scaled_dot_product_attention"}
CONTRACTIONS |= {f"conv_transpose{size}d" for size in (1, 2, 3)}


@dataclass(frozen=True)
class RateCodedCounts:
    """Counts of a rate-coded network over a set of samples and all time steps.

    Attributes:
        counts: layers with synapses, in the order in which they run. A layer has the neurons right behind it, or else
            its outputs. A layer with an input other than 0 and ±1 is "analog": it multiplies.
        steps: T, time steps of a sample.
        leaky: by layer with neurons, whether their potential leaks, which takes a multiplication per time step.
        correct: samples whose largest output is their label's; 0 without labels.
    """

    counts: Counts
    steps: int
    leaky: Mapping[str, bool]
    correct: int = 0


@torch.no_grad()
def count_rate_coded(
    model: nn.Module, batches: Iterable[Tensor] | Iterable[tuple[Tensor, ...]], library: Library
) -> RateCodedCounts:
    """Run a rate-coded network of another library over batches, and count its spikes and synaptic operations.

    A non-zero input of an `nn.Linear` or convolution costs one operation per neuron that it reaches: an accumulate if
    all inputs of the layer are 0 or ±1, else a multiply-accumulate, as in NeuroBench's SynapticOperations.

    Args:
        model: maps images [N, ...] to outputs [N, classes], such as summed spikes. Its forward runs the time steps, in
            a loop or in multi-step mode ([T, N, ...]), and resets the neurons. It runs in evaluation mode.
        batches: images, or tuples (images, labels); they are moved to the model's device.
        library: "snntorch" or "spikingjelly", whose neurons the model has.
    Raises:
        ValueError: outputs are not as described; there are no batches or neurons; tensors are multiplied by anything
            but weights of such modules; or a layer runs neither once nor once a time step.
    """
    device, samples, passes, correct = next(iter(model.parameters()), torch.empty(0)).device, 0, 0, 0
    with ExitStack() as hooks, evaluating(model), _Counter(model, library, hooks) as counter:
        for images, labels in map(images_and_labels, batches):
            outputs = model(images.to(device))
            if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(images):
                _refuse(f"return [{len(images)}, classes]", getattr(outputs, "shape", type(outputs).__name__))
            samples, passes = samples + len(images), passes + 1
            if labels is not None:
                correct += int((outputs.argmax(1) == labels.to(device)).sum())
    layers = dict(zip(short_names([*counter.layers]), counter.layers.values(), strict=True))
    often = {name: layer.steps / passes for name, layer in layers.items() if layer.neurons is not None}
    steps = next(iter(often.values()), 0.5)
    if {*often.values()} != {steps} or steps % 1:
        got = ", ".join(f"{name} {times:g} times" for name, times in often.items()) or "no neurons that ran"
        _refuse("update spiking neurons of the library once a time step", got)
    counts = Counts(samples, tuple(layer.counts(name, samples, int(steps)) for name, layer in layers.items()))
    return RateCodedCounts(counts, int(steps), {name: _leaks(layers[name].neurons) for name in often}, correct)


class _Layer:
    """Sums of one layer: of its synapses, and of the neurons behind them."""

    def __init__(self) -> None:
        self.neurons: nn.Module | None = None
        self.reach = torch.zeros(0, dtype=torch.int64)  # number of neurons reached, by input
        self.weights = self.biases = self.runs = self.outputs = self.steps = self.updates = 0
        self.operations = self.active = self.spikes = self.real = torch.tensor(0)  # replaced, never changed

    def contract(self, run: Callable[..., Tensor], inputs: Tensor, weight: Tensor, *more: Any) -> Tensor:
        """Run a contraction, and add its inputs: [N, ...], or [T, N, ...] in multi-step mode."""
        shape, (bias, *geometry) = inputs.shape[1 - weight.dim() :], more or [None]
        if self.reach.shape != shape:
            ones = torch.ones_like(weight, dtype=torch.float64)
            reach = torch.func.grad(lambda pixels: run(pixels, ones, None, *geometry).sum())
            self.reach = reach(ones.new_zeros(1, *shape))[0].long()
        by_input, outputs = (inputs != 0).reshape(-1, *shape).sum(0), run(inputs, weight, *more)
        self.operations = self.operations + (by_input * self.reach).sum()
        self.active = self.active + by_input.sum()
        self.real = self.real + ((inputs != 0) & (inputs.abs() != 1)).sum()
        self.weights, self.biases = weight.numel(), 0 if bias is None else bias.numel()
        self.runs += inputs.numel() // math.prod(shape)
        self.outputs += outputs.numel()
        return outputs

    def counts(self, name: str, samples: int, steps: int) -> LayerCounts:
        """Counts over all samples and time steps."""
        if self.weights and self.runs not in (samples, samples * steps):
            often = f"{name}, {self.runs / samples:g} times in {steps} steps"
            _refuse("run every layer once, or once a time step", often)
        real, synapses, operations = int(self.real) > 0, int(self.reach.sum()), int(self.operations)
        dense = synapses * self.runs
        counts: dict[str, Any] = {"saturated": 0, "never_active": 0, "spikes": int(self.spikes)}
        counts |= {"inputs": self.reach.numel(), "synapses": synapses, "weights": self.weights, "biases": self.biases}
        counts["neurons"] = self.updates // (samples * steps) if self.neurons else self.outputs // self.runs
        counts |= {"active_inputs": int(self.active), "synaptic_operations": 0 if real else operations}
        counts |= {"nonzero_macs": operations, "analog_macs": dense if real else 0, "dense_macs": dense}
        neuron, kind = (None, "analog") if real else (Neuron(psp_persistence=0), "spiking")  # a spike acts once
        return LayerCounts(name=name, kind=kind, samples=samples, neuron=neuron, **counts)


class _Counter(TorchFunctionMode):
    """Counts contractions, whose layer it tells by the weights, and spikes, by hooks on neurons."""

    def __init__(self, model: nn.Module, library: Library, hooks: ExitStack) -> None:
        super().__init__()
        self._last: _Layer | None = None  # layer that ran last
        self.layers: dict[str, _Layer] = {}  # in the order in which they run first
        self._layer_of: dict[nn.Module, _Layer] = {}
        self._weights: dict[int, str] = {}
        for name, module in model.named_modules():
            kinds = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.split(".")[0] == library}
            if isinstance(module, SYNAPSES):
                self._weights[id(module.weight)] = name
            elif NEURONS[library] & kinds:
                hooks.enter_context(module.register_forward_hook(partial(self._fire, name)))
            elif [*module.parameters(recurse=False)] and not isinstance(module, _BatchNorm):
                _refuse("have weights in Linear and Conv layers alone", f"{type(module).__name__} ({name})")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (function := getattr(func, "__name__", "")) not in CONTRACTIONS:
            return func(*args, **(kwargs or {}))
        name = self._weights.get(id(args[1])) if function in COUNTED and len(args) > 1 and not kwargs else None
        if name is None:
            _refuse("multiply by weights of modules alone, such as nn.Linear", f"{function}()")
        self._last = self.layers.setdefault(name, _Layer())
        return self._last.contract(func, *args)

    def _fire(self, name: str, neurons: nn.Module, _: Any, outputs: Any) -> None:
        layer = self._layer_of.get(neurons) or self._last  # neurons belong to the layer that ran last
        if layer is None or layer.neurons not in (None, neurons):
            layer = self.layers.setdefault(name, _Layer())
        self._layer_of[neurons], layer.neurons = layer, neurons
        spikes = outputs[0] if isinstance(outputs, tuple) else outputs
        layer.steps += len(spikes) if getattr(neurons, "step_mode", "s") == "m" else 1
        layer.updates += spikes.numel()
        layer.spikes = layer.spikes + torch.count_nonzero(spikes)


def _leaks(neurons: Any) -> bool:
    """Whether the neurons' potential leaks: not with β = 1, and not in an `IFNode`."""
    beta = torch.as_tensor(getattr(neurons, "beta", math.nan))
    return not bool((beta == 1).all()) and not any(kind.__name__ == "IFNode" for kind in type(neurons).__mro__)


def _refuse(rule: str, got: object) -> NoReturn:
    raise ValueError(f"count_rate_coded: model must {rule}; got {got}.")


def estimate_rate_coded(
    counted: RateCodedCounts, chip: Chip | str | Path, *, network: str = "network", **options: Any
) -> Estimate:
    """Energy of one sample of a rate-coded network, in pJ, by layer and term; the counterpart of `estimate`.

    A neuron works in all time steps: it adds its bias, compares, and multiplies its potential if the potential leaks. A
    layer with real-valued inputs does all multiply-accumulates as often as it runs. Batch norm counts as folded;
    pooling costs nothing. `options` are attributes of `RunOptions`, except `steps`.
    """
    terms = Terms(counted.counts, chip, RunOptions(steps=counted.steps, **options))
    for layer in terms.layers:
        real, updates = layer.kind == "analog", counted.steps * layer.neurons * (layer.name in counted.leaky)
        if real:
            terms.multiplications(layer, layer.dense_macs, runs=layer.dense_macs / layer.synapses)
        else:
            terms.synaptic_operations(layer, layer.synaptic_operations)
        terms.preset(layer, words=1, biases=False)
        terms.neuron_updates(layer, LayerActivity(layer.name, 0.0, updates, updates), words=1)
        if layer.biases and not real:  # which reads its biases with its weights
            terms.access(layer, "weight reads", updates, layer.biases, terms.state_bits)
        if terms.chip.arithmetic and counted.leaky.get(layer.name):
            terms.compute(layer, "leaks", updates, "multiply")
        terms.spikes_out(layer.name, layer.spikes, 0 if real else layer.active_inputs)
    said = f"rate-coded, {counted.steps} time steps, in all of which neurons work; batch norm is folded"
    return terms.estimate(network, f"rate-coded, T = {counted.steps}", [said], steps=counted.steps)
