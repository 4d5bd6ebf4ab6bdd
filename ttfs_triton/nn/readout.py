"""Output layers: read the membrane potential, or let the output neurons fire and take the earliest spike.

Output neurons have another ramp than hidden ones, θ·(1 − s), and an initial potential V₀ common to all classes:

    A = Σ w·x + b + V₀,   W = σ·Σ w·[x > 0]          V(s) = A + W·s
    s = 0                     if A ≥ θ
    s = (θ − A) / (W + θ)     if A < θ and A + W > 0
    silent                    otherwise

With the hidden layers' ramp (θ = 1, V₀ = 0) Eq. 8 is fragile: all times lie in [0, 1], so ten classes cannot get
below a cross entropy of 1.46, several neurons tie as the first, and silent neurons never learn. The defaults are a tall
ramp on which neurons start half-way up, θ = 20 and V₀ = 10.
"""

from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels import Neuron
from ttfs_kernels.checks import reverse_mode_only
from ttfs_kernels.rule import factor
from ttfs_triton.nn.config import ReadoutTime
from ttfs_triton.nn.grid import POTENTIAL_BITS, first_instant
from ttfs_triton.nn.integers import exact_products, straight_through
from ttfs_triton.nn.layers import WeightedLinear, check_neuron
from ttfs_triton.nn.on_chip import ClockedLayer, Membrane, RoundedLayer


class FirstSpikeDecision(NamedTuple):
    """Decisions by the earliest output spike, for N samples.

    Attributes:
        prediction: [N] int64, class of the earliest spike (of several, the lowest class); without any spike, the class
            with the highest membrane potential at the window's end.
        spike_times: [N, classes], from the output window's start, in windows; inf for silent neurons.
        tie: [N] bool, several neurons fired first at the same time.
        no_spike: [N] bool, no output neuron fired.
    """

    prediction: Tensor
    spike_times: Tensor
    tie: Tensor
    no_spike: Tensor


def first_spike_times(potential: Tensor, slope: Tensor, *, threshold: float) -> Tensor:
    """Times at which the membrane potential A + W·s meets the ramp θ·(1 − s).

    Args:
        potential: A, at the window's start, any shape.
        slope: W, inside the window (σ included), shape of `potential`.
        threshold: height θ of the ramp at the window's start.
    Returns:
        Times from the window's start in [0, 1), inf for silent neurons. Times of 0 and inf have zero gradient.
    """
    fires_inside = (potential < threshold) & (potential + slope > 0)
    # Inside the window, W + θ > θ − A > 0. Elsewhere, dividing by 1 keeps the unused branch and its gradient finite.
    steepness = torch.where(fires_inside, slope + threshold, 1.0)
    inside = (threshold - potential) / steepness
    outside = torch.where(potential >= threshold, 0.0, torch.inf)
    return torch.where(fires_inside, inside, outside)


def first_spike_decision(spike_times: Tensor, potential: Tensor) -> FirstSpikeDecision:
    """Decisions by the earliest output spike; ties and samples without a spike are marked.

    Args:
        spike_times: [N, classes], from the output window's start; if many samples tie at 0, use a taller ramp.
        potential: [N, classes], membrane potentials at the window's end, which decide where no neuron fires.
    """
    earliest, prediction = spike_times.min(dim=1)
    no_spike = earliest == torch.inf
    tie = ((spike_times == earliest[:, None]).sum(dim=1) > 1) & ~no_spike
    return FirstSpikeDecision(torch.where(no_spike, potential.argmax(dim=1), prediction), spike_times, tie, no_spike)


class Readout(WeightedLinear):
    """Output layer: logits from membrane potentials or spike times; `decide` classifies by the earliest spike.

    Input [N, in_features] activations, output [N, classes] logits. The value of `at` says what logits are:

    - "potential_start", the readout to train with: membrane potentials A at the output window's start, in threshold
      heights, not clamped. Neurons need not fire; in `decide` they fire on a tall ramp.
    - "potential_end": A + σ·W, one window later.
    - "first_spike": minus the spike times, −s·θ in [−θ, 0], so that cross entropy trains the earliest spike (Eq. 8). A
      logit falls by 1 while the ramp falls by one threshold height. A silent neuron's logit is −θ, as for a spike at
      the window's end. Gradients flow only through neurons that fire inside the window.

    Logits have the precision of the weights, also under autocast: bfloat16 potentials would tie.

    Args:
        in_features, classes: number of inputs and of classes.
        at: what the logits are, see above.
        neuron: neuron model, of which only σ is used; the derivatives of a readout are exact.
        threshold: θ, height of the ramp at the window's start.
        initial_potential: V₀, initial potential that all classes have on that ramp, in addition to their biases.
        bias, weight_standardisation, initial_gain, average, spike_dropout, device, dtype: as in `DFTLinear`.
    Raises:
        ValueError: `at` is another text; a size or the threshold is out of range.
    Source: Wei et al., ICCV 2023, Eq. 8.
    Example:
        >>> readout = Readout(128, 10, at="potential_end", neuron=Neuron(psp_persistence=0.25))
        >>> spikes = torch.rand(4, 128)
        >>> readout(spikes).shape  # logits
        torch.Size([4, 10])
        >>> readout.decide(spikes).prediction.shape  # by the earliest spike
        torch.Size([4])
    """

    kind = "readout"

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        at: ReadoutTime = "potential_start",
        neuron: Neuron = Neuron(),
        threshold: float = 20.0,
        initial_potential: float = 10.0,
        bias: bool = True,
        weight_standardisation: bool | None = None,
        initial_gain: float = 0.5,
        average: int = 1,
        spike_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if at not in get_args(ReadoutTime):
            raise ValueError(f"Readout: at must be one of {', '.join(get_args(ReadoutTime))}; got {at!r}.")
        check_neuron("Readout", neuron)
        if not threshold > 0:
            raise ValueError(f"Readout: threshold must be positive; got {threshold}.")
        super().__init__(
            self.weight_shape(in_features, classes, average),
            bias=bias,
            weight_standardisation=weight_standardisation,
            initial_gain=initial_gain,
            average=average,
            spike_dropout=spike_dropout,
            device=device,
            dtype=dtype,
        )
        self.at: ReadoutTime = at
        self.neuron, self.threshold, self.initial_potential = neuron, threshold, initial_potential

    def forward(self, x: Tensor) -> Tensor:
        one_pass = self.one_pass(x)
        if self.at == "first_spike":
            times = one_pass.decide().spike_times
            if self.counts_spikes:
                self.record((1 - times).clamp(min=0))
            return times.clamp(max=1.0) * -self.threshold
        if self.counts_spikes:
            with torch.no_grad():
                self.record(one_pass.hidden_activations())
        return one_pass.potential(at_end=self.at == "potential_end")

    def extra_repr(self) -> str:
        ramp = f"threshold={self.threshold}, initial_potential={self.initial_potential}"
        return f"{super().extra_repr()}, at={self.at}, neuron={self.neuron}, {ramp}"

    def one_pass(self, x: Tensor) -> "ReadoutPass":
        """One pass over activations [N, in_features]; all its results have the same dropout and weight noise."""
        return ReadoutPass(self, x)

    def decide(self, x: Tensor) -> FirstSpikeDecision:
        """Classify activations [N, in_features] of the last hidden layer by the earliest output spike.

        Images go to `ttfs_triton.nn.decide(network, images)`.
        """
        return self.one_pass(x).decide()


class ReadoutPass:
    """One pass of a readout over activations x [N, in_features]; dropout and weight noise are drawn once.

    On a grid, x are multiples of 1/T. Values come from integers, gradients from the closed form with rounded weights.
    """

    def __init__(self, readout: Readout, x: Tensor) -> None:
        self._readout, self._clocked = readout, None
        if readout.grid is None or x.is_meta:
            self._bias = readout.bias
            self._x, self._weight = readout.synapses(x.to(readout.weight.dtype), readout.effective_weight())
            return
        reverse_mode_only("Readout", x)
        x, scale = readout.with_dropout(x)
        rounded = RoundedLayer(readout, readout.effective_weight(), scale)
        self._bias, self._weight, self._x = rounded.bias, rounded.weight, x.to(rounded.weight.dtype)
        with torch.no_grad(), exact_products():
            layer = rounded.clocked()
            self._clocked = ClockedOutputs(layer, layer.integrate(rounded.steps_left(x)))

    def potential(self, *, at_end: bool) -> Tensor:
        """Membrane potentials [N, classes] without V₀, in threshold heights: A or, one window later, A + σ·W."""
        if self._clocked is not None:
            potential, slope = self._contractions()
            common, exact = self._readout.initial_potential, self._clocked.potential(at_end=at_end)
            return straight_through((potential + slope if at_end else potential) - common, exact - common)
        x = self._x
        if at_end:
            x = x + factor(self._readout.neuron, x) * (x > 0).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, self._weight, self._bias)

    def potential_and_slope(self) -> tuple[Tensor, Tensor]:
        """A + V₀ and σ·W of the output neurons, both [N, classes]."""
        potential, slope = self._contractions()
        if self._clocked is None:
            return potential, slope
        layer = self._clocked.layer
        gain = layer.height(self._clocked.membrane.drift * (2 * layer.steps))
        return straight_through(potential, self._clocked.potential(at_end=False)), straight_through(slope, gain)

    def decide(self) -> FirstSpikeDecision:
        """The decision by the earliest spike. Spike times are differentiable; silent neurons have no gradient."""
        potential, slope = self._contractions()
        times, at_end = first_spike_times(potential, slope, threshold=self._readout.threshold), potential + slope
        if self._clocked is not None:
            exact = self._clocked.spike_times()
            times, at_end = straight_through(times, exact), self._clocked.potential(at_end=True)
        return first_spike_decision(times, at_end)

    def hidden_activations(self) -> Tensor:
        """Activations [N, classes] that the output neurons would have on the hidden layers' ramp, without V₀."""
        if self._clocked is not None:
            clock = self._clocked.layer.clock
            return clock.remaining(self._clocked.on_hidden_ramp()) / clock.steps
        potential, slope = self._contractions()
        times = first_spike_times(potential - self._readout.initial_potential, slope, threshold=1.0)
        return (1 - times).clamp(min=0)

    def _contractions(self) -> tuple[Tensor, Tensor]:
        """A + V₀ and σ·W by one contraction; on a grid, with rounded weights."""
        x, readout = self._x, self._readout
        with torch.autocast(x.device.type, enabled=False):
            potential, slope = F.linear(torch.cat([x, (x > 0).to(x.dtype)]), self._weight).chunk(2)
        potential = potential + readout.initial_potential
        if self._bias is not None:
            potential = potential + self._bias
        return potential, factor(readout.neuron, slope) * slope


class ClockedOutputs:
    """What output neurons do in their window, in integers.

    Attributes:
        layer: the readout in integers.
        membrane: membranes [N, classes] at the window's start.
        instant: indices of the instants [N, classes] at which the neurons fire on their ramp.
    """

    def __init__(self, layer: ClockedLayer, membrane: Membrane) -> None:
        self.layer, self.membrane = layer, membrane
        self.instant = layer.first_instant(membrane).long()

    def potential(self, *, at_end: bool) -> Tensor:
        """Membrane potentials at the window's start or end, V₀ included, in threshold heights; float64."""
        # The potential moves in a straight line: saturating it once, at the end, gives the same as in every step.
        moved = self.membrane.potential + self.membrane.drift * (2 * self.layer.steps if at_end else 0)
        return self.layer.height(self.layer.in_range(moved, 2**POTENTIAL_BITS))

    def spike_times(self) -> Tensor:
        """Spike times in windows, multiples of 1/T, float64; inf for silent neurons."""
        clock = self.layer.clock
        return (clock.step_of(self.instant).double() / clock.steps).masked_fill(self.instant == clock.never, torch.inf)

    def on_hidden_ramp(self) -> Tensor:
        """Indices of the instants [N, classes] at which the neurons fire on the hidden layers' ramp, without V₀."""
        potential = self.membrane.potential - self.layer.common
        return first_instant(potential, self.membrane.drift, self.layer.fall(1.0), self.layer.clock)
