"""The card: what stands in it, what never does, and that the Hub can read it."""

import json
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from tests.hub.test_facts import change
from ttfs_triton.energy import RunOptions, estimate
from ttfs_triton.energy.chip import energy_range
from ttfs_triton.hub.card import ALLOWED, CARD_HEADERS, CARD_STEPS, code, make_files, render_card, words
from ttfs_triton.hub.facts import ModelFacts, read_facts
from ttfs_triton.model import BaseModel, TTFSModel, find_model
from ttfs_triton.model.files import bundled_facts, bundled_names, read_model, write_model
from ttfs_triton.nn import Grid, NetworkConfig


@pytest.fixture(scope="module")
def facts(trained):
    return read_facts(find_model(trained))


def card_of(facts, **changes):
    return render_card(replace(facts, **changes), "org/name", license="mit", chips=["odin", "lemaire45:int8"])


def sections(card):
    return re.findall(r"^##+ (.*)$", card, re.MULTILINE)


def test_card_has_its_sections_and_figures_and_no_leftovers(facts):
    card = card_of(facts)
    assert sections(card) == [
        *("How to use it", "Results", "What it would cost on a chip", "The network", "Training", "Base model", "Data"),
        *("Limits", "Citation"),
    ]
    for leftover in ("{{", "{%", "None", "nan", "\n\n\n", "Undefined", "anp", ": 'no'"):
        assert leftover not in card.partition("---\n\n")[2].replace("None: trained from random weights", ""), leftover
    assert card_of(facts) == card
    for part in (
        *(f"**{facts.results.test_accuracy:.2%}**", "| odin |", "32 steps a window", facts.weights_sha256),
        *("| conv1 |", "| fc1 |", "| readout |", "Licence of the model: mit", "the sample of Fashion-MNIST"),
        "not the whole test set",  # 100 of 1,000
        "The network was trained to decide by the highest membrane potential",
    ):
        assert part in card
    width = 0
    for line in card.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert cells == width or 0 in (cells, width), line
        width = cells
    for chip in ("odin", "lemaire45:int8"):
        found = estimate(facts.counts, chip, RunOptions(steps=CARD_STEPS))
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {chip} |")]
        assert row.split(" | ")[CARD_HEADERS.index("all priced operations")] == energy_range(found.total)


@pytest.mark.parametrize(("skipped", "whole"), [((), True), ((3, 8), False)])
def test_metadata_hold_results_only_if_all_images_were_scored(facts, skipped, whole):
    assert not ModelCard(card_of(facts)).data.eval_results  # of 100 of 1,000 images
    results = facts.results.model_copy(update={"test_split": "validation", "skipped_images": {"test": [*skipped]}})
    card = card_of(facts, dataset="ylecun/mnist", settings={}, results=results)
    assert ("not the whole test set" in card) != whole
    assert "| validation images | 100 of ylecun/mnist" in card
    assert ("accuracy without 2 of 102 images that could not be decoded, with " in card) != whole
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("ttfs-triton", "image-classification", "mit")
    assert data.datasets == ["ylecun/mnist"]
    assert {"spiking-neural-network", "time-to-first-spike"} <= set(data.tags)
    figures = {result.metric_type: result.metric_value for result in data.eval_results or ()}
    expected = {"accuracy": results.test_accuracy, "first_spike_accuracy": results.test_first_spike_accuracy}
    assert figures == pytest.approx((expected | {"sparsity": results.sparsity}) if whole else {}, abs=1e-6)
    for result in data.eval_results or ():
        assert (result.dataset_type, result.dataset_split) == ("ylecun/mnist", "validation")


def test_card_of_a_network_on_a_grid_prices_its_steps_and_names_its_bits(facts):
    model = TTFSModel(replace(facts.model.config, grid=Grid(4, 4, state_bits=32)))
    card = card_of(facts, model=model, counts=replace(facts.counts, weight_bits=4))
    for part in (
        "the network computes on this grid, in integers",
        "on lemaire45:int8 at 4 steps a window.\n",
        "The weights have 4 bits; chips whose names end in a precision",
        "priced as 8-bit weights, although the network's have 4 bits",
    ):
        assert part in card
    assert "not simulated" not in card
    found = estimate(replace(facts.counts, weight_bits=4), "lemaire45:int8", RunOptions(4, state_bits=32))
    assert f"| {energy_range(found.total)} |" in card


def test_a_model_without_results_says_so():
    model = TTFSModel(NetworkConfig("4C3-P2-8", image_size=(8, 8), in_channels=3, classes=30, encoder="analog"))
    card = render_card(ModelFacts(model), "org/name")
    for part in ("Not evaluated.", "Not estimated: the network was not evaluated.", "Nothing is known about its"):
        assert part in card
    assert "# name\n\nA spiking network. Every neuron fires at most once. Training data: not recorded.\n" in card
    assert "### Data\n\nNot recorded.\n\n## Limits" in card
    assert ModelCard(card).data.eval_results in (None, [])


@pytest.mark.parametrize("name", bundled_names())
def test_card_of_a_bundled_network_has_its_figures_and_training(name):
    stated = bundled_facts(name)
    card = make_files(read_facts(find_model(f"bundled:{name}")), "org/name")["README.md"].decode()
    for part in (
        f"{stated['test_accuracy']:.2%} test accuracy with {stated['sparsity']:.1%} of its hidden neurons firing.",
        f"**{stated['test_accuracy']:.2%}** (95%",
        f"{stated['training']['epochs']} epochs, ",
        "| test images | 10,000 of ",
    ):
        assert part in card
    assert not any(part in card for part in ("Nothing is known", "Not evaluated", "not the whole", "\n\n\n"))


def test_class_names_and_base_models_are_shown(facts):
    base = BaseModel("vgg.safetensors", "ab" * 32, "org/vgg", "cd" * 20)
    model = TTFSModel(facts.model.config, class_names=[f"class {place}" for place in range(10)], base_model=base)
    card = card_of(facts, model=model)
    assert "Classes: class 0, class 1" in card
    assert f"`org/vgg` at `{'cd' * 20}`, file `vgg.safetensors`, SHA-256 `{'ab' * 32}`" in card
    assert ModelCard(card).data.base_model == "org/vgg"
    card = card_of(facts, model=TTFSModel(facts.model.config, base_model=BaseModel("mine.safetensors", "ab" * 32)))
    assert "the local weights `mine.safetensors`" in card
    assert ModelCard(card).data.base_model is None


SECRETS = ("alice", "hf_abcdefghijklmnop", "wandb", "node17.example", "10.1.2.3", "/home", "secret-project")


def test_nothing_of_this_machine_is_published(run, monkeypatch):
    for name, value in (("HF_TOKEN", "hf_abcdefghijklmnop"), ("USER", "alice"), ("HOSTNAME", "node17.example")):
        monkeypatch.setenv(name, value)
    change(
        run / "config.yaml",
        dataset="alice/secret-project",
        data_dir="/home/alice/secret-project",
        output_dir="/home/alice/runs/secret-project",
        weights="/home/alice/secret-project.safetensors",
        trackers=["wandb"],
        hub_repo_id="alice/secret-project",
        token="hf_abcdefghijklmnop",
        host="node17.example",
    )
    versions = json.loads((run / "summary.json").read_text())["versions"] | {"alice-private-package": "1.0"}
    here = {"host": "node17.example", "address": "10.1.2.3", "user": "alice", "command": "/home/alice/train.py"}
    change(run / "summary.json", versions=versions, **here)
    description, _, tensors = read_model(find_model(run))
    write_model(run / "best", tensors, description.replace(dataset="secret-project"))
    change(run / "summary.json", weights_sha256=find_model(run).sha256)
    (run / "best" / ".env").write_text("HF_TOKEN=hf_abcdefghijklmnop")
    files = make_files(read_facts(find_model(run)), "org/name")
    assert set(files) <= set(ALLOWED)
    for name, content in files.items():
        for secret in SECRETS:
            assert secret.encode() not in content, f"{secret} in {name}"


def test_hostile_names_stay_text(facts):
    hostile = 'a`b|c](http://x)<img src="x">\n---\n# d {{ e }} *f*'
    model = TTFSModel(facts.model.config, class_names=[f"{hostile}{place}" for place in range(10)])
    counts = replace(facts.counts, layers=tuple(replace(layer, name=hostile) for layer in facts.counts.layers))
    training = facts.training | {"device": hostile, "versions": {"torch": hostile}}
    settings = {"model": f"```{hostile}"}
    card = card_of(facts, model=model, counts=counts, training=training, settings=settings)
    body = card.partition("---\n\n")[2]
    assert "<img" not in re.sub(r"\\<img", "", re.sub(r"(?s)```yaml.*?```", "", body))
    assert not re.search(r"^# d", body, re.MULTILINE)
    assert sections(card)[-1] == "Citation"
    assert ModelCard(card).data.library_name == "ttfs-triton"
    assert words("a |`*_[x](y)<b>\n\n#") == r"a \|\`\*\_\[x\](y)\<b\> \#"
    assert code("a`b\n|c") == r"a'b \|c"
