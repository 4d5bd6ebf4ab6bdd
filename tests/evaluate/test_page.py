"""The page: whole, self-contained, and without what the data lack."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from tests.evaluate.cases import full_report
from ttfs_triton.evaluate.measure import LayerSpikes, Sample
from ttfs_triton.evaluate.page import headlines, linked, page_decision, render_page, write_page
from ttfs_triton.nn import Faults

pytest.importorskip("matplotlib", reason="figures need matplotlib")

VOID = {"meta", "img", "br", "link", "input", "hr"}
SECTIONS = ["headline", "activity", "raster", "histograms", "energy", "comparison", "steps"]
SECTIONS += ["decisions", "sources", "made"]
HOSTILE = '<script>alert("$x_$")</script>'


class Page(HTMLParser):
    """Tags, sections and texts; refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self):
        return [attributes["id"] for attributes in self.named("section")]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = write_page(tmp_path_factory.mktemp("page") / "page.html", full_report())
    return path.read_text(encoding="utf-8")


def test_page_leaves_out_what_is_missing(text):
    data, none = full_report(), torch.tensor([], dtype=torch.int64)
    counts = tuple(replace(layer, histogram=(0, 0)) for layer in data.counts.layers)
    spikes = (*data.sample.spikes[:-1], LayerSpikes("readout", 3, 10, none, none.float()))
    changes = {"counts": replace(data.counts, layers=counts), "simulation": None, "deadlines": ()}
    changes["sample"] = replace(data.sample, image=torch.rand(4, 8, 8), spikes=spikes)
    less = render_page(replace(data, **changes))
    for page, gone in ((Page(text), set()), (Page(less), {"steps", "histograms", "decisions"})):
        assert page.sections == [name for name in SECTIONS if name not in gone]
        assert "None" not in " ".join(page.texts)
    assert ["No output neuron fires." in page for page in (text, less)] == [False, True]
    assert ["first output spike</text>" in page for page in (text, less)] == [True, False]


def test_page_loads_nothing(text):
    found = Page(text)
    assert not [*found.named("script"), *found.named("link")]
    for tag, attributes in found.tags:
        for name, value in attributes.items():
            if tag != "a" and name != "aria-label":
                assert "http" not in (value or ""), (tag, name)
            if name in ("src", "xlink:href", "srcset"):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name)
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"@import|url\(", style)


def test_page_is_accessible_and_its_identifiers_are_unique(text):
    found = Page(text)
    assert found.named("html") == [{"lang": "en"}]
    assert (len(found.named("h1")), len(found.named("h2"))) == (1, len(SECTIONS))
    assert all(attributes.get("alt") for attributes in found.named("img"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in found.named("th"))
    assert len(found.named("caption")) == len(found.named("table")) > 5
    figures = [attributes for attributes in found.named("div") if attributes.get("role") == "img"]
    assert len(figures) == len(found.named("svg")) == len(found.named("figure")) == 4
    assert all(len(attributes["aria-label"]) > 20 for attributes in figures)
    identifiers = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for reference in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text):
        assert "".join(reference) in identifiers


def test_page_shows_the_figures(text):
    data, words = full_report(), " ".join(Page(text).texts)
    for figure in ("50.00%", "33.33%", "1 tied", "3.375", f"{data.counts.sparsity:.3f}", "evaluate runs/small"):
        assert figure in words
    encoded = re.search(r'<img src="data:image/png;base64,([^"]*)"', text).group(1)
    pixels = torch.tensor(list(Image.open(io.BytesIO(base64.b64decode(encoded))).tobytes()))
    assert pixels.equal((data.sample.image * 255).round().long().flatten())
    settings = replace(data.simulation.settings, faults=Faults(lost_spikes=0.1), weight_bits=None)
    other = render_page(replace(data, simulation=replace(data.simulation, settings=settings)))
    assert other.count("10% of spikes lost") == 2
    assert ["8 bits, a scale for each channel" in each for each in (words, other)] == [True, False]


def test_page_escapes_hostile_names():
    data = full_report()
    counts = replace(data.counts, layers=tuple(replace(layer, name=HOSTILE) for layer in data.counts.layers))
    spikes = tuple(replace(layer, name=HOSTILE) for layer in data.sample.spikes)
    sample = Sample(data.sample.image, spikes, HOSTILE, HOSTILE, (HOSTILE,) * 3)
    chip = replace(data.energy[0].chip, name=HOSTILE, description=HOSTILE)
    energy = (replace(data.energy[0], chip=chip, assumptions=(HOSTILE,), warnings=(HOSTILE,)),)
    hostile = replace(
        data,
        **dict(title=HOSTILE, dataset=HOSTILE, network=data.network | {"specification": HOSTILE}, counts=counts),
        **dict(sample=sample, energy=energy, chip=HOSTILE, facts={HOSTILE: HOSTILE}),
    )
    text = render_page(hostile)
    assert not Page(text).named("script")
    assert "<script" not in text
    assert HOSTILE in " ".join(Page(text).texts)


def test_headline_is_of_the_chip_asked_for_and_says_what_it_lacks():
    data = full_report()
    for chip, missing in (("loihi", "hops, leakage"), ("lemaire45:int8", "leakage")):
        shown = replace(data, chip=chip)
        note = headlines(shown)[-1][2]
        assert note.startswith(f"{chip}, ")
        assert note.endswith(f"{missing} not included")
        assert "upper bound" not in note
        assert "an upper bound: not simulated" in headlines(replace(shown, simulation=None))[-1][2]
    nothing = replace(data.energy[1], terms=())
    assert headlines(replace(data, energy=(nothing,)))[-1][1:] == ("–", "loihi, without memory: no price")


@pytest.mark.parametrize(
    ("at", "ties", "simulated", "told"),
    [
        ("potential_end", 2, True, "comes 7.0 steps earlier on average, and costs 16.67 points of accuracy. Output"),
        (
            *("first_spike", 2, True),
            "by the first output spike, and a chip decides so. Output spikes tie at the earliest step in 2 of 6 images "
            "(33.3%). More time steps make ties rarer.",
        ),
        ("first_spike", 2, False, "at the earliest time in 2 of 6 images (33.3%)."),
    ],
)
def test_page_says_how_a_chip_decides_and_what_ties_cost(at, ties, simulated, told):
    data, scores = full_report(), {"first_spike_accuracy": 2 / 6, "accuracy": 3 / 6}
    end = 32 if at == "potential_end" else 24
    latency = {"latency_steps": torch.full((6,), 25), "potential_latency_steps": end}
    found = replace(data.simulation, ties=ties, **scores, **latency) if simulated else None
    changes = {"network": {**data.network, "readout": at}, "scores": replace(data.scores, ties=ties)}
    text = " ".join(page_decision(replace(data, **changes, simulation=found)))
    assert told in text
    assert ("steps make ties rarer" in text) == (simulated and ties > 0)


def test_linked_escapes_and_links():
    assert linked("(doi.org/a/b)") == '(<a href="https://doi.org/a/b" rel="noopener">doi.org/a/b</a>)'
    assert linked("<b> https://x.org/?a&b.").startswith('&lt;b&gt; <a href="https://x.org/?a&amp;b" rel="noopener">')
    assert linked('javascript:alert("1")') == "javascript:alert(&#34;1&#34;)"
