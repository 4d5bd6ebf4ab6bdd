"""What is published: an allow-list of files, each made here, none copied blindly from a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from ttfs_triton.hub.card import RESULTS_FILE, eval_results, render_card
from ttfs_triton.hub.facts import ModelFacts
from ttfs_triton.model.description import ModelDescription
from ttfs_triton.model.locate import CONFIG, WEIGHTS
from ttfs_triton.model.weights import weight_bytes
from ttfs_triton.report.energy_rows import CHIPS

ALLOWED = (WEIGHTS, CONFIG, "README.md", RESULTS_FILE, "training.yaml", "metrics.jsonl")


@dataclass(frozen=True)
class Package:
    """Files by their names in the repository, `ALLOWED` ones only."""

    files: Mapping[str, bytes]

    def rows(self) -> list[tuple[str, int, str]]:
        """(name, bytes, SHA-256) of each file."""
        return [(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in self.files.items()]

    @property
    def card(self) -> str:
        """README.md."""
        return self.files["README.md"].decode()


def make_package(
    facts: ModelFacts,
    repo_id: str,
    *,
    weights: bytes | None = None,
    license: str | None = None,
    chips: Sequence[str] = CHIPS,
) -> Package:
    """The files of a model.

    Args:
        facts: of the model.
        repo_id: where it goes, "owner/name".
        weights: content of its file, to publish it as it is. Default: written anew.
        license, chips: as for `render_card`.
    Raises:
        ValueError: an unknown chip.
    """
    files = {
        WEIGHTS: weight_bytes(facts.model.state_dict()) if weights is None else weights,
        CONFIG: (json.dumps(_published(facts).to_dict(), indent=2, ensure_ascii=False) + "\n").encode(),
        "README.md": render_card(facts, repo_id, license=license, chips=chips).encode(),
    }
    if (results := eval_results(facts)) is not None:
        files[RESULTS_FILE] = results.encode()
    if facts.settings:
        files["training.yaml"] = yaml.safe_dump(dict(facts.settings), sort_keys=False, allow_unicode=True).encode()
    if facts.metrics:
        files["metrics.jsonl"] = "".join(json.dumps(line) + "\n" for line in facts.metrics).encode()
    assert set(files) <= set(ALLOWED)
    return Package(files)


def _published(facts: ModelFacts) -> ModelDescription:
    """config.json without what is this machine's: the choice of kernels, the name of a local folder."""
    description = facts.model.description
    return description.replace(network=description.network.replace(backend="auto"), dataset=facts.data.recorded)
