"""Files to publish: model card with metadata, results, configuration, weights. No file is copied from a run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ttfs_triton.commands import CARD_CHIPS
from ttfs_triton.energy import Counts, Run, RunOptions, dense_ann, estimate, fair_chip, load_chip, verdict
from ttfs_triton.energy.chip import energy_range
from ttfs_triton.evaluate.page import READOUTS, decision_lines, template_environment
from ttfs_triton.evaluate.tables import not_in_it
from ttfs_triton.hub.facts import ModelFacts
from ttfs_triton.model.description import CONFIG, LIBRARY, PAPER, TAGS
from ttfs_triton.model.files import WEIGHTS, model_bytes
from ttfs_triton.model.hub import REPOSITORY
from ttfs_triton.run_records import Summary
from ttfs_triton.training_options import TrainConfig
from ttfs_triton.wording import interval

# Arithmetic in 45 nm with memory and without, then chips that price synaptic operations.
CARD_STEPS = 32
CARD_HEADERS = (
    "chip",
    "with memory",
    "dense ANN with memory",
    "by arithmetic alone",
    "dense ANN by arithmetic alone",
    "all priced operations",
    "weakest price",
    "excluded: no published price, or no count (why)",
)
ALLOWED = (WEIGHTS, CONFIG, "README.md", "training.yaml")


def render_card(
    facts: ModelFacts, repo_id: str, *, license: str | None = None, chips: Sequence[str] = CARD_CHIPS
) -> str:
    """Text of README.md: YAML metadata, then the card. Equal facts give equal cards; counts are priced on `chips`."""
    templates = template_environment("ttfs_triton.hub", autoescape=False)  # Markdown: `words` makes texts harmless
    templates.filters |= {"words": words, "code": code}
    body = templates.get_template("card.md").render(_context(facts, repo_id, license, chips))
    return str(ModelCard(f"---\n{card_metadata(facts, repo_id, license).to_yaml()}\n---\n\n{body}"))


def card_metadata(facts: ModelFacts, repo_id: str, license: str | None = None) -> ModelCardData:
    """Metadata of the card, with results in the `model-index` form if all test images were scored."""
    base = facts.model.description.base_model
    return ModelCardData(
        license=license,
        library_name=LIBRARY,
        pipeline_tag="image-classification",
        tags=[*TAGS, "pytorch_model_hub_mixin", "model_hub_mixin"],
        datasets=[facts.hub_dataset] if facts.hub_dataset else None,
        base_model=base.name if base is not None and base.name and REPOSITORY.fullmatch(base.name) else None,
        metrics=["accuracy"] if facts.results else None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=_model_index(facts, facts.results) if facts.results and facts.complete else [],
        ignore_metadata_errors=False,
    )


def _model_index(facts: ModelFacts, results: Summary) -> list[EvalResult]:
    metrics = {
        "accuracy": ("Accuracy", results.test_accuracy),
        "first_spike_accuracy": ("Accuracy by the first output spike", results.test_first_spike_accuracy),
        "sparsity": ("Spikes a hidden neuron", results.sparsity),
    }
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=facts.hub_dataset or "unknown",
            dataset_name="a local data set" if facts.local else facts.data_name,
            dataset_split=results.test_split,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for kind, (name, value) in metrics.items()
    ]


def words(text: Any) -> str:
    """Untrusted text for a card: one line, its Markdown escaped."""
    line = " ".join(str(text).split())
    return "".join("\\" + mark if mark in "\\`*_[]<>|#" else mark for mark in line)


def code(text: Any) -> str:
    """Untrusted text for a code span: one line, without backticks."""
    return " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")


def _context(facts: ModelFacts, repo_id: str, license: str | None, chips: Sequence[str]) -> dict[str, Any]:
    network, graph, names = facts.model.description.network, facts.model.graph, facts.model.class_names
    steps, bits = (CARD_STEPS, None) if graph.grid is None else (graph.grid.time_steps, graph.grid.state_bits)
    others = None if graph.grid is None else ()  # a grid has no other steps
    energies = {} if facts.counts is None else _energy(facts.counts, chips, RunOptions(steps, state_bits=bits), others)
    if (results := facts.results) is not None:
        scores = results.test_images, results.test_accuracy, results.test_first_spike_accuracy, results.ties
        energies["decision"] = decision_lines(graph.readout.at, scores, clocked=graph.grid is not None)
    return energies | {
        "facts": facts,
        "repo_id": repo_id,
        "license": license,
        "paper": PAPER,
        "version": facts.training.get("versions", {}).get(LIBRARY, facts.model.description.library.get("version", "")),
        "library": LIBRARY,
        "persistence": " to ".join(map(str, sorted({graph.persistences[0], graph.persistences[-1]}))),
        "readout": READOUTS[graph.readout.at],
        "channels": {1: "grayscale", 3: "colour (RGB)"}.get(network.in_channels, f"{network.in_channels} channels"),
        "windows": graph.windows + (graph.readout.at != "potential_start"),
        "parameters": sum(parameter.numel() for parameter in facts.model.parameters()),
        "numbered": names == tuple(str(place) for place in range(len(names))),
        "wilson": interval,
        "energy_headers": CARD_HEADERS,
        "steps": steps,
        "settings": _settings(facts),
    }


def _energy(counts: Counts, chips: Sequence[str], options: RunOptions, others: Sequence[Run] | None) -> dict[str, Any]:
    """Rows of the energy table by `CARD_HEADERS`, with their assumptions, and the verdict in sentences."""
    rows = []
    for chip in map(load_chip, chips):
        spiking, dense = estimate(counts, chip, options), dense_ann(counts, chip, options=options)
        sums = (spiking.memory_included, dense.memory_included, spiking.compute_only, dense.compute_only, spiking.total)
        cells = (chip.name, *map(energy_range, sums), spiking.status or "–", not_in_it(spiking))
        rows.append({"cells": cells, "lines": (*spiking.assumptions, *spiking.warnings)})
    return {"energy": rows, "verdict": verdict(counts, fair_chip(counts, chips, options), options, others).sentences()}


def _settings(facts: ModelFacts) -> str:
    """Settings that are on, or off against the default, as YAML for a fenced block, which no backtick can end."""
    usual = {key: value for key, value in TrainConfig().model_dump(mode="json").items() if not value}
    off = usual | {"mixed_precision": "no"}
    used = {key: value for key, value in facts.settings.items() if value != off.get(key)}
    return yaml.safe_dump(used, sort_keys=False).replace("```", "").strip() if used else ""


def make_files(
    facts: ModelFacts, repo_id: str, *, license: str | None = None, chips: Sequence[str] = CARD_CHIPS
) -> dict[str, bytes]:
    """Contents of all files to publish, by name: those in `ALLOWED`, and the user's code.

    The weights are bit-identical to the loaded ones; their header holds the hash of this config.json.
    """
    # The name of a local folder is not published.
    description = facts.model.description.replace(dataset=None if facts.local else facts.dataset)
    files = model_bytes(facts.model.state_dict(), description)
    facts = dataclasses.replace(facts, weights_sha256=hashlib.sha256(files[WEIGHTS]).hexdigest())
    files["README.md"] = render_card(facts, repo_id, license=license, chips=chips).encode()
    if facts.settings:
        files["training.yaml"] = yaml.safe_dump(dict(facts.settings), sort_keys=False, allow_unicode=True).encode()
    assert set(files) <= set(ALLOWED)
    if facts.code is not None:
        files[facts.code.name] = facts.code.read_bytes()
    return files
