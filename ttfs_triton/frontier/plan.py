"""What a sweep is going to do, and whether it can: everything that is wrong is said before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from ttfs_triton.data.images import draw_images, train_validation_split
from ttfs_triton.evaluation import LoadedNetwork, load_network
from ttfs_triton.frontier.options import FrontierOptions
from ttfs_triton.frontier.points import Point
from ttfs_triton.frontier.settings import point_config, settings_of
from ttfs_triton.hardware import load_chip
from ttfs_triton.nn import TTFSNetwork
from ttfs_triton.train.build import RunData, build_network, check_network
from ttfs_triton.train.config import FREE_ON_RESUME, ConfigError, TrainConfig, changed_keys, make_config, read_yaml
from ttfs_triton.train.run_folder import RunFolder, RunFolderError
from ttfs_triton.train.target import TARGET_IMAGES, make_target


@dataclass(frozen=True)
class PlannedPoint:
    """A point that is to be trained, or that has been.

    Attributes:
        point: what for.
        folder: of its run.
        config: of its run; it says to go on if the run has begun.
    """

    point: Point
    folder: RunFolder
    config: TrainConfig

    @property
    def ended(self) -> bool:
        """Whether it has been trained to the end."""
        return self.folder.read_summary() is not None


@dataclass(frozen=True)
class PlannedNetwork:
    """A network of the sweep and its points.

    Attributes:
        name: of folders and rows.
        loaded: the network.
        config: of a run that would go on as before: it says which images are read, and how.
        points: that are trained.
    """

    name: str
    loaded: LoadedNetwork
    config: TrainConfig
    points: tuple[PlannedPoint, ...]


def make_plan(options: FrontierOptions) -> list[PlannedNetwork]:
    """The networks with all their points, as far as that can be known without images.

    Raises:
        LoadError, HubError: no such network.
        ValueError: networks of one name, an ANN, unknown chips.
        ConfigError: points that no run can be made of, or whose folders hold other runs; names all of them.
    """
    for chip in options.chip:
        load_chip(chip)
    networks = [_network(source, options) for source in options.runs]
    names = [network.name for network in networks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"frontier: runs must differ in their names; got {', '.join(twice)} twice. Rename a folder.")
    if len({network.config.mixed_precision for network in networks}) > 1:
        raise ValueError(
            "frontier: runs must be of one mixed_precision; got "
            f"{', '.join(f'{network.name} {network.config.mixed_precision}' for network in networks)}. "
            "Sweep them one by one, or give it in --config."
        )
    return networks


def _network(source: str, options: FrontierOptions) -> PlannedNetwork:
    loaded = load_network(source, options.network)
    name = loaded.files.name
    if loaded.description.network.analog:
        raise ValueError(f"frontier: runs must be of networks that spike; got an ANN in {source}. Convert it first.")
    settings = settings_of(source, loaded, options)
    if settings["dataset"] is None and settings.get("data_dir") is None:
        raise ConfigError(f"frontier: --data-dir or --dataset must name the images of {source}; got neither.")
    problems, points = [], []
    for point in options.trained():
        folder = options.output_dir / "points" / name / point.folder
        try:
            points.append(_planned(settings, point, folder))
        except (ConfigError, RunFolderError) as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("frontier: nothing was trained, for some points cannot be:\n" + "\n".join(problems))
    return PlannedNetwork(name, loaded, point_config(settings, None, options.output_dir), tuple(points))


def _planned(settings: dict[str, object], point: Point, path: Path) -> PlannedPoint:
    config, folder = point_config(settings, point, path), RunFolder(path)
    if not folder.is_run():
        return PlannedPoint(point, folder, config)
    saved = make_config(read_yaml(path / "config.yaml"), str(path / "config.yaml"))
    config = config.model_copy(update={"cpu": saved.cpu})  # it goes on where it began
    if changes := changed_keys(saved, config):
        lines = ", ".join(f"{key}: {before!r} → {after!r}" for key, (before, after) in changes.items())
        raise ConfigError(
            f"{path} holds a run of other settings, {lines}. Give those again, or another --output-dir, or remove it."
        )
    free = {key: value for key, value in config.model_dump().items() if key in FREE_ON_RESUME}
    return PlannedPoint(point, folder, make_config(saved.model_dump() | free | {"resume": True}, str(path)))


def check_points(network: PlannedNetwork, data: RunData, options: FrontierOptions, accelerator: Accelerator) -> None:
    """Refuse, before any training, points that these images and this network do not allow.

    Args:
        network: with its points; those that have ended are not looked at.
        data: its images.
        options: of the sweep.
        accelerator: whose device may calibrate.
    Raises:
        ConfigError: targets out of reach, grids that cannot hold the network, ...; names all points.
    """
    problems: list[str] = []
    if options.grids() and not isinstance(network.loaded.network.network, TTFSNetwork):
        problems.append(
            "time_steps: the network must have a specification to be calibrated; code of yours builds this one. Call "
            "ttfs_triton.nn.put_on_grid where you build it, and sweep that."
        )
    for planned in network.points:
        if planned.ended:
            continue
        config = planned.config
        try:
            if planned.folder.path.exists():  # it may be no run's, or another process's
                planned.folder.claim(resume=config.resume, overwrite=False)
                planned.folder.release()
            built, _ = build_network(config, data, accelerator.device, calibrated=False)
            check_network(built, data)
            if config.target is not None:
                among = split_for(config, data).train_indices
                images = draw_images(data.train, TARGET_IMAGES, config.seed, among)
                make_target(config.target, built, images, config.target_steps)
        except (ValueError, RuntimeError) as error:
            problems.append(f"{planned.point.name}: {error}")
    if problems:
        lines = "\n".join(problems)
        raise ConfigError(f"frontier: nothing was trained, for some points of {network.name} cannot be:\n{lines}")


def split_for(config: TrainConfig, data: RunData) -> RunData:
    """The same images, validation images held out as a point's seed has them."""
    if config.validation_fraction == 0:
        return data
    training, held_out = train_validation_split(data.train, config.validation_fraction, config.seed)
    return replace(data, train_indices=training, validation_indices=held_out)


def outline(networks: Sequence[PlannedNetwork]) -> list[str]:
    """What is to be trained, in lines."""
    lines = []
    for network in networks:
        left = [planned for planned in network.points if not planned.ended]
        begun = sum(planned.folder.is_run() for planned in left)
        lines.append(
            f"{network.name}: {len(network.points)} points, {len(left)} to train"
            + (f", {begun} of them begun" if begun else "")
        )
        lines += [f"  {planned.point.name}, {planned.config.epochs} epochs" for planned in left]
    return lines
