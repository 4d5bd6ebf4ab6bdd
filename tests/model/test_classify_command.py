"""`ttfs classify`: the decisions of `TTFSModel.classify` on files, as a table and as JSON."""

import json

import pytest
from PIL import Image, ImageDraw

from ttfs_triton.commands import classify as main
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import NetworkConfig

BUNDLED, NAMES = "bundled:cnn1-mnist", ("zero.png", "one.png")


@pytest.fixture(autouse=True)
def _images(tmp_path, monkeypatch):
    """A drawn zero of the network's size, and a drawn one of another size, in colour."""
    monkeypatch.chdir(tmp_path)
    zero, one = Image.new("L", (28, 28)), Image.new("RGB", (56, 56))
    ImageDraw.Draw(zero).ellipse((8, 5, 20, 23), outline=255, width=3)
    ImageDraw.Draw(one).line((30, 10, 26, 46), fill="white", width=6)
    zero.save(NAMES[0])
    one.save(NAMES[1])


def command(capsys, *words):
    main("Classify.", list(words))
    return capsys.readouterr().out


def test_json_lines_are_the_decisions_of_the_model(capsys):
    lines = [json.loads(line) for line in command(capsys, BUNDLED, *NAMES, "--json", "--top", "2").splitlines()]
    for line, result in zip(lines, TTFSModel.from_pretrained(BUNDLED).classify(NAMES, top_k=2), strict=True):
        assert 4 <= line["first_spike_time"] == result.spike_times.min().item() <= line["windows"] == 5
        assert (line["first_spike"], line["top"]) == (result.first_spike, [vars(score) for score in result.top])
    assert [(line["image"], line["class_name"]) for line in lines] == [("zero.png", "0"), ("one.png", "1")]


def test_table_has_a_row_for_each_image_and_a_line_for_each_class(capsys):
    _, _, zero, second, one, *_ = command(capsys, BUNDLED, *NAMES, "--top", "2").splitlines()
    assert (zero.split()[:2], len(second.split()), one.split()[:2]) == (["zero.png", "0"], 2, ["one.png", "1"])
    assert zero.endswith(" of 5")


def test_silent_outputs_have_no_first_spike(capsys):
    model = TTFSModel(NetworkConfig("4C3-P2-8", image_size=(28, 28)))
    model.readout.bias.data.fill_(-1000)
    model.save_pretrained("folder")
    line = json.loads(command(capsys, "folder", "zero.png", "--json"))
    assert line["first_spike"] is line["first_spike_class_name"] is line["first_spike_time"] is None
    assert command(capsys, "folder", "zero.png").splitlines()[2].split()[-2:] == ["none", "–"]


def test_files_that_are_no_images_are_refused_before_any_result(capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes((tmp_path / "zero.png").read_bytes()[:50])
    for name, rule in (("nowhere.png", "must exist; there is no file nowhere.png"), ("broken.png", "must be readable")):
        with pytest.raises(SystemExit):
            command(capsys, BUNDLED, "zero.png", name)
        shown = capsys.readouterr()
        assert (f"error: image 1 {rule}" in shown.err, shown.out) == (True, "")
