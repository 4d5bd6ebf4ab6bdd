"""A trained network from a run's folder or from its weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch

from ttfs_triton.nn import NetworkConfig, TTFSNetwork

FORMAT_VERSION = 1


class LoadError(ValueError):
    """A folder or file that holds no network of ours: says what was looked for and where."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with trained weights.

    Attributes:
        network: in evaluation mode, on the CPU.
        class_names: one name a class.
        dataset: name of the data set it was trained on.
        weights: the file.
        run: folder of the run, or None if there are weights only.
    """

    network: TTFSNetwork
    class_names: list[str]
    dataset: str
    weights: Path
    run: Path | None


def load_network(path: Path) -> LoadedNetwork:
    """Rebuild a network.

    Args:
        path: a run's folder (its best weights are taken), a folder with config.json and model.safetensors, or a
            safetensors file with a config.json beside it.
    Raises:
        LoadError: nothing there, a file that is damaged, or one that does not belong to the network beside it.
    """
    weights, run = _find(path)
    config = weights.with_name("config.json")
    if not config.is_file():
        raise LoadError(
            f"load_network: {config} must say what network the weights are of; there is none. "
            "Training writes one beside its weights; keep both together."
        )
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        version, network = found["format_version"], found["network"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise LoadError(f"load_network: {config} must be what training wrote; {error!r}.") from error
    if version > FORMAT_VERSION:
        raise LoadError(
            f"load_network: format_version in {config} must be at most {FORMAT_VERSION}; got {version}. "
            "Upgrade ttfs-triton."
        )
    try:
        model = TTFSNetwork(NetworkConfig.from_dict(network))
        model.load_state_dict(safetensors.torch.load_file(str(weights)))
    except (OSError, safetensors.SafetensorError) as error:
        raise LoadError(f"load_network: {weights} must be a whole safetensors file; {error}.") from error
    except (RuntimeError, ValueError) as error:
        raise LoadError(f"load_network: {weights} must hold the network of {config}; {error}") from error
    names = found.get("class_names") or [str(number) for number in range(model.config.classes)]
    return LoadedNetwork(model.eval(), names, str(found.get("dataset", "")), weights, run)


def _find(path: Path) -> tuple[Path, Path | None]:
    """The weights, and the run that they are of."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise LoadError(f"load_network: path must be a folder or a .safetensors file; got {path}.")
        return path, None
    if not path.is_dir():
        raise LoadError(f"load_network: path must exist; there is nothing at {path}.")
    for weights, run in ((path / "best" / "model.safetensors", path), (path / "model.safetensors", None)):
        if weights.is_file():
            return weights, run
    raise LoadError(
        f"load_network: {path} must hold best/model.safetensors (a run) or model.safetensors; it has neither. "
        "A run writes its best weights after the first epoch."
    )
