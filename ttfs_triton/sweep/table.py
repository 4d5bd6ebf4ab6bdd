"""Rows of a sweep: each has figures of one evaluation.json, and of the run that trained the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttfs_triton.energy import Counts
from ttfs_triton.sweep import FAULTS, GRID

FREE = "free"
"""Point at which a network is measured as given, without training."""

Row = dict[str, Any]
"""Cells by column, see `row_of`."""

SUMS = {"total": "total_uj", "memory_included": "with_memory_uj", "compute_only": "arithmetic_uj"}
"""Sums of an energy in evaluation.json, and their names in columns."""


def row_of(identity: Row, figures: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> Row:
    """A row of the table, from evaluation.json and the summary.json of the run that trained the point.

    Unknown cells are None; energies are in microjoules at nominal prices, and beside the dense ANN on `chip`; column
    "deadline D" has the accuracy if each image is decided D windows after its start.
    """
    simulation, counts = figures["simulation"], Counts.from_dict(figures["counts"])
    total, grid = counts.total(), figures["network"].get("grid") or {}
    own, dense, *_ = figures["comparison"]
    target: Mapping[str, Any] = (summary or {}).get("target") or {}
    return {
        **identity,
        **{key: grid.get(key) for key in GRID},
        **{key: simulation["faults"][key] for key in FAULTS},
        **{key: figures[key] for key in ("images", "accuracy", "first_spike_accuracy")},
        **{f"simulated_{key}": simulation[key] for key in ("accuracy", "first_spike_accuracy")},
        "validation_accuracy": (summary or {}).get("val_accuracy"),
        "epochs": (summary or {}).get("epochs"),
        **{"target": target.get("kind"), "goal": target.get("goal", {}).get("network")},
        **{"cost": target.get("test", {}).get("network"), "reached": target.get("reached")},
        "sparsity": figures["sparsity"],
        "spikes": sum(layer.spikes for layer in counts.layers if layer.kind != "readout") / counts.samples,
        **{key: total[key] / counts.samples for key in ("synaptic_operations", "dense_macs")},
        "steps": simulation["steps"],
        "chip": own["chip"]["name"],
        **{column: microjoules(own, key) for key, column in SUMS.items()},
        **{f"dense_{column}": microjoules(dense, key) for key, column in SUMS.items()},
        **{f"{at['chip']['name']}: {SUMS[key]}": microjoules(at, key) for at in figures["energy"] for key in SUMS},
        **{f"deadline {at['deadline']:g}": at["accuracy"] for at in (figures["deadlines"] or {}).get("rows", ())},
        "weights_sha256": figures["weights_sha256"],
        **{key: figures["about"][key] for key in ("device", "date")},
    }


def microjoules(estimate: Mapping[str, Any], key: str) -> float | None:
    """A sum of an estimate's energies; None if it is unknown."""
    amount = estimate["energy_pj"][key]
    return None if amount is None else amount["nominal"] * 1e-6


def label(row: Row) -> str:
    """A point in words, such as "target sparsity=0.1, reached 0.27" or "time steps=4, calibrated"."""
    words = ["as given" if row["point"] == FREE else row["point"].replace("_", " ").replace("+", ", ")]
    words += [f"reached {row['cost']:.2g}"] if row["reached"] is False else []
    words += [] if row["trained"] else ["calibrated"]
    words += [f"{key.replace('_', ' ')} {row[key]:g}" for key in FAULTS if row[key]]
    return ", ".join(filter(None, words))
