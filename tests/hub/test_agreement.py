"""The card and the page of one run: every figure that both show is the same."""

import html
import json
import re

import pytest

from ttfs_triton.evaluation.command import main as evaluate
from ttfs_triton.hub.card import CARD_CHIPS, CARD_HEADERS, CARD_STEPS
from ttfs_triton.hub.publish import publish

pytest.importorskip("matplotlib", reason="a page needs matplotlib")


def evaluated(run, folder, *flags):
    """Its page, its figures, and the card that is made with them."""
    words = [str(run), "--cpu", "--chip", *CARD_CHIPS, "--steps", str(CARD_STEPS), "--max-test-samples", "100", *flags]
    evaluate("Evaluate.", [*words, "--output-dir", str(folder), "--report", str(folder / "page.html")])
    card = publish(run, "alice/small", dry_run=True, evaluation=folder).package.card
    return (folder / "page.html").read_text(), json.loads((folder / "evaluation.json").read_text()), card


@pytest.fixture(scope="module", params=["closed form", "simulated"])
def texts(request, trained, tmp_path_factory):
    flags = ["--no-simulation"] if request.param == "closed form" else []
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluated(trained, folder, *flags)


def page_rows(page):
    """Cells of the rows of all tables, by the first one."""
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>.*?</tr>", page, re.S)]
    cells = [[re.sub(r"<[^>]*>", "", cell).strip() for cell in row] for row in rows]
    return {row[0]: row for row in reversed(cells) if row}  # of two tables with a row of that name, the first


def headlines(page):
    found = re.findall(r'<dt>(.*?)</dt><dd class="value">(.*?)</dd><dd class="small">(.*?)</dd>', page)
    return {label: (value, note) for label, value, note in found}


def card_rows(card):
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.splitlines() if line[:1] == "|"]
    return {row[0].replace("\\", ""): [cell.replace("\\", "") for cell in row] for row in rows}


def test_accuracy_and_sparsity_agree(texts):
    page, figures, card = texts
    top, rows = headlines(page), card_rows(card)
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
    assert ("simulated in integers" in rows) == ("simulated in integers" in top)
    if "simulated in integers" in rows:
        assert rows["simulated in integers"][1].startswith(
            f"{top['simulated in integers'][0]} at {CARD_STEPS} time steps"
        )


def test_layers_and_operations_agree(texts):
    page, figures, card = texts
    theirs, ours = page_rows(page), card_rows(card)
    for layer in figures["counts"]["layers"]:
        name, firing, spikes, neurons, saturated, _, never = theirs[layer["name"]]
        assert ours[name] == [name, neurons, spikes, firing, saturated, never]
    _, _, operations, dense = theirs["all"]
    assert ours["operations an image"][1] == (
        f"{operations} synaptic operations; the dense ANN multiplies {dense} times"
    )


def test_energies_agree_or_the_card_says_why_not(texts):
    page, figures, card = texts
    theirs, ours = page_rows(page), card_rows(card)
    total = CARD_HEADERS.index("all that has a price")
    same = [theirs[chip][1] == ours[chip][total] for chip in CARD_CHIPS]
    assert all(same) or figures["simulation"] is not None
    assert "a report by `recipes/evaluate.py` prices the steps and options that it was asked for" in card


def test_verdicts_agree(texts):
    """The same sentences; a simulation moves spikes, so that ratios differ, and nothing else."""
    page, figures, card = texts
    ours = [line[2:] for line in card.splitlines() if line.startswith("- ") and "dense ANN" in line]
    assert len(ours) == 3
    assert ours[0].startswith("With memory, inference costs ")
    assert ours[1].startswith("By arithmetic alone, inference costs ")
    shown = html.unescape(page).replace("\u00a0", " ")
    if figures["simulation"] is not None:
        ours = [re.sub(r"\d+(\.\d+)?", "0", line) for line in ours[:2]]
        shown = re.sub(r"\d+(\.\d+)?", "0", shown)
    for line in ours:
        assert line in shown
