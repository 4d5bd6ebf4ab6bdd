"""The page: whole, self-contained, and without what the data lack."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from tests.evaluate.cases import full_report
from ttfs_triton.energy import estimate
from ttfs_triton.evaluate.page import headlines, linked, page_decision, render_page, write_page
from ttfs_triton.evaluate.result import LayerSpikes, Sample
from ttfs_triton.nn import Faults

pytest.importorskip("matplotlib", reason="figures need matplotlib")

VOID = {"meta", "img", "br", "link", "input", "hr"}
SECTIONS = ["headline", "activity", "raster", "histograms", "energy", "comparison", "steps", "sources", "made"]
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

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

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


@pytest.mark.parametrize(
    ("lacking", "gone"),
    [
        ({}, set()),
        ({"sample": None}, {"raster"}),
        ({"energy": (), "chip": None}, {"energy"}),
        ({"comparison": None}, {"comparison"}),
        ({"simulation": None}, {"steps"}),
        ({"facts": {}}, set()),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_page_leaves_out_what_is_missing(lacking, gone):
    found = Page(render_page(dataclasses.replace(full_report(), **lacking)))
    assert found.sections == [name for name in SECTIONS if name not in gone]
    assert "None" not in " ".join(found.texts)


def test_histograms_of_silent_layers_are_left_out():
    layers = tuple(dataclasses.replace(layer, histogram=(0, 0)) for layer in full_report().counts.layers)
    counts = dataclasses.replace(full_report().counts, layers=layers)
    assert "histograms" not in Page(render_page(dataclasses.replace(full_report(), counts=counts))).sections


def test_page_loads_nothing(text):
    found = Page(text)
    assert not found.named("script")
    assert not found.named("link")
    for tag, attributes in found.tags:
        for name, value in attributes.items():
            if tag != "a" and name != "aria-label":
                assert "http" not in (value or ""), (tag, name)
            if name in ("src", "xlink:href", "srcset"):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style


def test_page_is_accessible_and_its_identifiers_are_unique(text):
    found = Page(text)
    assert found.named("html") == [{"lang": "en"}]
    assert len(found.named("h1")) == 1
    assert len(found.named("h2")) == len(SECTIONS)
    assert all(attributes.get("alt") for attributes in found.named("img"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in found.named("th"))
    assert len(found.named("caption")) == len(found.named("table")) > 5
    figures = [attributes for attributes in found.named("div") if attributes.get("role") == "img"]
    assert len(figures) == len(found.named("svg")) == len(found.named("figure")) == 3
    assert all(len(attributes["aria-label"]) > 20 for attributes in figures)
    assert "width=device-width" in found.named("meta")[1]["content"]
    identifiers = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for reference in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text):
        assert "".join(reference) in identifiers


def test_page_shows_the_figures(text):
    words = " ".join(Page(text).texts)
    sparsity, scales = f"{full_report().counts.sparsity:.3f}", "8 bits, a scale for each channel"
    for figure in ("50.00%", "33.33%", "1 tied", sparsity, "evaluate runs/small", scales):
        assert figure in words
    encoded = re.search(r'<img src="data:image/png;base64,([^"]*)"', text).group(1)
    pixels = torch.tensor(list(Image.open(io.BytesIO(base64.b64decode(encoded))).tobytes()))
    assert pixels.equal((full_report().sample.image * 255).round().long().flatten())
    found = full_report().simulation
    settings = dataclasses.replace(found.settings, faults=Faults(lost_spikes=0.1), weight_bits=None)
    found = render_page(dataclasses.replace(full_report(), simulation=dataclasses.replace(found, settings=settings)))
    assert found.count("10% of spikes lost") == 2
    assert "not rounded, a scale" not in found


def test_page_escapes_hostile_names():
    data = full_report()
    counts = dataclasses.replace(
        data.counts, layers=tuple(dataclasses.replace(layer, name=HOSTILE) for layer in data.counts.layers)
    )
    spikes = tuple(dataclasses.replace(layer, name=HOSTILE) for layer in data.sample.spikes)
    sample = Sample(data.sample.image, spikes, HOSTILE, HOSTILE, (HOSTILE,) * 3)
    chip = dataclasses.replace(data.energy[0].chip, name=HOSTILE, description=HOSTILE)
    energy = (dataclasses.replace(data.energy[0], chip=chip, assumptions=(HOSTILE,), warnings=(HOSTILE,)),)
    hostile = dataclasses.replace(
        data,
        **dict(title=HOSTILE, dataset=HOSTILE, network=data.network | {"specification": HOSTILE}, counts=counts),
        **dict(sample=sample, energy=energy, chip=HOSTILE, facts={HOSTILE: HOSTILE}),
    )
    text = render_page(hostile)
    assert not Page(text).named("script")
    assert "<script" not in text
    assert HOSTILE in " ".join(Page(text).texts)


def test_raster_of_silent_readout_has_no_first_spike():
    silent = LayerSpikes("readout", 1, 10, torch.tensor([], dtype=torch.int64), torch.tensor([]))
    layers = [LayerSpikes("input", 0, 4, torch.arange(4), torch.rand(4)), silent]
    text = render_page(dataclasses.replace(full_report(), sample=Sample(torch.rand(3, 4, 4), tuple(layers), "a", "b")))
    assert "No output neuron fires." in text
    assert "first output spike</text>" not in text


def test_headline_is_of_the_chip_asked_for_and_says_what_it_lacks():
    data = full_report()
    energy = (*data.energy, estimate(data.counts, "anp_i", steps=8))
    for chip in ("anp_i", "loihi", "lemaire45:int8"):
        shown = dataclasses.replace(data, energy=energy, chip=chip)
        note = headlines(shown)[-1][2]
        assert note.startswith(f"{chip}, ")
        assert ("leakage not included" in note, "capacity not published" in note) == (True, chip == "anp_i")
        assert "upper bound" not in note
        assert "an upper bound: not simulated" in headlines(dataclasses.replace(shown, simulation=None))[-1][2]
    nothing = dataclasses.replace(data.energy[1], terms=())
    assert headlines(dataclasses.replace(data, energy=(nothing,)))[-1][1:] == ("–", "loihi has no price")


@pytest.mark.parametrize(
    ("at", "ties", "simulated", "told"),
    [
        ("potential_end", 2, True, "comes 7.0 steps earlier on average, and costs 16.67 points of accuracy. Output"),
        ("potential_end", 0, False, "window's end, and a chip decides so. The first output spike costs 16.67 points"),
        (
            *("first_spike", 2, True),
            "by the first output spike, and a chip decides so. Output spikes tie at the earliest step in 2 of 6 images "
            "(33.3%). More time steps make ties rarer.",
        ),
        ("first_spike", 2, False, "at the earliest time in 2 of 6 images (33.3%)."),
    ],
)
def test_page_says_how_a_chip_decides_and_what_ties_cost(at, ties, simulated, told):
    data = full_report()
    scores = {"first_spike_accuracy": 2 / 6, "accuracy": 3 / 6, "ties": ties}
    end = 32 if at == "potential_end" else 24
    latency = {"latency_steps": torch.full((6,), 25), "potential_latency_steps": end}
    found = dataclasses.replace(data.simulation, **scores, **latency) if simulated else None
    network = {**data.network, "readout": at}
    text = " ".join(page_decision(dataclasses.replace(data, network=network, ties=ties, simulation=found)))
    assert told in text
    assert ("steps make ties rarer" in text) == (simulated and ties > 0)


def test_linked_escapes_and_links():
    assert (
        linked("README (github.com/a/b)")
        == 'README (<a href="https://github.com/a/b" rel="noopener">github.com/a/b</a>)'
    )
    assert linked("<b> https://x.org/?a&b.").startswith('&lt;b&gt; <a href="https://x.org/?a&amp;b" rel="noopener">')
    assert linked('javascript:alert("1")') == "javascript:alert(&#34;1&#34;)"
