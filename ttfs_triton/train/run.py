"""`train` runs a recipe from start to finish; `Trainer` does so for any network of our layers and data in memory."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ttfs_triton.command_line import lacks_memory, program, text_of
from ttfs_triton.data.decode import DataLostError
from ttfs_triton.hub.publish import publish
from ttfs_triton.model.hub import HubError, check_account, open_repository
from ttfs_triton.model.own_network import file_and_function
from ttfs_triton.nn.trace import unwrapped
from ttfs_triton.run_records import METRICS
from ttfs_triton.train.build import check_network, start_on_grid
from ttfs_triton.train.checkpoint import Checkpoint, CheckpointError, check_same_run, latest_checkpoint
from ttfs_triton.train.config import ConfigError, TrainConfig
from ttfs_triton.train.data import RunData, Split, check_loaded, load_data, run_data
from ttfs_triton.train.device import GraphError, Interrupted, ask_main_process, emulates_bfloat16, make_accelerator
from ttfs_triton.train.display import Display
from ttfs_triton.train.learner import NonFiniteLossError
from ttfs_triton.train.loop import Callback, TrainingLoop
from ttfs_triton.train.run_folder import RunFolder, RunFolderError, reason_of


class DeviceLostError(RuntimeError):
    """The GPU or a worker process failed, or memory ran out, in the middle of a run; saved files are intact."""


ERRORS = (
    ConfigError,
    RunFolderError,
    CheckpointError,
    NonFiniteLossError,
    DeviceLostError,
    GraphError,
    DataLostError,
    Interrupted,
)
"""Errors of `train` that the user can fix."""


def train(
    config: TrainConfig,
    name: str = "run",
    *,
    network: nn.Module | None = None,
    data: RunData | None = None,
    callbacks: Sequence[Callback] = (),
    again: str | None = None,
) -> dict[str, Any]:
    """Train a network as configured; every error message says how to go on.

    Args:
        name: name of the default output folder and of the trackers' project.
        network: the network to train; it holds the best weights at the end. See `Trainer`. Default: as configured.
        data: data of the run. Default: as configured.
        again: command that resumes the run, for messages. Default: the recipe's.
    Returns:
        The content of `summary.json`.
    Raises:
        ConfigError, RunFolderError, CheckpointError: the run cannot begin or resume as asked, or the disk failed.
        Interrupted: a signal asked to stop; a checkpoint was written.
        NonFiniteLossError: loss, gradient or averaged weights are not finite; the run stopped before the update.
        DeviceLostError: the GPU or a worker process failed, or memory ran out.
        GraphError: steps cannot be captured in a CUDA graph, although `cuda_graph` is on.
        DataLostError: image files vanished; a checkpoint was written, unless there are several processes.
    """
    if data is None and config.dataset is None and config.data_dir is None:
        raise ConfigError("give --dataset (a Hub name, or sample) or --data-dir (a local folder).")
    if config.teacher is not None and os.path.exists(config.teacher):  # "folder/name" looks like a name on the Hub
        config = config.model_copy(update={"teacher": os.path.abspath(config.teacher)})
    accelerator = make_accelerator(config)
    folder = _agree_on_folder(config, accelerator, name)
    display = Display(accelerator.is_main_process)
    try:
        # Hub rights: token and name are checked before data are loaded, the repository as soon as the run can begin.
        _ask_hub(config, accelerator, partial(check_account, str(config.hub_repo_id)))
        checkpoint, summary = _go_on(config, folder) if config.resume else (None, None)
        if summary is None:
            for warning in _warnings(config, accelerator):
                display.say(f"warning: {warning}")
            with _explained(folder, partial(_advice, folder, config, again, in_program=network is not None)):
                with _beginning():
                    if network is None and config.network is not None:
                        file_and_function(config.network)  # raises before data are loaded
                    data = data or load_data(config, accelerator)
                    loop = TrainingLoop(config, accelerator, data, folder, display, network, callbacks, checkpoint)
                del checkpoint  # its tensors take memory
                open_hub = partial(open_repository, str(config.hub_repo_id), private=config.hub_private)
                _ask_hub(config, accelerator, open_hub)
                summary = loop.run(name)
        else:
            display.say(f"This run has ended already: {folder.path}")
            if network is not None:
                if config.grid is not None:
                    start_on_grid(network, config.grid)
                folder.load_best(network)
        for tracker in accelerator.trackers:  # `end_training` would end the process group, but programs may train again
            tracker.finish()
        _publish(config, folder.path, accelerator, network)
        return summary
    finally:
        folder.release()


@contextmanager
def _beginning() -> Iterator[None]:
    """Errors in the `with` block become a ConfigError, except those of lost devices and damaged checkpoints."""
    try:
        yield
    except (CheckpointError, torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except (ValueError, RuntimeError, OSError, MemoryError, OverflowError) as error:
        raise ConfigError(text_of(error)) from error


def _warnings(config: TrainConfig, accelerator: Accelerator) -> Iterator[str]:
    """What a user should know before a run begins."""
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16" and emulates_bfloat16():
        yield "this CPU emulates bf16, which takes far longer than float32; use --mixed-precision no"
    starts = config.weights is None and not config.resume
    if starts and config.preset == "paper" and config.model in ("vgg11", "vgg16"):
        yield (
            "the paper starts from the weights of an ANN, this run from random ones. Its two stages: "
            f"{program()} --preset paper_ann --output-dir ANN, then {program()} --preset paper --weights ANN"
        )


@contextmanager
def _explained(folder: RunFolder, advice: Callable[[], str]) -> Iterator[None]:
    """Errors in the `with` block name the last checkpoint and say how to go on."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}\n{advice()}", stopped.received) from None
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error} Last good checkpoint: {folder.last_checkpoint}.") from error
    except DataLostError as error:
        reason = str(error).splitlines()[-1].split("DataLostError: ")[-1]  # a worker's error comes with its traceback
        raise DataLostError(f"{reason} Last checkpoint: {folder.last_checkpoint}. {advice()}") from error
    except (MemoryError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
        go_on = f"{advice()[0].lower()}{advice()[1:]}"
        if isinstance(error, torch.OutOfMemoryError):
            rule = "the device's memory must suffice"
            remedy = (
                "Start again with a smaller --batch-size, or with more --gradient-accumulation at the same one; or "
                f"free memory (--data-placement host, a smaller --evaluation-batch-size, no other program) and {go_on}"
            )
        elif isinstance(error, torch.AcceleratorError):
            rule, remedy = "the device must work to the end", advice()
        elif lacks_memory(error) or "DataLoader worker" in str(error):
            rule = "main memory must suffice, and worker processes must live to the end"
            remedy = f"Free memory (fewer --num-workers, no other program) and {go_on}"
        else:
            raise
        raise DeviceLostError(
            f"train: {rule}; got {reason}. Last checkpoint: {folder.last_checkpoint}. {remedy}"
        ) from error
    except OSError as error:
        problem = f"files must be readable and writable to the end; got {reason_of(error)}."
        remedy = f"Fix that. {advice()}"
        if not folder.path.is_dir():
            problem = f"{folder.path} must stay where it is while a run writes; it was moved or deleted."
            remedy = "Move it back and go on with --resume, or start anew."
        raise RunFolderError(f"train: {problem} Last checkpoint: {folder.last_checkpoint}. {remedy}") from error


def _advice(folder: RunFolder, config: TrainConfig, again: str | None, *, in_program: bool) -> str:
    """Sentence for messages that says how to resume; `in_program`: a user's program calls `train`."""
    if again is None and not folder.is_run():
        return "Start it again."
    if again is None and in_program:
        return f"Go on with: this program, output_dir={str(folder.path)!r} and resume=True in its TrainConfig"
    words = [*shlex.split(program()), "--output-dir", str(folder.path), "--resume"]
    words += [] if config.network is None else ["--network", config.network]
    return f"Go on with: {again or shlex.join(words)}"


def _agree_on_folder(config: TrainConfig, accelerator: Accelerator, name: str) -> RunFolder:
    """The main process chooses and claims the folder; the others get its path, or its error."""

    def choose() -> str:
        if config.resume and config.output_dir is None:
            raise RunFolderError("--resume needs the folder of the run to resume. Add --output-dir runs/NAME.")
        folder = RunFolder(config.output_dir or _new_folder(name))
        if config.overwrite:
            folder.check_inputs(config)
        folder.claim(resume=config.resume, overwrite=config.overwrite)
        chosen.append(folder)
        return str(folder.path)

    chosen: list[RunFolder] = []
    path = ask_main_process(accelerator, choose, RunFolderError)
    return chosen[0] if chosen else RunFolder(Path(path))


def _new_folder(name: str) -> Path:
    """Make a new folder under runs/; runs that start in the same second get different folders."""
    first = path = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(2):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path = first.with_name(f"{first.name}-{number}")
        except OSError as error:
            raise RunFolderError(f"runs must be a folder that can be written; got {reason_of(error)}.") from error
    return path


def _go_on(config: TrainConfig, folder: RunFolder) -> tuple[Checkpoint | None, dict[str, Any] | None]:
    """The checkpoint to resume from, which `config` must not contradict, and the summary if the run has ended."""
    checkpoint, summary = latest_checkpoint(folder.checkpoints), folder.read_summary()
    stopped = checkpoint is not None and checkpoint.state.ended(config)
    ended = summary is not None and (stopped or summary["epochs"] >= config.epochs)
    if checkpoint is not None:
        check_same_run(checkpoint, config)
        folder.last_checkpoint = str(checkpoint.path)
    elif (folder.path / METRICS).is_file() and not ended:
        raise RunFolderError(
            f"--resume: {folder.checkpoints} must hold a checkpoint, since metrics.jsonl lists epochs; there is none "
            "of this version. Restore one, resume with the version that began the run, or start again with --overwrite."
        )
    return checkpoint, summary if ended else None


def _ask_hub(config: TrainConfig, accelerator: Accelerator, check: Callable[[], object]) -> None:
    """If the run is to be published, call `check` in the main process; its HubError ends all processes."""
    if not config.push_to_hub:
        return
    try:
        ask_main_process(accelerator, check, HubError)
    except HubError as error:
        raise ConfigError(f"push_to_hub: {error}") from error


def _publish(config: TrainConfig, run: Path, accelerator: Accelerator, network: nn.Module | None) -> None:
    """Publish a run that has ended, if asked for. After a failure, print the command that publishes it by hand."""
    if not (config.push_to_hub and accelerator.is_main_process):
        return
    repo_id = str(config.hub_repo_id)
    try:
        built = config.network if network is None else deepcopy(network)
        _, url = publish(run, repo_id, private=config.hub_private, license=config.hub_license, network=built)
    except Exception as error:  # whatever failed, training must not seem to have failed
        words = ["ttfs", "publish", str(run), "--repo-id", repo_id]
        words += ["--public"] if not config.hub_private else []
        words += ["--license", config.hub_license] if config.hub_license else []
        words += ["--network", config.network] if config.network else []
        message = f"warning: the run is complete, but it was not published. {error}\nPublish it by: {shlex.join(words)}"
        print(message, file=sys.stderr)
        return
    Display(accelerator.is_main_process).say(f"published                {url}")


class Trainer:
    """Trains a network as a recipe does: with validation, best weights, checkpoints, run folder, several processes.

    Args:
        network: any module that `network_graph` accepts. At the end it holds the best weights, on the device that
            trained it.
        data: training and test images; see `Split`. Validation images are set aside as `config` says.
        config: configuration of the run, without keys that describe a network. Default: the defaults of `TrainConfig`.
        callbacks: see `Callback`.
        name: name of the default output folder and of the trackers' project.
    Raises:
        ConfigError: the network has unknown layers or does not fit the images; or `config` has keys that describe a
            network or load images.
        ValueError: images or labels cannot be used.
    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ttfs_triton.nn import DFTLinear, LatencyEncoder, Readout
        >>> network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, 8), Readout(8, 2))
        >>> labels = torch.arange(64) % 2
        >>> images = torch.randint(0, 100, (64, 1, 8, 8), dtype=torch.uint8) + 100 * labels.byte().view(-1, 1, 1, 1)
        >>> with TemporaryDirectory() as folder:
        ...     config = TrainConfig(epochs=2, batch_size=16, cpu=True, output_dir=f"{folder}/run")
        ...     summary = Trainer(network, ((images, labels), (images, labels)), config).train()
        images: 0.0 MiB in main memory...
        >>> summary["epochs"], 0 <= summary["test_accuracy"] <= 1
        (2, True)
    """

    def __init__(
        self,
        network: nn.Module,
        data: RunData | tuple[Split, Split],
        config: TrainConfig | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        name: str = "run",
    ) -> None:
        config = config or TrainConfig()
        if config.preset is not None:
            raise ConfigError(f"Trainer: config must have no preset, which only recipes have; got {config.preset}.")
        if given := config.network_keys():
            raise ConfigError(
                f"Trainer: config must leave the network's keys at their defaults; got {', '.join(given)}."
            )
        check_loaded(config)
        self.network, self.callbacks, self.name = unwrapped(network), tuple(callbacks), name
        self.data = data if isinstance(data, RunData) else run_data(*data, config)
        builder = config.network or type(self.network).__qualname__
        self.config = config.model_copy(update={"network": builder, "dataset": self.data.train.dataset})
        check_network(self.network, self.data)

    def train(self) -> dict[str, Any]:
        """Train to the end; see `ttfs_triton.train.train` for what it raises.

        Returns:
            The content of `summary.json`.
        """
        return train(self.config, self.name, network=self.network, data=self.data, callbacks=self.callbacks)
