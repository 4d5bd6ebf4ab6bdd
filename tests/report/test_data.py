"""What a report refuses, and its numbers in words."""

import dataclasses

import pytest

from tests.report.cases import full_report
from ttfs_triton.hardware import estimate
from ttfs_triton.report.page import linked
from ttfs_triton.report.view import headlines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "images must be at least 1"),
        ({"accuracy": 99.5}, r"accuracy must be a share in \[0, 1\]; got 99.5"),
        ({"first_spike_accuracy": float("nan")}, "first_spike_accuracy must be a share"),
        ({"chip": "abacus"}, "chip must be one of .*; got abacus"),
    ],
)
def test_report_data_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(full_report(), **changes)


def test_headline_energy_is_the_first_with_a_price():
    data = dataclasses.replace(full_report(), chip=None)
    assert data.headline_energy is data.energy[0]
    assert full_report().headline_energy.chip.name == "loihi"


def test_headline_says_where_capacity_is_not_published():
    data = full_report()
    anp_i = estimate(data.counts, "anp_i", steps=8)
    notes = {
        chip: headlines(dataclasses.replace(data, energy=(*data.energy, anp_i), chip=chip))[-1][2]
        for chip in ("anp_i", "loihi", "lemaire45:int8")
    }
    assert {chip: "capacity not published" in note for chip, note in notes.items()} == {
        "anp_i": True,
        "loihi": False,
        "lemaire45:int8": False,
    }


@pytest.mark.parametrize(
    ("text", "html"),
    [
        (
            "README (github.com/a/b); x",
            'README (<a href="https://github.com/a/b" rel="noopener">github.com/a/b</a>); x',
        ),
        (
            "<b> https://x.org/?a&b.",
            '&lt;b&gt; <a href="https://x.org/?a&amp;b" rel="noopener">https://x.org/?a&amp;b</a>.',
        ),
        ('javascript:alert("1")', "javascript:alert(&#34;1&#34;)"),
    ],
)
def test_linked_escapes_and_links(text, html):
    assert linked(text) == html
