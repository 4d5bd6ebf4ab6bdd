"""A network as the stages that hardware runs it in: one for each window in which neurons fire."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ttfs_triton.nn.ann import ANNConv2d, ANNLinear
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder
from ttfs_triton.nn.folding import plain_synapses
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.models import TTFSNetwork
from ttfs_triton.nn.pooling import EarliestSpikePool2d
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.statistics import LayerKind, short_names
from ttfs_triton.nn.weighted import WeightedLayer

StageKind = LayerKind | Literal["latency"]
NO_OPERATION = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Stage:
    """A layer whose neurons fire in one window, and the way that its inputs take to it.

    Stage l of a network fires in window l; the encoder is stage 0.

    Attributes:
        name: of the layer in the model, as `collect_statistics` and `count` give it.
        kind: "latency" (a `LatencyEncoder`), "analog" (an `AnalogEncoder`), "spiking" or "readout".
        layer: the module.
        route: pooling and flattening between the stage before and this layer, in order; no synapses, no time.
    """

    name: str
    kind: StageKind
    layer: nn.Module
    route: tuple[nn.Module, ...] = ()

    @property
    def weighted(self) -> WeightedLayer:
        """The layer, of a stage with synapses.

        Raises:
            TypeError: a latency encoder.
        """
        if not isinstance(self.layer, WeightedLayer):
            raise TypeError(f"Stage.weighted: stage must have synapses; got {self.name}, a {self.kind} encoder.")
        return self.layer

    def synapses(self) -> tuple[Tensor, Tensor | None]:
        """Weights and initial potentials as the hardware gets them: standardised, batch norm folded in.

        Returns:
            weight [C_out, ...] and bias [C_out] or None, float64, detached.
        """
        return plain_synapses(self.weighted)

    def deliver(self, spikes: Tensor) -> Tensor:
        """Spikes of the stage before, or images, as this layer gets them: pooled, flattened.

        Args:
            spikes: [N, ...], activations or whatever orders neurons as activations do (larger is earlier, 0 silent).
        """
        for module in self.route:
            spikes = module(spikes)
        return spikes


def network_stages(model: nn.Module) -> tuple[Stage, ...]:
    """Split a network into stages: an encoder, spiking layers, a readout.

    Args:
        model: `TTFSNetwork`, or any tree of `nn.Sequential` with one encoder first and one readout last, between them
            `DFTConv2d`, `DFTLinear`, `EarliestSpikePool2d`, `nn.Flatten`, dropout and `nn.Identity`, which do nothing
            when a trained network runs. It may be compiled.
    Returns:
        Stages in the order in which they run.
    Raises:
        NotImplementedError: an ANN layer, or a module that is not known; the message names it.
        ValueError: no encoder in front, no readout at the end, or one of them elsewhere.
    """
    stages: list[Stage] = []
    route: list[nn.Module] = []
    leaves = list(_leaves(model, ""))
    for name, (_, module) in zip(short_names([name for name, _ in leaves]), leaves, strict=True):
        if isinstance(module, EarliestSpikePool2d | nn.Flatten):
            route.append(module)
        elif not isinstance(module, NO_OPERATION):
            stages.append(Stage(name, _kind(name, module), module, tuple(route)))
            route.clear()
    _check_order(stages, route)
    return tuple(stages)


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that compute something, by name, in the order in which they run."""
    wrapped = getattr(module, "_orig_mod", None)
    if isinstance(wrapped, nn.Module):
        yield from _leaves(wrapped, name)
    elif isinstance(module, nn.Sequential | TTFSNetwork):
        for child_name, child in module._modules.items():
            if child is not None:
                yield from _leaves(child, f"{name}.{child_name}" if name else child_name)
    else:
        yield name, module


def _kind(name: str, module: nn.Module) -> StageKind:
    if isinstance(module, LatencyEncoder):
        return "latency"
    if isinstance(module, AnalogEncoder | DFTConv2d | DFTLinear | Readout):
        return module.kind
    what = f"{type(module).__name__}{f' ({name})' if name else ''}"
    if isinstance(module, ANNConv2d | ANNLinear):
        raise NotImplementedError(
            f"network_stages: model must consist of spiking layers; got {what}, which never fires. "
            "Use DFTConv2d or DFTLinear; with psp_persistence=0 they compute the same."
        )
    raise NotImplementedError(
        f"network_stages: model must consist of layers of ttfs_triton.nn in nn.Sequential; got {what}."
    )


def _check_order(stages: list[Stage], route: list[nn.Module]) -> None:
    kinds = [stage.kind for stage in stages]
    found = ", ".join(type(stage.layer).__name__ for stage in stages) or "no layers"
    if not kinds or kinds[0] not in ("latency", "analog") or {"latency", "analog"} & set(kinds[1:]):
        raise ValueError(
            f"network_stages: model must begin with its only encoder; got {found}. "
            "Put LatencyEncoder() in front of layers that read activations."
        )
    if kinds[-1] != "readout" or "readout" in kinds[:-1] or route:
        behind = "".join(f", {type(module).__name__}" for module in route)
        raise ValueError(
            f"network_stages: model must end with its only readout; got {found}{behind}. "
            "Append PotentialReadout or FirstSpikeReadout."
        )
