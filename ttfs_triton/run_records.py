"""Records of a run: the schemas of metrics.jsonl and summary.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from ttfs_triton.command_line import problem_lines
from ttfs_triton.untrusted_files import read_regular

Share = Annotated[float, Field(ge=0, le=1, strict=True)]  # strict: true and "1" are no numbers
Number = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[float, Field(ge=0, strict=True)]
METRICS, SUMMARY = "metrics.jsonl", "summary.json"


class _Record(BaseModel):
    """A record with finite numbers; keys that other versions wrote are kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class EpochLine(_Record):
    """A line of metrics.jsonl: one epoch. Figures that were not measured, such as a validation loss, are left out."""

    epoch: Annotated[Number, Field(ge=1)]
    step: Number
    lr: float
    train_loss: float
    train_accuracy: Share
    val_loss: float | None = None
    val_accuracy: Share | None = None
    val_first_spike_accuracy: Share | None = None
    sparsity: Share | None = None
    layer_sparsity: dict[str, Share] | None = None
    cost: dict[str, float] | None = None
    """Present cost, if the run has a target."""
    multiplier: dict[str, float] | None = None
    """Lagrange multiplier, if the run has a target."""
    seconds: Positive
    images_per_second: Positive
    rise: Share | None = None
    """Progress of σ towards its goal."""

    @model_serializer(mode="wrap")
    def _measured(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class Summary(_Record):
    """Content of summary.json: a run that has ended, with its best weights scored on the test images."""

    test_accuracy: Share
    test_first_spike_accuracy: Share
    test_images: Annotated[Number, Field(ge=1)]
    test_split: str = "test"
    """Name of the split that was scored: "validation" where a data set has no test split."""
    test_fingerprint: str
    ties: Number
    no_spike: Number
    val_accuracy: Share | None
    best_epoch: Number
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of best/model.safetensors when it was scored."""
    sparsity: Share
    sparsity_as_published: float | None = None
    target: dict[str, Any] | None = None
    counts: dict[str, Any]
    epochs: Annotated[Number, Field(ge=1)]
    seconds_per_epoch: Positive
    images_per_second: Positive
    seed: Number
    skipped_images: dict[str, list[int]]
    versions: dict[str, str]
    device: str
    processes: Annotated[Number, Field(ge=1)]
    mixed_precision: str


def read_summary(path: Path) -> Summary:
    """Read a summary.json."""
    try:
        return Summary.model_validate_json(read_regular(path))
    except ValidationError as error:
        raise ValueError("\n".join(problem_lines(error)).strip()) from error
