"""A trained network from a run's folder, from its weights, or from the Hub."""

from dataclasses import dataclass
from pathlib import Path

from ttfs_triton.model import ModelDescription, ModelFiles, TTFSModel, find_model


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with trained weights.

    Attributes:
        network: in evaluation mode, on the CPU.
        files: where it came from.
    """

    network: TTFSModel
    files: ModelFiles

    @property
    def description(self) -> ModelDescription:
        """Class names, preprocessing, and the data set that it was trained on."""
        return self.network.description


def load_network(source: str | Path) -> LoadedNetwork:
    """Rebuild a network.

    Args:
        source: a run's folder (its best weights are taken), a folder with config.json and model.safetensors, a
            safetensors file with a config.json beside it, or, as a string, "owner/name[@revision]" on the Hub.
    Raises:
        LoadError: nothing there, a file that is damaged, or one that does not belong to the network beside it.
        HubError: no such repository, no right to read it, or no connection and nothing in the cache.
    """
    files = find_model(source)
    return LoadedNetwork(TTFSModel.from_files(files), files)
