"""Counts and energy of rate-coded networks of other libraries, over all their time steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ttfs_kernels import Neuron
from ttfs_triton.energy.chip import Chip
from ttfs_triton.energy.counter import images_and_labels
from ttfs_triton.energy.counts import Counts, LayerActivity, LayerCounts
from ttfs_triton.energy.estimate import Estimate, RunOptions
from ttfs_triton.energy.terms import Terms
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.trace import evaluating

Library = Literal["snntorch", "spikingjelly"]
# Base classes of spiking neurons, compared by name: only the user's code imports the library.
NEURONS: dict[str, set[str]] = {"snntorch": {"SpikingNeuron"}, "spikingjelly": {"BaseNode", "SimpleBaseNode"}}
SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Functions whose products no hook would see.
CONTRACTIONS = {"linear", "matmul", "__matmul__", "mm", "bmm", "einsum", "scaled_dot_product_attention"}
CONTRACTIONS |= {f"conv{kind}{size}d" for kind in ("", "_transpose") for size in (1, 2, 3)}


@dataclass(frozen=True)
class RateCodedCounts:
    """Counts of a rate-coded network over a set of samples and all time steps.

    Attributes:
        counts: layers with synapses, in the order in which they run, each with the neurons right behind it, or with
            its outputs; `active_inputs` are the spikes that it receives, `spikes_delivered` is 0. A layer with an input
            other than 0 and ±1 is "analog": it multiplies.
        steps: T, time steps of a sample.
        activity: updates and comparisons of neurons, one in each time step, summed over samples.
        leaky: names of the layers whose potential leaks: a multiplication in each update.
        correct: samples whose largest output is their label's; 0 without labels.
    """

    counts: Counts
    steps: int
    activity: tuple[LayerActivity, ...]
    leaky: tuple[str, ...]
    correct: int = 0


@torch.no_grad()
def count_rate_coded(
    model: nn.Module, batches: Iterable[Tensor] | Iterable[tuple[Tensor, ...]], library: Library
) -> RateCodedCounts:
    """Run a rate-coded network of another library over batches, and count its spikes and synaptic operations.

    A non-zero input of an `nn.Linear` or convolution costs as many operations as neurons that it reaches: accumulates
    if all inputs of the layer are 0 or ±1, else multiply-accumulates. Sums equal NeuroBench's SynapticOperations. A
    layer that runs once for all time steps is counted once.

    Args:
        model: maps images [N, ...] to outputs [N, classes], such as summed spikes. Its forward runs the time steps, in
            a loop or in multi-step mode ([T, N, ...]), and resets the neurons. It runs in evaluation mode.
        batches: images, or tuples (images, labels); they are moved to the model's device.
        library: "snntorch" or "spikingjelly", whose neurons it has.
    Raises:
        ValueError: outputs are not as described; there are no batches or neurons; weights are in other modules or used
            by functions; or a layer runs neither once nor once a time step.
    """
    device, counter, correct = next(iter(model.parameters()), torch.empty(0)).device, _Counter(model, library), 0
    try:
        with evaluating(model):
            for images, labels in map(images_and_labels, batches):
                outputs = counter.run(images.to(device))
                if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(images):
                    _refuse(f"return [{len(images)}, classes]", getattr(outputs, "shape", type(outputs).__name__))
                if labels is not None:
                    correct += int((outputs.argmax(1) == labels.to(device)).sum())
    finally:
        for handle in counter.handles:
            handle.remove()
    return replace(counter.result(), correct=correct)


class _Layer:
    """Sums of one layer: of its synapses, and of the neurons behind them."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.synapses = name, module if isinstance(module, SYNAPSES) else None
        self.neurons: nn.Module | None = None
        self.reach = torch.zeros(0, dtype=torch.int64)  # neurons that each input reaches
        self.runs = self.outputs = self.steps = self.updates = 0
        self.operations = self.active = self.spikes = self.real = 0  # on the model's device

    def read(self, inputs: Tensor) -> None:
        """Add the inputs of one call: [N, ...], or [T, N, ...] in multi-step mode."""
        assert self.synapses is not None
        shape = inputs.shape[1 - self.synapses.weight.dim() :]
        if self.reach.shape != shape:
            self.reach = _reach(self.synapses, shape)
        by_input = (inputs != 0).reshape(-1, *shape).sum(0)
        self.operations = (by_input * self.reach).sum() + self.operations
        self.active = by_input.sum() + self.active
        self.real = ((inputs != 0) & (inputs.abs() != 1)).sum() + self.real
        self.runs += inputs.numel() // math.prod(shape)

    def fire(self, spikes: Tensor) -> None:
        """Add the spikes of one call of the neurons."""
        self.steps += len(spikes) if getattr(self.neurons, "step_mode", "s") == "m" else 1
        self.updates += spikes.numel()
        self.spikes = torch.count_nonzero(spikes) + self.spikes

    def counts(self, samples: int, steps: int) -> LayerCounts:
        """Counts over all samples and time steps."""
        if self.synapses is not None and self.runs not in (samples, samples * steps):
            often = f"{self.name}, {self.runs / samples:g} times in {steps} steps"
            _refuse("run each layer once, or once a time step", often)
        weight, bias = (getattr(self.synapses, name, None) for name in ("weight", "bias"))
        real, synapses, operations = int(self.real) > 0, int(self.reach.sum()), int(self.operations)
        none: dict[str, Any] = dict.fromkeys(("saturated", "never_active", "spikes_delivered", "summed_spike_time"), 0)
        return LayerCounts(
            name=self.name,
            kind="analog" if real else "spiking",
            samples=samples,
            neurons=self.updates // (samples * steps) if self.neurons else self.outputs // self.runs,
            neuron=None if real else Neuron(psp_persistence=0),  # a spike acts once, when it arrives
            inputs=self.reach.numel(),
            synapses=synapses,
            weights=0 if weight is None else weight.numel(),
            biases=0 if bias is None else bias.numel(),
            spikes=int(self.spikes),
            active_inputs=int(self.active),
            synaptic_operations=0 if real else operations,
            nonzero_macs=operations,
            analog_macs=synapses * self.runs if real else 0,
            dense_macs=synapses * self.runs,
            **none,
        )


class _Counter(TorchFunctionMode):
    """Hooks on a module's layers and neurons, and a watch on contractions outside of them."""

    def __init__(self, model: nn.Module, library: Library) -> None:
        super().__init__()
        self._model, self._samples, self._batches, self._inside = model, 0, 0, 0
        self._last: _Layer | None = None  # layer that ran last
        self._order: dict[_Layer, None] = {}  # layers in the order in which they run first
        named = dict(model.named_modules())
        layers = {name: module for name, module in named.items() if _is_layer(module, library)}
        for name, module in named.items():
            counted = name in layers or isinstance(module, nn.modules.batchnorm._BatchNorm)
            if not counted and [*module.parameters(recurse=False)]:
                _refuse("have weights in Linear and Conv layers alone", f"{type(module).__name__} ({name})")
        names = zip(short_names([*layers]), layers.values(), strict=True)
        self._layers = {module: _Layer(name, module) for name, module in names}
        self.handles = [module.register_forward_hook(self._leave) for module in self._layers]
        reading = [module for module in self._layers if isinstance(module, SYNAPSES)]
        self.handles += [module.register_forward_pre_hook(self._arrive) for module in reading]

    def run(self, images: Tensor) -> Any:
        """Outputs of the network for a batch."""
        self._samples, self._batches, self._last = self._samples + len(images), self._batches + 1, None
        with self:
            return self._model(images)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in CONTRACTIONS and not self._inside:
            _refuse("multiply by weights in modules alone, such as nn.Linear", f"{name}()")
        return func(*args, **(kwargs or {}))

    def _arrive(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._inside += 1
        self._layers[module].read(inputs[0])

    def _leave(self, module: nn.Module, _: Any, outputs: Any) -> None:
        layer = self._layers[module]
        if isinstance(module, SYNAPSES):
            self._inside -= 1
            layer.outputs += outputs.numel()
            self._last = layer
        else:
            if layer.neurons is None and self._last is not None and self._last.neurons is None:
                layer = self._layers[module] = self._last  # neurons belong to the layer that ran last
            layer.neurons = module
            layer.fire(outputs[0] if isinstance(outputs, tuple) else outputs)
        self._order[layer] = None

    def result(self) -> RateCodedCounts:
        """Counts over all batches so far."""
        firing = [layer for layer in self._order if layer.neurons is not None]
        often = {layer.name: layer.steps / self._batches for layer in firing}
        steps = next(iter(often.values()), 0.5)
        if {*often.values()} != {steps} or steps % 1:
            got = ", ".join(f"{name} {times:g} times" for name, times in often.items()) or "no neurons that ran"
            _refuse("update spiking neurons of the library once a time step", got)
        counts = Counts(self._samples, tuple(layer.counts(self._samples, int(steps)) for layer in self._order))
        activity = tuple(LayerActivity(layer.name, 0, layer.updates, layer.updates) for layer in firing)
        return RateCodedCounts(
            counts, int(steps), activity, tuple(each.name for each in firing if _leaks(each.neurons))
        )


def _is_layer(module: nn.Module, library: Library) -> bool:
    """Whether a module has synapses that are counted, or is a spiking neuron of the library."""
    kinds = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.split(".")[0] == library}
    return isinstance(module, SYNAPSES) or bool(NEURONS[library] & kinds)


def _reach(layer: Any, shape: torch.Size) -> Tensor:
    """Number of neurons that each input of a layer reaches, int64, in the shape of the inputs."""
    if isinstance(layer, nn.Linear):
        return torch.full(shape, layer.out_features, device=layer.weight.device)
    with torch.enable_grad():
        inputs = torch.zeros(1, *shape, dtype=torch.float64, device=layer.weight.device, requires_grad=True)
        outputs = layer._conv_forward(inputs, torch.ones_like(layer.weight, dtype=torch.float64), None)
        return torch.autograd.grad(outputs.sum(), inputs)[0][0].long()


def _leaks(neuron: Any) -> bool:
    """Whether a potential leaks: not with β = 1, nor in an `IFNode`."""
    beta = torch.as_tensor(getattr(neuron, "beta", math.nan))
    return not bool((beta == 1).all()) and not any(kind.__name__ == "IFNode" for kind in type(neuron).__mro__)


def _refuse(rule: str, found: object) -> NoReturn:
    raise ValueError(f"count_rate_coded: model must {rule}; got {found}.")


def estimate_rate_coded(
    found: RateCodedCounts, chip: Chip | str | Path, *, network: str = "network", **options: Any
) -> Estimate:
    """Energy of one sample of a rate-coded network, in pJ, by layer and term; the counterpart of `estimate`.

    A synaptic operation adds a weight to a potential. Neurons work in all time steps: each adds its bias, compares, and
    multiplies its potential if that leaks. A layer with real-valued inputs does all multiply-accumulates as often as it
    runs. Batch norm counts as folded; pooling costs nothing. `options` are attributes of `RunOptions`, except `steps`.
    """
    terms = Terms(found.counts, chip, RunOptions(steps=found.steps, **options))
    updates = {layer.name: layer.compares / found.counts.samples for layer in found.activity}
    for layer in terms.layers:
        if layer.kind == "analog":
            terms.multiplications(layer, layer.dense_macs, runs=layer.dense_macs / layer.synapses)
        else:
            terms.synaptic_operations(layer, layer.synaptic_operations)
        terms.preset(replace(layer, biases=0), words=1)
        if every := updates.get(layer.name, 0.0):
            terms.neuron_updates(layer, LayerActivity(layer.name, 0.0, every, every), words=1)
            if layer.biases:
                terms.access(layer, "weight reads", every, layer.biases, terms.state_bits)
            if terms.chip.arithmetic and layer.name in found.leaky:
                terms.compute(layer, "leaks", every, "multiply")
        terms.spikes_out(layer.name, layer.spikes, 0 if layer.kind == "analog" else layer.active_inputs)
    latency_us = terms.step_time(found.steps) if terms.options.latency_us is None else terms.options.latency_us
    lines = [f"rate-coded, {found.steps} time steps, in all of which neurons work; batch norm is folded"]
    if latency_us is not None:
        lines.append(f"latency {latency_us:,.4g} µs, without delays between layers")
    return terms.estimate(network, f"rate-coded, T = {found.steps}", latency_us, lines, "step_us")
