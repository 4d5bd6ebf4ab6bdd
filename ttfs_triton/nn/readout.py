"""Output layers: read the membrane potential, or let the output neurons fire and take the earliest spike.

Output neurons have their own ramp, ϑ(s) = θ·(1 − s), and start from an initial potential V₀ common to all classes:

    A = Σ w·x + b + V₀,   W = σ·Σ w·[x > 0]          V(s) = A + W·s
    s = 0                     if A ≥ θ
    s = (θ − A) / (W + θ)     if A < θ and A + W > 0
    silent                    otherwise

With the hidden layers' ramp (θ = 1, V₀ = 0) Eq. 8 is fragile: all times lie in [0, 1], so ten classes cannot get
below a cross entropy of 1.46, several neurons fire first at once, and silent ones never learn. The defaults are a tall
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
from ttfs_triton.nn.grid import Clock, Ramp
from ttfs_triton.nn.integers import QuantisedWeight, exact_products, straight_through
from ttfs_triton.nn.layers import WeightedLinear, check_neuron
from ttfs_triton.nn.on_chip import ClockedLayer, Membrane, RoundedLayer


class FirstSpikeDecision(NamedTuple):
    """Decisions of the output layer, for N samples.

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
        Times from the window's start in [0, 1), inf for silent neurons; differentiable inside, zero gradient elsewhere.
    """
    fires_inside = (potential < threshold) & (potential + slope > 0)
    # Inside, W + θ > θ − A > 0. Elsewhere a denominator of 1 keeps the unused branch, and its gradient, finite.
    steepness = torch.where(fires_inside, slope + threshold, 1.0)
    inside = (threshold - potential) / steepness
    outside = torch.where(potential >= threshold, 0.0, torch.inf)
    return torch.where(fires_inside, inside, outside)


def first_spike_decision(spike_times: Tensor, potential: Tensor) -> FirstSpikeDecision:
    """Decisions by the earliest output spike, with ties and samples without a spike marked.

    Args:
        spike_times: [N, classes], from the output window's start; if many tie there, raise the ramp.
        potential: [N, classes], membrane potentials at the window's end, which decide where no neuron fires.
    """
    earliest, prediction = spike_times.min(dim=1)
    no_spike = earliest == torch.inf
    tie = ((spike_times == earliest[:, None]).sum(dim=1) > 1) & ~no_spike
    return FirstSpikeDecision(torch.where(no_spike, potential.argmax(dim=1), prediction), spike_times, tie, no_spike)


class Readout(WeightedLinear):
    """Output layer: logits from membrane potentials, or from spike times; `decide` takes the earliest spike.

    Input [N, in_features] activations, output [N, classes] logits. By `at`, they are

    - "potential_start", the readout to train with: membrane potentials A at the output window's start, in threshold
      heights, not clamped. Neurons need not fire; in `decide` they do, on a tall ramp.
    - "potential_end": A + σ·W, one window later.
    - "first_spike": minus the spike times, −s·θ in [−θ, 0], so that cross entropy trains the earliest spike (Eq. 8). A
      logit falls by 1 while the ramp falls by one threshold height. A silent neuron's logit is −θ, as for a spike at
      the window's end. Gradients flow only through neurons that fire inside the window.

    Computed in the precision of the weights, also under autocast: bfloat16 potentials would tie.

    Args:
        in_features, classes: number of inputs and of classes.
        at: what the logits are.
        neuron: neuron model, of which σ is used; the derivatives of a readout are exact.
        threshold: θ, height of the ramp at the window's start.
        initial_potential: V₀, initial potential on that ramp common to all classes, in addition to their biases.
        bias, weight_standardisation, initial_gain, average, spike_dropout, device, dtype: as in `DFTLinear`.
    Raises:
        ValueError: `at` is another text; a size or a ramp parameter is out of range.
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
        if not initial_potential < threshold:
            raise ValueError(
                f"Readout: initial_potential must be below threshold ({threshold}); got {initial_potential}."
            )
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
            times = one_pass.spike_times()
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
        """One pass over activations [N, in_features]: its results share dropout and weight noise, drawn once."""
        return ReadoutOnGrid(self, x) if self.runs_on_grid(x) else ReadoutPass(self, x)

    def decide(self, x: Tensor) -> FirstSpikeDecision:
        """Classify activations [N, in_features] of the last hidden layer by the earliest output spike.

        Images go to `ttfs_triton.nn.decide(network, images)`.
        """
        return self.one_pass(x).decide()


class ReadoutPass:
    """One pass of a readout over activations x [N, in_features]; dropout and weight noise are drawn once."""

    def __init__(self, readout: Readout, x: Tensor) -> None:
        self._readout, self._bias = readout, readout.bias
        self._x, self._weight = readout.synapses(x.to(readout.weight.dtype), readout.effective_weight())

    def potential(self, *, at_end: bool) -> Tensor:
        """Membrane potentials [N, classes] without V₀, in threshold heights: A or, one window later, A + σ·W."""
        x = self._x
        if at_end:
            x = x + factor(self._readout.neuron, x) * (x > 0).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, self._weight, self._bias)

    def potential_and_slope(self) -> tuple[Tensor, Tensor]:
        """A + V₀ and σ·W of the output neurons, both [N, classes], by one contraction."""
        x, readout = self._x, self._readout
        with torch.autocast(x.device.type, enabled=False):
            potential, slope = F.linear(torch.cat([x, (x > 0).to(x.dtype)]), self._weight).chunk(2)
        potential = potential + readout.initial_potential
        if self._bias is not None:
            potential = potential + self._bias
        return potential, factor(readout.neuron, slope) * slope

    def spike_times(self) -> Tensor:
        """Times [N, classes] of the output neurons' spikes on their ramp, in windows, inf for silent ones."""
        return first_spike_times(*self.potential_and_slope(), threshold=self._readout.threshold)

    def decide(self) -> FirstSpikeDecision:
        """The decision by the earliest spike."""
        potential, slope = self.potential_and_slope()
        times = first_spike_times(potential, slope, threshold=self._readout.threshold)
        return first_spike_decision(times, potential + slope)

    def hidden_activations(self) -> Tensor:
        """Activations [N, classes] that the output neurons would have on the hidden layers' ramp, without V₀."""
        potential, slope = self.potential_and_slope()
        times = first_spike_times(potential - self._readout.initial_potential, slope, threshold=1.0)
        return (1 - times).clamp(min=0)


class ClockedReadout(ClockedLayer):
    """A readout in integers, with a ramp θ·(1 − s) of its own; see `ClockedLayer`."""

    def __init__(self, readout: Readout, quantised: QuantisedWeight, clock: Clock, **options: int | None) -> None:
        super().__init__(readout, quantised, clock, **options)
        self.readout = readout

    def own_ramp(self) -> Ramp:
        """The ramp on which the earliest spike decides."""
        return self.ramp(self.readout.threshold)

    def score(self, membrane: Membrane, *, at_end: bool) -> Tensor:
        """Potentials at the output window's start or one window later, without V₀, in threshold heights; float32."""
        potential = self.after(membrane, 2 * self.steps if at_end else 0)
        return (self.height(potential) - self.readout.initial_potential).float()

    def spike_times(self, instant: Tensor) -> Tensor:
        """Spike times in windows, inf for silent neurons, from indices of instants [N, classes] on `own_ramp`."""
        return (self.clock.step_of(instant) / self.steps).masked_fill(instant == self.clock.never, torch.inf)

    def decide(self, membrane: Membrane, instant: Tensor) -> FirstSpikeDecision:
        """The decision by the earliest spike; `instant` as in `spike_times`."""
        at_end = self.after(membrane, 2 * self.steps)
        return first_spike_decision(self.spike_times(instant).float(), self.height(at_end))

    def tie_broken(self, membrane: Membrane, instant: Tensor, decision: FirstSpikeDecision) -> Tensor:
        """Classes [N] of a decision, but of neurons tied at a step, the one of the highest potential then."""
        steps = self.clock.step_of(instant)
        first = steps.amin(1, keepdim=True)
        height = self.height(self.after(membrane, 2 * first + 1))  # neurons compare in mid-step
        return torch.where(decision.tie, height.masked_fill(steps > first, -torch.inf).argmax(1), decision.prediction)

    def on_hidden_ramp(self, membrane: Membrane) -> Tensor:
        """Indices of the instants [N, classes] at which these neurons fire on the hidden layers' ramp, without V₀."""
        return self.ramp().first_instant(membrane.potential - self.common, membrane.drift)


class ReadoutOnGrid(ReadoutPass):
    """A pass of a readout on a grid: values from integers, gradients from the closed form of rounded weights.

    Activations x are multiples of 1/T.
    """

    def __init__(self, readout: Readout, x: Tensor) -> None:
        reverse_mode_only("Readout", x)
        x, scale = readout.with_dropout(x)
        rounded = RoundedLayer(readout, readout.effective_weight(), scale)
        self._readout, self._bias, self._weight = readout, rounded.bias, rounded.weight
        self._x = x.to(rounded.weight.dtype)
        with torch.no_grad(), exact_products():
            self._clocked = ClockedReadout(readout, rounded.quantised, rounded.grid.clock, **rounded.registers())
            self._membrane = self._clocked.integrate(rounded.steps_left(x))

    def potential(self, *, at_end: bool) -> Tensor:
        exact = self._clocked.score(self._membrane, at_end=at_end)
        potential, slope = super().potential_and_slope()
        return straight_through((potential + slope if at_end else potential) - self._readout.initial_potential, exact)

    def potential_and_slope(self) -> tuple[Tensor, Tensor]:
        clocked, membrane = self._clocked, self._membrane
        exact = clocked.height(membrane.potential), clocked.height(membrane.drift * (2 * clocked.steps))
        smooth = super().potential_and_slope()
        return straight_through(smooth[0], exact[0]), straight_through(smooth[1], exact[1])

    def spike_times(self) -> Tensor:
        """Spike times, multiples of 1/T; silent neurons have no gradient."""
        smooth = first_spike_times(*super().potential_and_slope(), threshold=self._readout.threshold)
        return straight_through(smooth, self._clocked.spike_times(self._instant()))

    def decide(self) -> FirstSpikeDecision:
        return self._clocked.decide(self._membrane, self._instant())

    def hidden_activations(self) -> Tensor:
        clocked = self._clocked
        return clocked.clock.remaining(clocked.on_hidden_ramp(self._membrane)) / clocked.steps

    def _instant(self) -> Tensor:
        return self._clocked.own_ramp().first_instant(*self._membrane)
