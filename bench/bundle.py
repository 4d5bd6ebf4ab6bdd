"""Make a bundled network from a run: folded, rounded to bfloat16, scored on the whole test set.

python bench/bundle.py runs/mnist cnn1-mnist
python bench/bundle.py runs/mnist cnn1-mnist --dataset ylecun/mnist --data-dir FOLDER --commit 2e6a451
"""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from accelerate import Accelerator
from pydantic import Field

from ttfs_triton.atomic import make_folder, write_json
from ttfs_triton.command_line import run_command
from ttfs_triton.energy import counting
from ttfs_triton.evaluate import EvaluationBatches, device_name, evaluate, versions
from ttfs_triton.evaluate.load import LoadedNetwork, load_network, load_test_images
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model.files import FACTS, FOLDER, MOST_BYTES, PREFIX, WEIGHTS, checksum, model_bytes, write_model
from ttfs_triton.shared_options import CommandOptions


class BundleOptions(CommandOptions):
    """Options of `bundle`."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of a run that has ended."""
    name: Annotated[str, tyro.conf.Positional] = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Name of the network: small letters, digits and hyphens."""
    dataset: str | None = None
    """Hub name of the training data set. Default: the run's; data from a local folder have none."""
    data_dir: Path | None = None
    """Local copy of the data set. Default: the data of the run."""
    commit: str = ""
    """Git commit at which the run began, if you know it."""
    output_dir: Path = FOLDER
    """Folder in which the folder NAME is made."""


def bundle(options: BundleOptions) -> Path:
    """Write the network's folder, unless all networks together exceed `MOST_BYTES`; print its size and accuracy."""
    loaded = load_network(options.run)
    facts = read_facts(loaded.files, dataset=options.dataset)
    network = loaded.network
    network.fold_batch_norm()
    network.fold_standardisation()
    network.bfloat16()
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.float()
    description = loaded.description.replace(dataset=facts.dataset or loaded.description.dataset)
    folder = options.output_dir / options.name
    size = sum(map(len, model_bytes(tensors, description).values()))
    others = sum(file.stat().st_size for file in options.output_dir.rglob("*") if folder not in file.parents)
    if size + others > MOST_BYTES:
        raise ValueError(
            f"bundle: all networks together must have at most {MOST_BYTES:,} bytes; got {size + others:,} with "
            f"{options.name}. Bundle a smaller one."
        )
    figures = score(loaded, options.data_dir)
    make_folder(folder)
    write_model(folder, tensors, description)
    training = {"settings": dict(facts.settings), **facts.training, "commit": options.commit}
    about = {
        "weights": "bfloat16, norms folded; figures are of these weights, computed in float32",
        "tensors_sha256": checksum(tensors),
        "dataset": description.dataset,
        "made_by": f"python bench/bundle.py {Path(options.run).name} {options.name}",
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    write_json(folder / FACTS, figures | about | {"training": training})
    accuracy = f"{figures['test_accuracy']:.2%} of {figures['test_images']:,} images"
    print(f"{PREFIX}{options.name}: {size:,} bytes, {accuracy}")
    print(f"written: {folder / WEIGHTS}")
    return folder


def score(loaded: LoadedNetwork, data_dir: Path | None) -> dict[str, Any]:
    """Accuracy, activity and operations of a network on the whole test set."""
    data = load_test_images(loaded, data_dir=data_dir, progress=True)
    with counting(loaded.network, histogram_bins=0) as counter:
        scores = evaluate(loaded.network, EvaluationBatches(data, None, 500), Accelerator(cpu=True))
    counts = counter.counts()
    return {
        "test_accuracy": scores.accuracy,
        "test_first_spike_accuracy": scores.first_spike_accuracy,
        "test_images": scores.images,
        "sparsity": counts.sparsity,
        "sparsity_as_published": counts.sparsity_as_published,
        "synaptic_operations": counts.total()["synaptic_operations"] / counts.samples,
        "scored_on": device_name(next(loaded.network.parameters()).device),
        "scored_with": versions(),
    }


main = partial(run_command, BundleOptions, bundle, __doc__)

if __name__ == "__main__":
    main()
