"""Counting while a network runs: spikes where layers record them, operations where spikes arrive.

`count(model, batches)` runs the network; inside `with counting(model) as counter:` anything may run it, such as the
trainer's evaluation. Counts stay on the device, as int64, until `counter.counts()` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.counts.layer_counter import InputCounter, LayerCounter
from ttfs_triton.hardware.counts.synapses import readout_time
from ttfs_triton.nn.coding import LatencyEncoder
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.weighted import WeightedLayer


@torch.no_grad()
def count(
    model: nn.Module,
    batches: Iterable[Tensor] | Iterable[tuple[Tensor, ...]],
    *,
    histogram_bins: int = 50,
    histogram_samples: int = 250,
    by_sample: bool = True,
    accelerator: Accelerator | None = None,
) -> Counts:
    """Run a network over batches and count what it does.

    Args:
        model: any tree of `ttfs_triton.nn` layers that run one after the other, spiking or analog; not compiled. Runs
            in evaluation mode and comes back in the mode it had.
        batches: images [N, ...], or tuples that start with them, as the model takes them; moved to its device.
        histogram_bins: bins of the spike-time histograms; 0 for none.
        histogram_samples: the first samples of each process go into them, since histograms cost more than all else.
            Even of 128 neurons of which every third fires, 250 samples leave about 200 spikes a bin, good to 7 %.
        by_sample: keep spikes and synaptic operations of each sample.
        accelerator: sums over its processes, each of which must count other samples. Default: this process alone.
    Returns:
        Exact counts, summed over samples.
    Raises:
        ValueError: no batches, a model without layers of ours, or one whose layers do not run once each in a row.
    Example:
        >>> from ttfs_triton.nn import cnn1
        >>> counts = count(cnn1(), [torch.rand(4, 1, 28, 28)])
        >>> counts.samples, counts.layers[0].synapses
        (4, 287296)
        >>> 0 <= counts.sparsity <= 1
        True
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    counter = Counter(model, histogram_bins, histogram_samples, by_sample)
    try:
        with counter:
            for batch in batches:
                images = batch if isinstance(batch, Tensor) else batch[0]
                model(images.to(device, non_blocking=True))
    finally:
        model.train(was_training)
    return counter.counts(accelerator)


@contextmanager
def counting(
    model: nn.Module, *, histogram_bins: int = 50, histogram_samples: int = 250, by_sample: bool = True
) -> Iterator[Counter]:
    """Count in every forward pass inside the `with` block; arguments and errors as of `count`.

    The layers' own statistics rest meanwhile; `collect_statistics` reads those of this counter.
    """
    with Counter(model, histogram_bins, histogram_samples, by_sample) as counter:
        yield counter


class Counter:
    """Counts of a running network; made by `counting`."""

    def __init__(self, model: nn.Module, histogram_bins: int, histogram_samples: int, by_sample: bool) -> None:
        if min(histogram_bins, histogram_samples) < 0:
            raise ValueError(
                "count: histogram_bins and histogram_samples must be at least 0; got "
                f"{histogram_bins} and {histogram_samples}. Use 0 for no histograms."
            )
        named = [(name, module) for name, module in model.named_modules() if isinstance(module, WeightedLayer)]
        if not named:
            raise ValueError(
                f"count: model must have layers of ttfs_triton.nn; got {type(model).__name__}. Build it from those."
            )
        names = short_names([name for name, _ in named])
        self._layers = [
            LayerCounter(name, layer, histogram_bins, histogram_samples, by_sample)
            for name, (_, layer) in zip(names, named, strict=True)
        ]
        self._input, self._by_sample = InputCounter(next(model.parameters()).device), by_sample
        self._encoders = [module for module in model.modules() if isinstance(module, LatencyEncoder)]
        self._order: list[LayerCounter] = []
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Counter:
        for counter in self._layers:
            layer, own = counter.layer, counter.layer.statistics
            self._undo.append(layer.register_forward_pre_hook(partial(self._arrive, counter)).remove)
            self._undo.append(partial(setattr, layer, "statistics", own))
            layer.statistics, counter.recording = counter, True
        for encoder in self._encoders:
            self._undo.append(encoder.register_forward_hook(self._encode).remove)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()
        for counter in self._layers:
            counter.recording = False

    def _encode(self, _: nn.Module, __: tuple[Tensor, ...], activations: Tensor) -> None:
        self._input.update(activations)

    def _arrive(self, counter: LayerCounter, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Inputs on their way into a layer: count what its synapses do with them."""
        if counter not in self._order:
            before = self._order[-1] if self._order else None
            counter.real_inputs = counter.layer.kind in ("analog", "ann") or (
                before is not None and before.layer.kind == "ann"
            )
            self._order.append(counter)
        counter.arrive(inputs[0])

    def counts(self, accelerator: Accelerator | None = None) -> Counts:
        """Read the counts: the one transfer to the host.

        Args:
            accelerator: sums over its processes; all of them must call. Default: this process alone.
        Raises:
            ValueError: nothing was counted, or some layer did not run once for each sample.
        """
        if not self._order:
            raise ValueError("count: batches must not be empty; got none.")
        vectors = [counter.sums() for counter in (*self._order, self._input)]
        sums = torch.cat([vector.to(vectors[0].device) for vector in vectors])  # the encoder's wait on the CPU for one
        times = torch.stack([counter.summed_spike_time() for counter in self._order])
        if accelerator is not None and accelerator.num_processes > 1:
            sums, times = (torch.as_tensor(accelerator.reduce(values, "sum")) for values in (sums, times))
        *read, encoder = sums.cpu().split([len(vector) for vector in vectors])
        samples = [int(values[0]) for values in read]
        if len(set(samples)) > 1 or len(self._order) < len(self._layers):
            ran = ", ".join(f"{counter.name} {number}" for counter, number in zip(self._order, samples, strict=True))
            raise ValueError(
                f"count: each layer must run once for each sample, in a row; samples were {ran}; "
                f"layers in the model: {', '.join(counter.name for counter in self._layers)}."
            )
        active = [int(values[3]) for values in read[1:]] + [0]  # spikes that reach the next layer, behind pooling
        layers = tuple(
            counter.read(values, time, delivered)
            for counter, values, time, delivered in zip(self._order, read, times.tolist(), active, strict=True)
        )
        spikes, synaptic_operations = self._samples(accelerator)
        return Counts(
            samples=samples[0],
            layers=layers,
            input=self._input.read(encoder),
            readout=readout_time(self._order[-1].layer),
            spikes_by_sample=spikes,
            synaptic_operations_by_sample=synaptic_operations,
        )

    def _samples(self, accelerator: Accelerator | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Spikes and synaptic operations of each sample."""
        if not self._by_sample:
            return (), ()
        spikes = torch.stack([counter.spikes_by_sample() for counter in self._order]).sum(0)
        synaptic_operations = torch.zeros_like(spikes)
        for counter in self._order:
            if counter.adds_to_slope:
                synaptic_operations += counter.operations_by_sample()
        found = [spikes.tolist(), synaptic_operations.tolist()]
        if accelerator is not None and accelerator.num_processes > 1:
            found = [gather_object(values) for values in found]
        return tuple(found[0]), tuple(found[1])
