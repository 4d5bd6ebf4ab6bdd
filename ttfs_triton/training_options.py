"""All keys of a run, with help texts, ranges and rules; one class per group of `--help`. Over 400 lines: all flags.

`TrainConfig` joins the classes; YAML files and the command line are flat. A FREE field changes weights and metrics by
rounding at most, so it may differ between a run and its continuation.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import tyro
import yaml
from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ttfs_kernels.neuron import Neuron
from ttfs_triton.option_rules import Excludes, Needs, RuledOptions
from ttfs_triton.shared_options import AugmentationOptions, FaultOptions

if TYPE_CHECKING:  # `--help` needs neither arrays nor PyTorch
    from ttfs_triton.data.events import EventWindows
    from ttfs_triton.nn.grid import Grid

Count = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[int, Field(ge=1, lt=2**31)]
CLOCKED = Needs("time_steps", why="chips run on a clock; 64 steps lose nothing")
NORMALISED = Needs("batch_norm", "network", flag=True)
SPIKING = Needs("psp_persistence", "network", flag=True)
WARMED_UP = Needs(schedule=("one_cycle", "cosine", "linear"), flag=True)
LINEAR = Needs(schedule=("linear",), flag=True)
AT_MILESTONES = Needs(schedule=("milestones",), flag=True)
EVENTS = Needs("event_windows", why="only recordings of events use it")
PUBLISHED = Needs("push_to_hub", flag=True)
ONE_TARGET = Excludes("target_sparsity", "target_operations", "target_energy")
PROPERTIES = tuple(field.name for field in dataclasses.fields(Neuron))
FREE: dict[str, Any] = {"free_on_resume": True}


class Options(RuledOptions):
    """Base class of the groups. The string below a field is its help text."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("weights", "teacher", mode="before", check_fields=False)
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value


class MainOptions(Options):
    """The most common keys."""

    dataset: str | None = None
    """Hub data set ("ylecun/mnist", "uoft-cs/cifar10", ...), or "sample" for the bundled Fashion-MNIST sample."""
    data_dir: Path | None = Field(default=None, json_schema_extra=FREE)
    """Local folder with parquet files or class folders of images; nothing is downloaded. If class folders are not
    split into train and test, a fifth of every class are test images, chosen by a hash of their names."""
    output_dir: Path | None = Field(default=None, json_schema_extra=FREE)
    """Folder of the run. Default: runs/<recipe>-<time>."""
    epochs: Number = 15
    """Passes over the training images."""
    batch_size: Number = 128
    """Images in an optimiser step, over all processes and micro-batches together."""
    lr: Annotated[float, tyro.conf.arg(aliases=("--learning-rate",))] = Field(default=1e-3, gt=0, le=100)
    """Peak learning rate."""
    cpu: bool = False
    """Train on the CPU even where there is a GPU."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of weights, data order and augmentation."""
    preset: str | None = None
    """Preset of the recipe; `--help` lists the keys that it sets. A configuration file and flags override them."""
    resume: Annotated[bool, Excludes("overwrite")] = Field(default=False, json_schema_extra=FREE)
    """Resume from the newest complete checkpoint in output_dir."""
    overwrite: bool = Field(default=False, json_schema_extra=FREE)
    """Delete an existing run in output_dir first."""


class DataOptions(Options):
    """Images, and where they are kept."""

    image_column: str | None = None
    """Column of the images. Default: detected (image, img)."""
    label_column: str | None = None
    """Column of the labels. Default: detected (label, fine_label)."""
    image_size: int | None = Field(default=None, ge=1, le=8192)
    """Resize all images to this height and width. Default: no resizing; all images must then have the same size."""
    random_resized_crop: Annotated[bool, Needs("image_size", why="such as 224"), Excludes("crop_padding")] = False
    """Train on random crops of photographs, 8 to 100 % of the area, resized to image_size, and score centre crops.
    Photographs are decoded batch by batch."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training images that are held out, class by class, to choose the best epoch. 0: none are, and the
    last epoch's weights are kept."""
    max_train_samples: Number | None = None
    """Use only this many training images (before the validation split)."""
    max_test_samples: Number | None = None
    """Use only this many test images."""
    max_bad_images: Count = Field(default=10, json_schema_extra=FREE)
    """Undecodable images that are skipped with a warning, or black if images are cropped; one more stops the run."""
    streaming: Annotated[bool, Excludes(data_placement=("device", "host"))] = False
    """Decode images batch by batch from disk instead of keeping all of them in memory."""
    data_placement: Literal["auto", "device", "host"] = Field(default="auto", json_schema_extra=FREE)
    """Where decoded images are kept. device: GPU memory. host: main memory. auto: GPU memory if they take at most
    half of what is free, else main memory."""
    num_workers: int = Field(default=0, ge=0, le=256, json_schema_extra=FREE)
    """Worker processes that decode streamed images."""


NO_RECORDINGS = Excludes(
    *("dataset", "image_column", "label_column", "image_size", "random_resized_crop", "streaming", "auto_augment"),
    why="recordings of events do not use them",
)


class EventOptions(Options):
    """Recordings of event cameras; see `ttfs_triton.data.events`."""

    event_windows: Annotated[int | None, NO_RECORDINGS] = Field(default=None, ge=1, le=256)
    """Number of event windows per recording of an event camera; data_dir holds the recordings (N-MNIST or DVS-Gesture
    as published, or class folders of .bin or .npz files). In a window, the first event of a pixel and polarity is a
    spike. Default: data_dir holds images."""
    event_window_us: Annotated[Number | None, EVENTS] = None
    """Length of an event window in microseconds. Default: the recording's duration divided by event_windows."""
    event_pool: Annotated[Number, EVENTS] = 1
    """Side, in pixels, of squares that are merged into one pixel, which takes their earliest event."""
    event_sensor: Annotated[tuple[Number, Number] | None, EVENTS] = None
    """Height and width of the sensor in pixels. Default: the sensor of N-MNIST or DVS-Gesture."""

    @property
    def events(self) -> EventWindows | None:
        """How recordings of events become images; None if the data are images."""
        from ttfs_triton.data.events import EventWindows

        if self.event_windows is None:
            return None
        return EventWindows(self.event_windows, self.event_window_us, self.event_pool, self.event_sensor)


ON_NO_GRID = Excludes("time_steps", why="`ttfs sweep --points time_steps=8` folds batch norm, as does `ttfs calibrate`")
NO_DENSE: dict[str, Any] = {"model": ("cifarnet", "resnet18", "resnet20"), "head": ("none",)}
NO_DROPOUT = Excludes(**NO_DENSE, why="dropout needs dense hidden layers", flag=True)


class NetworkOptions(Options):
    """The network. These keys exclude a network of your own (--network)."""

    more_rules: ClassVar = dict.fromkeys(("derivative_clip", "surrogate_width", "split_gradient"), SPIKING)

    model: str = "cnn1"
    """cnn1, cifarnet, vgg11, vgg16, resnet18, resnet20, or a specification such as 16C5-P2-32C5p0-P2-128."""
    block_convolutions: Annotated[Literal[2, 3], Needs(model=("cifarnet",))] = 2
    """Convolutions in a block of cifarnet. With 3, a skip carries spikes past the last two of a block."""
    channels: Annotated[tuple[Number, Number, Number], Needs(model=("cifarnet",))] = (64, 256, 256)
    """Channels of cifarnet's three blocks."""
    head: Annotated[Literal["4096-4096", "512", "none"], Needs(model=("vgg11", "vgg16"), flag=True)] = "4096-4096"
    """Fully connected hidden layers of vgg11 and vgg16; the paper's are 4096-4096."""
    width: float = Field(default=1.0, gt=0)
    """Factor on the size of every hidden layer."""
    batch_norm: Annotated[bool, ON_NO_GRID] = False
    """Batch norm of the membrane potentials of hidden layers; it folds into weights and initial potentials."""
    encoder: Literal["latency", "analog", "whitened", "signed"] | None = None
    """Encoder of the images. latency: bright pixels spike early. analog: the first convolution reads pixel values.
    whitened: as analog, with frozen weights that whiten patches of the training images. signed: as analog, but its
    neurons spike by the paper's rule, as in the paper's training script. Default: the model's."""
    readout: Literal["potential_start", "potential_end", "first_spike"] | None = None
    """Outputs that training uses. potential_*: membrane potentials at the start or end of the output layer's window.
    first_spike: the earliest spike wins. Default: the model's."""
    spiking_neuron: Neuron = Neuron()
    """Properties of the spiking neurons; every one of them is a key."""
    bias: bool = True
    """Learn an initial membrane potential per channel."""
    weight_standardisation: bool = True
    """Standardise the weights over the fan-in, with a learned gain; both fold into plain weights."""
    initial_gain: float = Field(default=0.5, gt=0)
    """Factor on Kaiming's scale of the initial weights. With batch_norm: initial standard deviation of the membrane
    potentials, in threshold heights; the smaller it is, the fewer neurons saturate."""
    identity_start: Annotated[bool, Needs("batch_norm", flag=True)] = False
    """Initialise the first filters of every spiking convolution as identities: filter i passes input channel i on."""
    dropout: Annotated[float, NO_DROPOUT] = Field(default=0.0, ge=0, lt=1)
    """Probability that a spike of a dense (fully connected) hidden layer is dropped in training."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        """Build the neuron from its flat keys."""
        neuron = {name: values[name] for name in PROPERTIES if name in values}
        others = {name: value for name, value in values.items() if name not in neuron}
        return others | {"spiking_neuron": neuron} if neuron else others

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the neuron as flat keys, in its place."""
        flat: dict[str, Any] = {}
        for name, value in handler(self).items():
            flat |= value if name == "spiking_neuron" else {name: value}
        return flat

    def network_keys(self) -> list[str]:
        """Keys that describe the network and differ from their defaults."""
        fields = [item for item in NetworkOptions.model_fields.items() if item[0] != "spiking_neuron"]
        changed = [name for name, field in fields if getattr(self, name) != field.default]
        return changed + [name for name in PROPERTIES if getattr(self.spiking_neuron, name) != getattr(Neuron(), name)]


class StartOptions(Options):
    """A network of your own, and the weights that a run starts from."""

    network: str | None = None
    """FILE.py:FUNCTION that builds your own network, in place of all keys that describe one. The function is called
    with those of the arguments in_channels, image_size and classes that it takes."""
    weights: str | None = None
    """Start from these weights: a run's folder, a file, bundled:NAME, or a Hub repository, org/name[/file][@revision].
    They must belong to the same network, or to an ANN with the same convolutions, batch norms and fully connected
    layers, whatever the layers' names. For other ANNs, use `ttfs convert`."""
    new_readout: Annotated[bool, Needs("weights")] = False
    """Draw the readout's weights at random, for images of other classes; all other weights must fit this network."""
    calibration_images: Annotated[Count, Needs("weights", flag=True)] = 256
    """Training images on which the given weights are calibrated before training, if another project trained them as an
    ANN, or if the network trains on a chip's grid. 0: no calibration."""


class GridOptions(Options):
    """The grid of a chip: time steps, bits of weights and registers."""

    time_steps: int | None = Field(default=None, ge=1, le=1024)
    """Train on a chip's grid with this many time steps per window: spikes fall on time steps, as in the simulator.
    Gradients pass straight through the rounding. The network keeps its grid for evaluation and simulation."""
    weight_bits: Annotated[int | None, CLOCKED] = Field(default=None, ge=2, le=16)
    """Bits of a weight on the grid, sign included. Default: weights are not rounded."""
    weight_units: Annotated[Literal["channel", "tensor"], Needs("weight_bits")] = "channel"
    """Quantisation granularity: one scale per output channel, or one per layer ("tensor")."""
    learn_units: Annotated[bool, Needs("weight_bits", flag=True)] = True
    """Learn the scales of the rounded weights; otherwise they stay at the best fit to the initial weights."""
    state_bits: Annotated[int | None, CLOCKED] = Field(default=None, ge=4, le=62)
    """Bits of the registers that hold a neuron's slope and potential on the grid; they saturate. Default: as many as
    are needed."""

    @property
    def grid(self) -> Grid | None:
        """The grid; None without time_steps."""
        from ttfs_triton.nn.grid import Grid

        if self.time_steps is None:
            return None
        return Grid(self.time_steps, self.weight_bits, self.weight_units == "channel", self.state_bits)


RISING = Needs("psp_persistence", why="σ rises from 0 to this value, which must be above 0")
NOT_COMPILED = Excludes("compile", why="every σ would be compiled anew")


class OptimisationOptions(Options):
    """Optimiser, learning rates, teacher, averages of weights, and the course of σ."""

    gradient_accumulation: Number = 1
    """Micro-batches in an optimiser step."""
    optimizer: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """adamw: Adam with decoupled weight decay. sgd: with Nesterov momentum. muon: orthogonal updates rotate the weights
    of hidden layers by lr radians per step at a fixed norm; sgd updates the rest. Muon is for networks with batch norm
    or standardised weights."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd and muon; first beta of adam and adamw."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of weights (not of gains and initial potentials)."""
    norm_bias_rate: Annotated[float, NORMALISED] = Field(default=1.0, ge=0)
    """Factor on the learning rate of batch norm's biases β. 0: they keep their initial values."""
    norm_gain_rate: Annotated[float, NORMALISED] = Field(default=1.0, ge=0)
    """Factor on the learning rate of batch norm's weights γ, the standard deviations of the membrane potentials.
    0: they stay at initial_gain."""
    readout_rate: float = Field(default=1.0, gt=0)
    """Factor on the learning rate of the readout."""
    schedule: Literal["one_cycle", "cosine", "linear", "constant", "milestones"] = "one_cycle"
    """Course of the learning rate, by optimiser step. linear: from start_factor up to the peak, then down to
    end_factor. milestones: starts at the peak; every milestone multiplies it by milestone_factor."""
    warmup: Annotated[float, WARMED_UP] = Field(default=0.2, ge=0, lt=1)
    """Share of the steps in which the learning rate rises (schedules one_cycle, cosine, linear)."""
    start_factor: Annotated[float, LINEAR] = Field(default=0.2, ge=0, le=1)
    """Learning rate of the first step, as a share of the peak (schedule linear)."""
    end_factor: Annotated[float, LINEAR] = Field(default=0.0, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak (schedule linear)."""
    milestones: Annotated[tuple[Number, ...], AT_MILESTONES] = ()
    """Epochs after which the learning rate is multiplied by milestone_factor (schedule milestones). Epochs behind the
    run's last one have no effect, as in PyTorch's MultiStepLR."""
    milestone_factor: Annotated[float, AT_MILESTONES] = Field(default=0.1, gt=0, le=1)
    """Factor on the learning rate at a milestone (schedule milestones)."""
    gradient_clip: float | None = Field(default=None, gt=0)
    """Upper bound on the norm of the gradient over all parameters. Default: no bound."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the cross entropy."""
    teacher: str | None = Field(default=None, json_schema_extra=FREE)
    """Also learn the class probabilities of this trained network: a run's folder, a folder with config.json and
    model.safetensors, owner/name on the Hub, or bundled:NAME."""
    teacher_weight: Annotated[float, Needs("teacher")] = Field(default=0.9, ge=0, le=1)
    """Share of the loss that compares the network with the teacher; the rest compares it with the labels."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights; the average is scored and saved. 0: off."""
    lookahead: Annotated[Count, Excludes("ema_decay", why="only one average of the weights is scored")] = 0
    """Optimiser steps between two lookaheads, which average the weights with those of earlier steps. Training continues
    from the average, which is scored and saved. Late in training, earlier steps count more. 0: off."""
    psp_persistence_rise: Annotated[tuple[float, float] | None, RISING, NOT_COMPILED] = None
    """Start at σ = 0 and let σ rise to psp_persistence between these two shares of the training, such as 0.25 0.6."""

    @model_validator(mode="after")
    def _of_updates(self) -> Self:
        if self.optimizer == "muon" and self.momentum == 0:
            raise ValueError("optimizer: muon needs momentum above 0")
        if self.schedule == "milestones" and not self.milestones:
            raise ValueError("schedule: milestones needs milestones, such as 50 150 240")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise; got {' '.join(map(str, self.milestones))}")
        rise = self.psp_persistence_rise
        if rise is not None and not 0 <= rise[0] <= rise[1] <= 1:
            raise ValueError(f"psp_persistence_rise must be two rising shares from 0 to 1; got {rise[0]} {rise[1]}")
        return self


@dataclass(frozen=True)
class Goal:
    """Goal of a target: `kind` is "sparsity", "operations" or "energy", `amount` a share, for energy µJ on `chip`."""

    kind: str
    amount: float
    chip: str | None = None


class TargetOptions(Options):
    """Target: a cost to which training drives the network."""

    target_sparsity: Annotated[float | None, ONE_TARGET] = Field(default=None, gt=0, lt=1)
    """Goal for the share of hidden neurons that spike for an image, such as 0.15."""
    target_operations: Annotated[float | None, ONE_TARGET] = Field(default=None, gt=0, lt=1)
    """Goal for synaptic operations, as a share of the dense ANN's multiply-accumulates, such as 0.15."""
    target_energy: Annotated[str | None, ONE_TARGET] = None
    """Goal for the energy of an image on a chip, CHIP:MICROJOULES, such as lemaire45:int8:40."""
    target_steps: Annotated[Number | None, Needs("target_energy")] = None
    """Time steps per window with which target_energy is computed. Default: time_steps, or 32 without a grid."""

    @model_validator(mode="before")
    @classmethod
    def _of_older_runs(cls, values: Any) -> Any:
        unused = isinstance(values, dict) and values.get("target_steps") == 32 and not values.get("target_energy")
        return values | {"target_steps": None} if unused else values

    @property
    def target(self) -> Goal | None:
        """The goal; None without a target. ValueError if an energy is not a positive number."""
        if self.target_sparsity is not None:
            return Goal("sparsity", self.target_sparsity)
        if self.target_operations is not None:
            return Goal("operations", self.target_operations)
        if (energy := self.target_energy) is None:
            return None
        chip, _, microjoules = energy.rpartition(":")
        try:
            amount = float(microjoules)
        except ValueError:
            amount = math.nan
        if not chip or not 0 < amount < math.inf:
            raise ValueError(
                f"target_energy must be CHIP:MICROJOULES with a positive number, such as loihi:100; got {energy}"
            )
        return Goal("energy", amount, chip)


class RunOptions(Options):
    """Precision, compilation, output of a run."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] | None = None
    """Precision of training. auto: bf16, or float32 on CPUs that emulate bf16. Default: that of `accelerate launch`."""
    compile: bool = False
    """Compile the network with torch.compile."""
    fuse: Literal["auto", "on", "off"] = Field(default="auto", json_schema_extra=FREE)
    """On a CPU, let PyTorch's compiler fuse the passes over neurons. auto: in long runs, if there is a C++ compiler."""
    cuda_graph: Literal["auto", "on", "off"] = Field(default="auto", json_schema_extra=FREE)
    """Run a training step by one launch of a CUDA graph. auto: where it is possible."""
    sync_batch_norm: bool = False
    """Compute batch norm's statistics over the images of all processes together."""
    evaluation_batch_size: Number = Field(default=500, json_schema_extra=FREE)
    """Images in a batch of validation and test, per process."""
    checkpoint_steps: Count = Field(default=0, json_schema_extra=FREE)
    """Optimiser steps between additional checkpoints. 0: checkpoints are written after epochs only."""
    keep_checkpoints: Number = Field(default=2, json_schema_extra=FREE)
    """Number of newest checkpoints to keep; the best weights are kept as well."""
    log_steps: Number = Field(default=20, json_schema_extra=FREE)
    """Optimiser steps between two updates of progress bar and trackers."""
    statistics_steps: Number = 50
    """Optimiser steps between two samples of the layers' activity in training."""
    trackers: tuple[str, ...] = Field(default=(), json_schema_extra=FREE)
    """Experiment trackers of accelerate: tensorboard, wandb, trackio, ..."""
    backend: Literal["auto", "triton", "torch"] = "auto"
    """What computes the layers. auto: on a GPU, our Triton kernels; on a CPU, PyTorch."""


class HubOptions(Options):
    """Publishing when the run has ended."""

    push_to_hub: Annotated[bool, Needs("hub_repo_id", why="owner/name")] = Field(default=False, json_schema_extra=FREE)
    """Publish the best weights, with a model card, when the run has ended. Rights are checked before it starts."""
    hub_repo_id: Annotated[str | None, PUBLISHED] = Field(default=None, json_schema_extra=FREE)
    """Repository to publish in, owner/name; made if it does not exist."""
    hub_private: Annotated[bool, PUBLISHED] = Field(default=True, json_schema_extra=FREE)
    """Publish so that only you, and the members of your organisation, can see the repository."""
    hub_license: Annotated[str | None, PUBLISHED] = Field(default=None, json_schema_extra=FREE)
    """Licence of the model by the Hub's short name, such as apache-2.0. Default: none is stated."""


class TrainConfig(
    HubOptions,
    RunOptions,
    TargetOptions,
    FaultOptions,
    OptimisationOptions,
    GridOptions,
    StartOptions,
    NetworkOptions,
    EventOptions,
    AugmentationOptions,
    DataOptions,
    MainOptions,
):
    """All keys of a run, saved in its folder as `config.yaml`. There and in `--help`, the last base class comes first.

    A chip's faults are drawn anew in every training step; validation runs without faults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    more_rules: ClassVar = (
        dict.fromkeys((*NetworkOptions.model_fields, *PROPERTIES), Excludes("network", flag=True))
        | NetworkOptions.more_rules
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.network is not None and (given := self.network_keys()):
            keys = ", ".join(given)
            raise ValueError(
                f"network builds the network, whatever keys of a recipe say: leave out {keys}, or use the recipe "
                '"own" and give flags of the training yourself'
            )
        _ = self.target  # raises
        return self

    def to_yaml(self) -> str:
        """The configuration as YAML, without `resume` and `overwrite`."""
        values = self.model_dump(mode="json", exclude={"resume", "overwrite"})
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


FREE_ON_RESUME = frozenset(name for name, key in TrainConfig.model_fields.items() if key.json_schema_extra == FREE)
"""Keys that may differ between a run and its continuation."""
