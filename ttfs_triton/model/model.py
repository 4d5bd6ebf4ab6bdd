"""`TTFSModel`: a network that can be saved, loaded and published, and that classifies images."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, overload

import torch
from huggingface_hub import ModelCardData
from PIL import Image
from torch import Tensor, nn

import ttfs_triton
from ttfs_triton.model.classification import Classification, classify_batch, network_input, split_images
from ttfs_triton.model.description import LIBRARY, PAPER, TAGS, BaseModel, ModelDescription, describe_network
from ttfs_triton.model.files import ModelFiles, find_model, load_tensors, model_bytes, read_model, write_model
from ttfs_triton.model.hub import check_account, open_repository, upload
from ttfs_triton.model.own_network import Network, OwnNetwork
from ttfs_triton.nn import NetworkConfig, NetworkGraph, TTFSNetwork, network_graph
from ttfs_triton.nn.trace import TURNS, evaluating, image_shape_of, unwrapped


class TTFSModel(nn.Module):
    """A network with its class names and image preprocessing; its state dict and attributes are the network's.

    Args:
        network: configuration of a `TTFSNetwork`, or any network that `network_graph` takes.
        class_names, dataset, base_model: see `ModelDescription`.
        image_shape: (channels, height, width) of an image; as in `network_graph`.
        builder: name of the code that builds a network other than a `TTFSNetwork` ("file.py:function"). It is a hint to
            readers of the saved files, which hold no code. Default: the name of the network's class.
    Attributes:
        network: the network.
    Raises:
        NetworkError: as `network_graph`.
        ValueError: as `TTFSNetwork` and `ModelDescription` do.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ttfs_triton.nn import NetworkConfig
        >>> config = NetworkConfig("4C3-P2-16", image_size=(8, 8), classes=2)
        >>> model = TTFSModel(config, class_names=["cat", "dog"])
        >>> with TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     loaded = TTFSModel.from_pretrained(folder)
        >>> loaded.class_names, torch.equal(loaded.readout.weight, model.readout.weight)
        (('cat', 'dog'), True)
    """

    def __init__(
        self,
        network: NetworkConfig | nn.Module,
        *,
        class_names: Sequence[str] | None = None,
        dataset: str | None = None,
        base_model: BaseModel | None = None,
        image_shape: Sequence[int] | None = None,
        builder: str | None = None,
    ) -> None:
        super().__init__()
        self.network = TTFSNetwork(network) if isinstance(network, NetworkConfig) else network
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        config = describe_network(self.network, image_shape, builder)
        self._description = ModelDescription.of(config, class_names=class_names, dataset=dataset, base_model=base_model)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the network."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":
                raise
            return getattr(self.network, name)

    @property
    def description(self) -> ModelDescription:
        """The content of config.json."""
        described = self._description.network
        builder = described.builder if isinstance(described, OwnNetwork) else None
        return self._description.replace(network=describe_network(self.network, self.image_shape, builder))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        return (self._description.network.in_channels, *self._description.network.image_size)

    @property
    def graph(self) -> NetworkGraph:
        """The graph of the network's layers, as they are now."""
        return network_graph(self.network, self.image_shape)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self._description.class_names

    @classmethod
    def from_network(cls, network: nn.Module, *, image_shape: Sequence[int] | None = None, **options: Any) -> Self:
        """A model with a copy of a network, in evaluation mode, on the same device and in the same precision.

        Args:
            network: the network whose layers and weights are copied.
            image_shape, class_names, dataset, base_model, builder: as in `TTFSModel`.
        """
        bare = unwrapped(network)
        return cls(deepcopy(bare), image_shape=image_shape_of(bare, image_shape), **options).eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        network: Network | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """A trained model, in the precision it was saved in, and in evaluation mode; `model.train()` to train on.

        The file must have all tensors of the network and no others, and its checksum must be right.

        Args:
            pretrained_model_name_or_path: a run's folder (of its best weights), a folder with config.json and
                model.safetensors, a .safetensors file beside its config.json, "bundled:NAME" for a network of the
                package, which computes in float32, or a repository "owner/name", also with "@revision". The Hub is
                asked only for what does not exist locally.
            network: only if your code builds the network: the network, whose weights are then replaced; a function
                without arguments that builds it; or "FILE.py:FUNCTION", which is run. Code in a model's files is not.
            revision: branch, tag or commit of a repository.
            device: device that the model is moved to.
            token, cache_dir, force_download, local_files_only: as in `huggingface_hub.snapshot_download`.
        Raises:
            LoadError: no such folder or file, damaged files, weights of another network, or no `network` where your
                code builds it.
            HubError: no such repository, no right to read it, or no connection and nothing in the cache.
        """
        download = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
        download |= {"local_files_only": local_files_only}
        files = find_model(pretrained_model_name_or_path, revision=revision, **download)
        return cls.from_files(files, network).to(device)

    @classmethod
    def from_files(cls, files: ModelFiles, network: Network | None = None) -> Self:
        """As `from_pretrained`, from the files that `find_model` gives.

        Raises:
            LoadError: damaged files, or weights of another network.
            ValueError: as `build_network_of`.
        """
        description, built, tensors = read_model(files, network)
        load_tensors(built, tensors)
        described = description.network
        model = cls(built, image_shape=(described.in_channels, *described.image_size))
        if isinstance(network, str) and isinstance(described, OwnNetwork):
            description = description.replace(network=replace(described, builder=network))
        model._description = description
        return (model.float() if files.bundled else model).eval()

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = False) -> None:
        """Write config.json and model.safetensors; loading them gives the same model bit for bit.

        Args:
            save_directory: folder for the files, created if needed. Other files in it are left alone.
            overwrite: replace another model that is there.
        Raises:
            ValueError: another model is there; nothing has been written.
            OSError: the files cannot be written; no half-written file is left.
        """
        folder, description = Path(save_directory), self.description
        files = {folder / name: content for name, content in model_bytes(self.state_dict(), description).items()}
        if not overwrite and any(path.is_file() and path.read_bytes() != files[path] for path in files):
            raise ValueError(
                f"save_pretrained: save_directory must hold no other model; got {folder}, which does. "
                "Give overwrite=True to replace it, or another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder, self.state_dict(), description)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        license: str | None = None,
        commit_message: str = "Publish model",
    ) -> str:
        """Publish this model as it is, with a short card; `ttfs publish` writes one with a run's results.

        Args:
            repo_id: "owner/name"; created if needed.
            private: visible only to you or the members of your organisation.
            token: access token. Default: the token of `hf auth login`, or HF_TOKEN.
            license: the model's license, by the Hub's short name, such as "apache-2.0". Default: none is stated.
            commit_message: first line of the commit.
        Returns:
            The address of the commit.
        Raises:
            HubError: no token, no right to write there, a repository that is not `private` as asked, or no connection.
        """
        check_account(repo_id, token=token)
        open_repository(repo_id, private=private, token=token)
        files = model_bytes(self.state_dict(), self.description)
        files["README.md"] = self._plain_card(repo_id, license).encode()
        return upload(files, repo_id, token=token, commit_message=commit_message)

    def _plain_card(self, repo_id: str, license: str | None) -> str:
        """A model card without a run's results: the kind of network, and how to load it."""
        described, base = self.description.network, self.description.base_model
        metadata = ModelCardData(
            license=license,
            library_name=LIBRARY,
            pipeline_tag="image-classification",
            tags=TAGS,
            base_model=None if base is None else base.name,
            model_name=repo_id.rpartition("/")[2],
        )
        build = "" if isinstance(described, NetworkConfig) else f", {described.argument}"
        example = "image.png" if self._description.preprocessing.events is None else "recording.npz"
        return (
            f"---\n{metadata.to_yaml()}\n---\n\n# {repo_id.rpartition('/')[2]}\n\n"
            f"A time-to-first-spike network ([Wei et al., ICCV 2023]({PAPER})), made with `{LIBRARY}` "
            f"{ttfs_triton.__version__}. Not evaluated.\n\n```python\nfrom ttfs_triton import TTFSModel\n\n"
            f'model = TTFSModel.from_pretrained("{repo_id}"{build})\nprint(model.classify("{example}"))\n```\n'
        )

    @overload
    def classify(self, images: Image.Image | str | Path, *, top_k: int = 5, batch_size: int = 64) -> Classification: ...

    @overload
    def classify(self, images: Any, *, top_k: int = 5, batch_size: int = 64) -> Any: ...

    def classify(self, images: Any, *, top_k: int = 5, batch_size: int = 64) -> Classification | list[Classification]:
        """Classify images, whose colours and size are converted as in training, with the network in evaluation mode.

        Calls from several threads take turns.

        Args:
            images: one image or a list: Pillow images, paths, arrays [height, width, C] and tensors [C, height, width],
                uint8 or floating point in [0, 1], without C for gray images; or a batch, [N, height, width, C] as an
                array, [N, C, height, width] as a tensor.
            top_k: classes to list, at most as many as there are.
            batch_size: number of images that run together.
        Returns:
            A `Classification` for one image, else a list of them.
        Raises:
            TypeError, ValueError: an image or a number that cannot be used.

        Example:
            >>> from ttfs_triton.nn import NetworkConfig
            >>> config = NetworkConfig("4C3-P2-16", image_size=(8, 8), classes=2)
            >>> model = TTFSModel(config, class_names=["cat", "dog"])
            >>> results = model.classify(torch.rand(3, 1, 8, 8))
            >>> [score.class_name for score in results[0].top] in (["cat", "dog"], ["dog", "cat"])
            True
            >>> results[0].decision_time  # three layers fire before the output's potential is read
            3.0
        """
        if min(top_k, batch_size) < 1:
            raise ValueError(f"classify: top_k and batch_size must be at least 1; got {top_k} and {batch_size}.")
        single, one = split_images(images)
        if not single:
            return []
        inputs = network_input(single, self._description.preprocessing, self.image_shape[0])
        results = list[Classification]()
        with TURNS, evaluating(self):
            graph, parameter = self.graph, next(self.parameters())
            for batch in inputs.to(parameter.device, parameter.dtype).split(batch_size):
                results += classify_batch(self.network, graph, batch, self.class_names, top_k)
        return results[0] if one else results


_PREFIX = "network."


def _without_prefix(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """Name the tensors in the state dict as the network does."""
    names = [name for name in state if name.startswith(prefix + _PREFIX)]
    state |= {prefix + name.removeprefix(prefix + _PREFIX): state.pop(name) for name in names}


def _with_prefix(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    names = [name for name in state if name.startswith(prefix)]
    state |= {prefix + _PREFIX + name.removeprefix(prefix): state.pop(name) for name in names}
