"""Options of the `ttfs` commands; without PyTorch, so that `--help` and mistakes are answered before it loads.

A command is a function of its description and arguments. It imports the module that does its work when it runs.
The commands train and sweep are in the packages of these names.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import Field

from ttfs_triton.command_line import run_command
from ttfs_triton.option_rules import Excludes, Needs
from ttfs_triton.shared_options import CommandOptions, FaultOptions

Bits = Annotated[int, Field(ge=2, le=16)]
Steps = Annotated[int, Field(ge=1, le=4096)]
OfNetwork = Literal["network"]


class ModelOptions(CommandOptions):
    """Options of commands that take one trained network."""

    model: Annotated[str, tyro.conf.Positional]
    """Trained network: a run's folder, a folder with config.json and model.safetensors, a .safetensors file with
    config.json beside it, owner/name[@revision] on the Hub, or bundled:NAME, which comes with the package."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network; only for a network of your own."""


class ColumnOptions(CommandOptions):
    """Options that name columns of a data set; for all commands that read images."""

    image_column: str | None = None
    """Column with the images. Default: detected (image, img)."""
    label_column: str | None = None
    """Column with the labels. Default: detected (label, fine_label)."""

    def images_named(self) -> dict[str, Any]:
        """Arguments of `load_images`: the data set and its columns."""
        return {name: getattr(self, name) for name in ("dataset", "data_dir", *ColumnOptions.model_fields)}


class ImageOptions(CommandOptions):
    """Options of commands that run networks on test images."""

    network: str | None = None
    """FILE.py:FUNCTION that builds the network; only for a network of your own."""
    dataset: str | None = None
    """Hub data set, or "sample". Default: the data set of the run's training."""
    data_dir: Path | None = None
    """Local folder with parquet files or class folders of images; needs no internet access."""
    max_test_samples: int | None = Field(default=None, ge=1, lt=2**31)
    """Use only this many test images, for a quick look."""
    batch_size: int = Field(default=250, ge=1, lt=2**31)
    """Images per batch."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""


class MeasuringOptions(ImageOptions):
    """Options of commands that measure networks on test images: faults and decision time, besides `ImageOptions`."""

    fault_seed: Annotated[int, Needs(*FaultOptions.model_fields)] = Field(default=0, ge=0, lt=2**63)
    """Seed of the faults in simulations."""
    deadlines: bool = False
    """Measure accuracy against decision time, by the earliest output spike, for every network."""


class EvaluationOptions(ModelOptions, FaultOptions, MeasuringOptions, ColumnOptions):
    """Options of `ttfs evaluate`: network, images, hardware, faults and output."""

    # ---- hardware
    chip: tuple[str, ...] = Field(default=("anp_i", "lemaire45:int8"), min_length=1)
    """Chips whose prices turn counts into energies: names of presets, TOML files of yours, or "all". The first is
    shown in detail. The comparison with ANNs takes the first chip that prices an ANN's multiplications and memory, or
    else lemaire45:int8; with "all", the chip of this comparison is shown in detail."""
    steps: Steps | OfNetwork = "network"
    """Time steps per window, in simulation and energy. network: those of the network's grid, or 32 without a grid."""
    step_us: float | None = Field(default=None, gt=0)
    """Duration of a step in microseconds, for static power. Default: the chip's, if it fixes one."""
    weight_bits: Annotated[Bits | OfNetwork | None, Needs("simulation")] = "network"
    """Bits of a weight in the simulation; None does not round. network: the bits of the network's grid, or 8."""
    gating: bool = True
    """Neurons sleep before their first input spike and after their output spike."""
    simulation: bool = True
    """Simulate the network in integers, as hardware runs it, and price the simulated work of its neurons."""

    # ---- output
    output_dir: Path | None = None
    """Folder in which to write evaluation.json; must not hold one already."""
    report: Path | None = None
    """File for the report, one self-contained HTML page; its name ends in .html."""
    overwrite: bool = False
    """Replace existing files of --output-dir and --report."""
    sample: Annotated[int, Needs("report")] = Field(default=0, ge=0, lt=2**31)
    """Index of the test image whose spikes the report shows."""


class EnergyOptions(ImageOptions, ColumnOptions):
    """Options of `ttfs energy`: two networks, images and chips."""

    more_rules: ClassVar = {"network": Needs("ttfs")}
    module: str
    """FILE.py:FUNCTION that builds the rate-coded network: a module from images [N, C, height, width] in [0, 1] to
    outputs [N, classes], which runs its time steps and resets its neurons."""
    library: Literal["snntorch", "spikingjelly"]
    """Library that the neurons of the rate-coded network come from."""
    ttfs: str | None = None
    """Time-to-first-spike network to compare with, named as for `ttfs evaluate`, and simulated. For one of your own,
    --network names the function that builds it."""
    chip: tuple[str, ...] = Field(default=("anp_i", "lemaire45:int8"), min_length=1)
    """Chips whose prices turn counts into energies: names of presets, TOML files of yours, or "all"."""
    steps: Annotated[int | None, Needs("ttfs")] = Field(default=None, ge=1, le=4096)
    """Time steps per window of the network of --ttfs. Default: those of its grid, or 32."""
    step_us: float | None = Field(default=None, gt=0)
    """Duration of a step in microseconds, for static power. Default: the chip's, if it fixes one."""


class ClassificationOptions(ModelOptions):
    """Options of `ttfs classify`: network, image files, output."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(min_length=1)
    """Image files, resized as in training, or recordings if the network reads those of an event camera."""
    top: int = Field(default=1, ge=1, lt=2**31)
    """Number of classes to print per image, likeliest first."""
    json_lines: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object per line, for programs."""


Side = Annotated[int, Field(ge=1, le=8192)]


class CalibrationImages(ColumnOptions):
    """Options that choose training images to calibrate on, for all commands that calibrate."""

    dataset: str | None = None
    """Calibrate on training images of this Hub data set, or of "sample"."""
    data_dir: Path | None = None
    """Calibrate on this local folder: parquet files or class folders; recordings, if the network reads events."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the draw of calibration images."""
    cpu: bool = False
    """Calibrate on the CPU, even if there is a GPU."""


OF_MODULE = Needs("network")


class ConvertOptions(CalibrationImages):
    """Options of `ttfs convert`: source, network, calibration, output folder."""

    source: Annotated[str, tyro.conf.Positional]
    """Trained weights: a file (.safetensors; .bin, .pt, .pth or .pkl, from which only tensors are read), or a Hub
    repository that holds safetensors: org/name[/FILE.safetensors][@revision]."""
    output_dir: Path
    """New or empty folder for model.safetensors, config.json and conversion.json."""

    # ---- source
    sha256: str | None = None
    """Refuse the file if it has another SHA-256."""
    mean: tuple[float, ...] | None = None
    """Means of the channels of the source's training images, pixels in [0, 1]. Default: those in a timm config.json
    beside the weights, or for the paper's networks the paper's; without either, the ANN reads pixels as they are."""
    std: tuple[float, ...] | None = None
    """Standard deviations of the channels; default as for --mean."""
    trained_as: Literal["ann", "direct", "proxy"] | None = None
    """Which of the paper's networks the file holds; the tensors' names do not tell. ann: its ANN. direct, proxy: the
    spiking network of snn_directTrain_model.py or proxy_ann_model.py; spiking networks are not calibrated."""

    # ---- network
    network: Annotated[str | None, Excludes("trained_as")] = None
    """FILE.py:FUNCTION, or MODULE:FUNCTION such as torchvision.models:vgg16_bn, that builds the ANN as a module; see
    `convert_ann`. Needs calibration images."""
    classes: Annotated[int | None, OF_MODULE] = Field(None, ge=1, lt=2**31)
    """Number of classes of the ANN that --network builds. Default: the images'."""
    image_size: Annotated[Side | tuple[Side, Side] | None, OF_MODULE] = None
    """Side of square images, or height and width, of that ANN. Default: the images'."""
    psp_persistence: float | None = None
    """σ: at 0, a neuron computes the same as an ANN's clamped ReLU; 1 is the paper's neuron. With σ > 0, fewer neurons
    fire, but an ANN's accuracy comes back only by training: `ttfs train --weights`. Default: 0 for an ANN, else 1."""
    readout: Annotated[Literal["potential_start", "potential_end"] | None, OF_MODULE] = None
    """Logits are the output neurons' potentials at their window's start (the default) or end."""
    encoder: Annotated[Literal["latency", "analog"] | None, OF_MODULE] = None
    """latency: pixels become spike times, for an ANN without mean and std. analog: the first convolution multiplies
    pixels. Default: analog if the ANN begins with a plain convolution."""

    # ---- calibration
    calibrate: bool = True
    """Choose initial potentials, layer by layer, that bring spikes closest to the ANN's activations; needs images."""
    calibration_images: int = Field(256, ge=1, lt=2**31)
    """Number of calibration images, drawn by --seed."""
    percentile: Annotated[float | None, OF_MODULE] = Field(None, gt=0, le=100)
    """Percentile of a channel's activations that is scaled to 1, for an ANN whose ReLU has no upper bound. Default:
    99.9; at σ = 0, 1.25 times the largest, so that hardly any activation is clipped."""


class CalibrateOptions(ModelOptions, CalibrationImages):
    """Options of `ttfs calibrate`: network, grid, images, output folder."""

    output_dir: Path
    """New or empty folder for model.safetensors, config.json and calibration.json."""

    # ---- grid of a chip
    time_steps: int = Field(ge=1, le=1024)
    """Time steps in a window."""
    weight_bits: int | None = Field(None, ge=2, le=16)
    """Bits of a weight, sign included. Default: weights are not rounded."""
    weight_units: Literal["channel", "tensor"] = "channel"
    """Quantisation granularity: one scale per output channel, or one per layer ("tensor")."""
    state_bits: int | None = Field(None, ge=4, le=62)
    """Bits of the registers that hold a neuron's slope and potential; they saturate. Default: as many as are needed."""

    images: int = Field(128, ge=1, lt=2**31)
    """Number of calibration images, drawn by --seed."""


ON_A_CLOCK = Needs(format=("nir", "c"))


class ExportOptions(ModelOptions, ColumnOptions):
    """Options of `ttfs export`: network, format, file, check."""

    more_rules: ClassVar = dict.fromkeys(ColumnOptions.model_fields, Needs("dataset", "data_dir"))
    format: Literal["c", "nir", "onnx"]
    """c: a file of C99 without dependencies; computes the simulator's integers. nir: a graph of spiking neurons, in
    time steps. onnx: the closed form, with spikes at any time."""
    output: Path
    """File to write."""
    overwrite: bool = False
    """Replace the file if it exists."""

    # ---- C and NIR
    steps: Annotated[int | None, tyro.conf.arg(aliases=("--time-steps",)), ON_A_CLOCK] = Field(None, ge=2, le=4096)
    """Time steps per window; in NIR, a step takes 0.1 ms. Default: as many as the network's grid has, or 64."""
    weight_bits: Annotated[int | None, Needs(format=("c",))] = Field(None, ge=2, le=16)
    """Bits of a weight in C. Default: as many as the network's grid has, or 8."""

    # ---- ONNX
    hidden: Annotated[bool, Needs(format=("onnx",))] = False
    """Also output the activations of hidden layers."""

    # ---- check
    check: bool = False
    """Run the file in onnxruntime or snnTorch, and print how far spike times and logits are from PyTorch's. Compile C,
    and compare its classes with the simulator's. The exit status is 1 if the file gives an image another class."""
    check_images: Annotated[int, Needs("check")] = Field(20, ge=1, lt=2**31)
    """Number of images to check with."""
    dataset: Annotated[str | None, Needs("check")] = None
    """Check with test images of this Hub data set, or of "sample". Default: random pixels."""
    data_dir: Annotated[Path | None, Needs("check")] = None
    """Check with test images of this local folder: parquet files or class folders. Nothing is downloaded."""


CARD_CHIPS = ("lemaire45:int8", "horowitz45:int8", "anp_i", "odin", "loihi")


class PublishOptions(CommandOptions):
    """Options of `ttfs publish`: run, repository, content of the card."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run that has ended, or a folder with config.json and model.safetensors."""
    repo_id: str
    """Repository on the Hub, owner/name; created if it does not exist."""
    public: bool = False
    """Let everybody see the repository. Default: only you and the members of your organisation can see it."""
    dry_run: bool = False
    """Print the files and the card; nothing is sent, and the Hub is not asked."""
    license: str | None = None
    """Licence of the model by the Hub's short name, such as apache-2.0. Default: none is stated."""
    dataset: str | None = None
    """Hub name of the training data, if the run read them from a local folder."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network; only for a network of your own."""
    with_code: bool = False
    """Publish the file of --network, too, but no other file that it imports. Readers run it only if they name it."""
    chip: tuple[str, ...] = CARD_CHIPS
    """Chips of the energy table: names of presets, or TOML files of yours."""


evaluate = partial(run_command, EvaluationOptions, "ttfs_triton.evaluate.command")
energy = partial(run_command, EnergyOptions, "ttfs_triton.evaluate.energy_command")
classify = partial(run_command, ClassificationOptions, "ttfs_triton.model.classification")
convert = partial(run_command, ConvertOptions, "ttfs_triton.convert.command")
calibrate = partial(run_command, CalibrateOptions, "ttfs_triton.convert.calibrate_grid")
export = partial(run_command, ExportOptions, "ttfs_triton.export.command")
publish = partial(run_command, PublishOptions, "ttfs_triton.hub.publish")
