"""The card and the page of one run: every figure that both show is the same."""

import html
import json
import re

import pytest

from ttfs_triton.evaluation.command import main as evaluate
from ttfs_triton.hub.card import CARD_CHIPS, CARD_HEADERS, CARD_STEPS
from ttfs_triton.hub.publish import publish

pytest.importorskip("matplotlib", reason="a page needs matplotlib")


@pytest.fixture(scope="module")
def texts(trained, tmp_path_factory):
    """Page and figures of an evaluation of a run in the closed form, as a card prices it, and the run's card."""
    folder = tmp_path_factory.mktemp("evaluation")
    words = [str(trained), "--cpu", "--chip", *CARD_CHIPS, "--steps", str(CARD_STEPS), "--max-test-samples", "100"]
    words += ["--no-simulation", "--output-dir", str(folder), "--report", str(folder / "page.html")]
    evaluate("Evaluate.", words)
    card = publish(trained, "alice/small", dry_run=True).files["README.md"].decode()
    page = html.unescape((folder / "page.html").read_text()).replace("\u00a0", " ")
    return page, json.loads((folder / "evaluation.json").read_text()), card


def page_rows(page):
    """Cells of the rows of all tables, by the first one."""
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>.*?</tr>", page, re.S)]
    cells = [[re.sub(r"<[^>]*>", "", cell).strip() for cell in row] for row in rows]
    return {row[0]: row for row in reversed(cells) if row}  # of two tables with a row of that name, the first


def card_rows(card):
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.splitlines() if line[:1] == "|"]
    return {row[0].replace("\\", ""): [cell.replace("\\", "") for cell in row] for row in rows}


def test_accuracy_and_sparsity_agree(texts):
    page, figures, card = texts
    found = re.findall(r'<dt>(.*?)</dt><dd class="value">(.*?)</dd><dd class="small">(.*?)</dd>', page)
    top, rows = {label: (value, note) for label, value, note in found}, card_rows(card)
    accuracy, note = top["accuracy"]
    assert rows["test accuracy"][1] == f"**{accuracy}** ({note})"
    assert f"{100 * figures['accuracy']:.2f}%" == accuracy
    first, note = top["by the first spike"]
    ties, silent = re.findall(r"\d[\d,]*", note)
    wanted = f"{first}, {ties} ties, {silent} images without an output spike"
    assert rows["by the first output spike"][1] == wanted
    assert rows["sparsity"][1].split()[0] == top["activity"][0] == f"{figures['sparsity']:.4f}"
    assert rows["test images"][1].startswith(f"{figures['images']} of ")
    assert f", {figures['images']} images<" in page


def test_layers_operations_and_energies_agree(texts):
    page, figures, card = texts
    theirs, ours = page_rows(page), card_rows(card)
    for layer in figures["counts"]["layers"]:
        name, firing, spikes, neurons, saturated, _, never = theirs[layer["name"]]
        assert ours[name] == [name, neurons, spikes, firing, saturated, never]
    _, _, operations, dense = theirs["all"]
    assert ours["operations an image"][1] == (
        f"{operations} synaptic operations; the dense ANN multiplies {dense} times"
    )
    total = CARD_HEADERS.index("all priced operations")
    assert all(theirs[chip][1] == ours[chip][total] for chip in CARD_CHIPS)


def test_verdicts_agree(texts):
    page, _, card = texts
    ours = [line[2:] for line in card.splitlines() if line.startswith("- ") and "dense ANN" in line]
    assert [line.partition(",")[0] for line in ours[:2]] == ["With memory", "By arithmetic alone"]
    assert len(ours) == 3
    assert all(line in page for line in ours)
