"""What is read from a run and its evaluation."""

import dataclasses
import json

import pytest
import yaml

from ttfs_triton.evaluation.command import main as evaluate
from ttfs_triton.hardware import Counts
from ttfs_triton.hub.facts import PUBLISHED_SETTINGS, read_facts
from ttfs_triton.model import LoadError, find_model
from ttfs_triton.train import TrainConfig

# Keys of a run that say where and how it ran here, or what is published elsewhere: data set, base model.
KEPT_HERE = set(
    "dataset data_dir image_column label_column max_bad_images streaming data_placement num_workers weights backend "
    "output_dir resume overwrite cpu cuda_graph fuse profile evaluation_batch_size checkpoint_steps keep_checkpoints "
    "log_steps statistics_steps trackers "
    "push_to_hub hub_repo_id hub_private hub_license".split()
)


def change(path, **values):
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    path.write_text(write(read(path.read_text()) | values))


def test_every_setting_is_published_or_kept():
    assert set(PUBLISHED_SETTINGS) | KEPT_HERE == set(TrainConfig().model_dump())
    assert not set(PUBLISHED_SETTINGS) & KEPT_HERE


def test_facts_of_a_run(trained):
    summary = json.loads((trained / "summary.json").read_text())
    facts = read_facts(find_model(trained))
    results = facts.results
    assert (results.accuracy, results.images) == (summary["test_accuracy"], 100)
    assert results.sparsity == results.counts.sparsity == summary["sparsity"]
    assert [layer.name for layer in results.layers] == ["conv1", "fc1", "readout"]
    for layer, counts in zip(results.layers, results.counts.layers, strict=True):
        assert layer is counts
    assert facts.settings["model"] == "4C5-P4-16"
    assert (facts.epochs, facts.best_epoch, len(facts.metrics)) == (1, 1, 1)
    assert facts.metrics[0]["layer_sparsity"].keys() == {"conv1", "fc1", "readout"}
    assert not facts.unrecorded_base


def test_weights_alone_have_no_results_and_base_models_that_nobody_wrote_down_are_told(run):
    facts = read_facts(find_model(run / "best"))
    assert (facts.results, facts.settings, facts.metrics) == (None, {}, [])
    assert facts.data.recorded == "sample"
    change(run / "config.yaml", weights="/home/alice/other.safetensors")
    assert read_facts(find_model(run)).unrecorded_base


def test_evaluation_replaces_the_results(run, tmp_path):
    evaluate(
        "Evaluate.", [str(run), "--cpu", "--steps", "8", "--max-test-samples", "50", "--output-dir", f"{tmp_path}/e"]
    )
    for path in (tmp_path / "e", tmp_path / "e" / "evaluation.json"):
        results = read_facts(find_model(run), evaluation=path).results
        assert (results.images, results.counts.samples) == (50, 50)
        assert (results.simulation["steps"], results.simulation["weight_bits"]) == (8, 8)
    change(tmp_path / "e" / "evaluation.json", weights_sha256="00")
    with pytest.raises(LoadError, match="must be an evaluation of these weights; it is of others"):
        read_facts(find_model(run), evaluation=tmp_path / "e")
    with pytest.raises(LoadError, match=r"evaluate\.py --output-dir writes it"):
        read_facts(find_model(run), evaluation=tmp_path / "nowhere")


@pytest.fixture(scope="module")
def evaluation(trained, tmp_path_factory):
    """Of the run, on the test images that it was scored on."""
    folder = tmp_path_factory.mktemp("evaluation")
    words = [str(trained), "--cpu", "--no-simulation", "--max-test-samples", "100", "--output-dir", str(folder)]
    evaluate("Evaluate.", words)
    return json.loads((folder / "evaluation.json").read_text())


def facts_with(run, folder, evaluation, **values):
    (folder / "evaluation.json").write_text(json.dumps(evaluation | values))
    return read_facts(find_model(run), evaluation=folder)


def test_images_of_an_evaluation_are_told_by_their_content(run, tmp_path, evaluation):
    summary = json.loads((run / "summary.json").read_text())
    assert (evaluation["dataset"], evaluation["fingerprint"]) == ("sample", summary["test_fingerprint"])
    assert facts_with(run, tmp_path, evaluation).results.limited  # some of the test images are not taken for all
    assert not facts_with(run, tmp_path, evaluation, max_test_samples=None).results.limited
    assert facts_with(run, tmp_path, evaluation).results.images == 100
    # A folder is not the data set, whatever it is called; the same images are, wherever they lie.
    facts_with(run, tmp_path, evaluation, dataset=None)
    facts_with(run, tmp_path, evaluation, fingerprint="00")  # other images of the data set
    with pytest.raises(LoadError, match=r"must be an evaluation on the test images of .*; it is on a local folder"):
        facts_with(run, tmp_path, evaluation, dataset=None, fingerprint="00")
    with pytest.raises(LoadError, match="it is on owner/sample"):
        facts_with(run, tmp_path, evaluation, dataset="owner/sample", fingerprint="00")
    with pytest.raises(LoadError, match="it is on sample"):
        facts_with(run, tmp_path, evaluation, class_names=[*"abcdefghij"])


def test_images_of_a_local_run_must_be_those_that_it_was_scored_on(run, tmp_path, evaluation):
    change(run / "config.yaml", data_dir="/home/alice/sample")
    assert facts_with(run, tmp_path, evaluation).results.images == 100
    with pytest.raises(LoadError, match="on the test images of a local data set; it is on sample"):
        facts_with(run, tmp_path, evaluation, fingerprint="00")
    change(run / "summary.json", test_fingerprint=None)  # of a run before it was written down
    assert facts_with(run, tmp_path, evaluation, fingerprint="00").results.images == 100


def test_damaged_and_later_counts_are_refused(run):
    summary = json.loads((run / "summary.json").read_text())
    for counts, message in (({"format": 4}, "of format 2 or 3; got 4"), ({"format": 3}, "to_dict gives; got samples")):
        (run / "summary.json").write_text(json.dumps(summary | {"counts": counts}))
        with pytest.raises(LoadError, match=message):
            read_facts(find_model(run))


def test_runs_without_counts_are_read(run):
    summary = json.loads((run / "summary.json").read_text())
    counts = Counts.from_dict(summary.pop("counts"))
    summary["per_layer"] = [dataclasses.asdict(layer) | {"output": layer.kind == "readout"} for layer in counts.layers]
    (run / "summary.json").write_text(json.dumps(summary))
    results = read_facts(find_model(run)).results
    assert results.counts is None
    assert [(layer.name, layer.sparsity) for layer in results.layers] == [
        (layer.name, layer.sparsity) for layer in counts.layers
    ]


def test_whatever_is_no_figure_stays_out_of_the_metrics(run):
    lines = [{"epoch": 1, "val_loss": float("inf"), "host": "here", "train_loss": "alice", "lr": True}]
    (run / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert read_facts(find_model(run)).metrics == [{"epoch": 1, "lr": None, "train_loss": None, "val_loss": None}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, r"summary\.json must be there and readable; .* go on with it by --resume"),
        ("summary.json", "{", "must be there and readable"),
        ("summary.json", "[1]", "must hold an object; got list"),
        ("summary.json", '{"test_accuracy": 0.5}', "must be what was written there; KeyError"),
        ("config.yaml", "a: [", "must be the run's configuration"),
        ("config.yaml", "- 1", "must hold `key: value` lines; got list"),
        ("metrics.jsonl", "nothing", "must hold one JSON object a line"),
    ],
)
def test_damaged_runs_are_refused(run, name, content, message):
    (run / name).unlink() if content is None else (run / name).write_text(content)
    with pytest.raises(LoadError, match=message):
        read_facts(find_model(run))
