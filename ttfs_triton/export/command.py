"""`ttfs export`: writes a network as C, ONNX or NIR, prints what the format cannot hold, checks the file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttfs_triton.atomic import write_bytes
from ttfs_triton.commands import ExportOptions
from ttfs_triton.data.pixels import to_float
from ttfs_triton.evaluate.load import LoadedNetwork, load_network, load_test_images
from ttfs_triton.export.c_source import to_c
from ttfs_triton.export.compare import Comparison, compare_c, compare_nir, compare_onnx
from ttfs_triton.export.nir_graph import to_nir
from ttfs_triton.export.onnx_graph import to_onnx
from ttfs_triton.export.shared import require
from ttfs_triton.table import Table, print_whole


def run(options: ExportOptions) -> None:
    """Export a network, print the file's size and the format's limits, and check the file if asked to.

    If the file gives some images another class, the check raises RuntimeError, and the file stays.
    """
    if options.output.exists() and not options.overwrite:
        raise ValueError(f"export: output must be new; got {options.output}. Replace it by --overwrite, or rename it.")
    loaded = load_network(options.model, options.network)
    data, said, check = _translate(options, loaded)
    images, labels = _images(options, loaded) if options.check else (None, None)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(options.output, data)
    print(f"written: {options.output}, {len(data):,} bytes, {options.format.upper()}")
    if said:
        print("What the format does not hold:")
        print("\n".join(f"  - {sentence}" for sentence in said))
    if images is None:
        return
    comparison = check(images)
    show(comparison, labels)
    if comparison.different:
        rounded = options.format == "nir" and loaded.description.network.grid is None
        remedy = "Raise --steps: spike times are rounded to steps. " if rounded else ""
        if labels is None:
            remedy += "Random pixels lie on borders more often than images do: give images by --data-dir or --dataset."
        raise RuntimeError(
            f"export: {comparison.program} must decide as PyTorch does; got {comparison.different} of "
            f"{comparison.images} images with another class. {remedy}".strip()
        )


def _translate(
    options: ExportOptions, loaded: LoadedNetwork
) -> tuple[bytes, list[str], Callable[[Tensor], Comparison]]:
    """The file's content, sentences on what the format does not hold, and the function that checks the file."""
    network, dataset = loaded.network, loaded.description.dataset or ""
    about: dict[str, Any] = {"class_names": network.class_names, "dataset": dataset}
    if options.format == "onnx":
        data = to_onnx(network, hidden=options.hidden, **about).SerializeToString()
        grid, said = loaded.description.network.grid, list[str]()
        if grid is not None and grid.state_bits is not None:
            said.append("Registers that saturate: the file's potentials have no bounds.")
        return data, said, lambda images: compare_onnx(data, network, images)
    if options.format == "c":
        chosen: dict[str, Any] = {"steps": options.steps or "network", "weight_bits": options.weight_bits or "network"}
        source = to_c(network, **chosen, about={"Network": loaded.files.name})
        return source.encode(), [], lambda images: compare_c(source, network, images, **chosen)
    nir, file = require("export", "nir", "nir"), io.BytesIO()
    graph = to_nir(network, steps=options.steps, **about)
    nir.write(file, graph)
    data, said = file.getvalue(), json.loads(graph.metadata["not_expressed"])
    return data, said, lambda images: compare_nir(nir.read(io.BytesIO(data)), network, images)


def _images(options: ExportOptions, loaded: LoadedNetwork) -> tuple[Tensor, Tensor | None]:
    """Test images and labels if a data set is named, else random pixels."""
    if options.dataset is None and options.data_dir is None:
        generator = torch.Generator().manual_seed(0)
        shape = (options.check_images, *loaded.network.image_shape)
        return torch.rand(shape, generator=generator), None
    data = load_test_images(loaded, **options.images_named(), max_samples=options.check_images, progress=True)
    return to_float(data.images_at(torch.arange(len(data)))), data.labels


def show(comparison: Comparison, labels: Tensor | None) -> None:
    """Print a comparison; with labels, accuracies too."""
    kind = "random" if labels is None else "test"
    headers = ("layer", "spikes", "|Δt| mean", "|Δt| largest", "fires in one only", "fires again")
    if comparison.times:
        rows = [
            (t.layer, f"{t.spikes:,}", f"{t.mean:.2g}", f"{t.largest:.2g}", f"{t.one_sided:.2%}", f"{t.repeated:,}")
            for t in comparison.times
        ]
        title = f"{comparison.program} beside PyTorch: {comparison.images:,} {kind} images"
        print_whole(Table(title, headers, rows, caption="times in windows"))
    lines = []
    if comparison.logits is not None:
        lines.append(f"largest difference of logits  {comparison.logits:.2g}")
    lines.append(f"same decisions                {comparison.same_decisions:,} of {comparison.images:,}")
    if comparison.ties:
        remedy = "; random pixels tie more often than images of --data-dir" if labels is None else ""
        lines.append(f"earliest spikes tied          {comparison.ties:,} images, decided for the lower class{remedy}")
    if comparison.silent:
        lines.append(f"no output spike               {comparison.silent:,} images, undecided there, by potential here")
    if labels is not None:
        decided = (comparison.predictions, comparison.decided_here)
        there, here = ((classes == labels).float().mean().item() for classes in decided)
        lines.append(f"accuracy                      {there:.2%} there, {here:.2%} here")
    print("\n".join(lines))
