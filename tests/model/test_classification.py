"""`classify`: classes, spike times and the decision's time, against the layers; images in every form; the command."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ttfs_triton import TTFSModel
from ttfs_triton.commands import classify as main
from ttfs_triton.data.pixels import centre_crop, decode_image
from ttfs_triton.model import Preprocessing
from ttfs_triton.model.classification import network_input
from ttfs_triton.nn import NetworkConfig, Neuron


def make(readout="potential_end", **values):
    config = NetworkConfig("4C3-P2-8", image_size=(8, 8), classes=4, readout=readout, neuron=Neuron(0.5), **values)
    return TTFSModel(config, class_names=["a", "b", "c", "d"]).eval()


@pytest.mark.parametrize("encoder", ["latency", "analog"])
@pytest.mark.parametrize(("readout", "after"), [("potential_start", 0), ("potential_end", 1), ("first_spike", None)])
def test_decision_and_its_time(encoder, readout, after):
    model, images = make(readout, encoder=encoder), torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        logits, spikes = model(images), model.decide(images)
    windows = 3 if encoder == "latency" else 2  # input (latency only), conv1, fc1; then the output neurons
    for place, answer in enumerate(model.classify(images, top_k=99)):
        assert torch.equal(answer.logits, logits[place])
        assert [score.label for score in answer.top] == logits[place].argsort(descending=True).tolist()
        assert (answer.label, answer.class_name) == (answer.top[0].label, "abcd"[int(logits[place].argmax())])
        assert [score.probability for score in answer.top] == sorted(logits[place].double().softmax(0), reverse=True)
        assert torch.allclose(answer.spike_times, windows + spikes.spike_times[place].double())
        expected = windows + after if after is not None else answer.spike_times.min().item()
        assert answer.decision_time == pytest.approx(expected)
        assert (answer.first_spike, answer.tie) == (int(spikes.spike_times[place].argmin()), bool(spikes.tie[place]))


@pytest.mark.parametrize(
    ("biases", "label", "first", "words"),
    [([1.0, 3.0, 3.0, -5.0], 1, 1, r"3\.\d\d windows, a tie\)"), ([-30.0, -20.0, -25.0, -40.0], 0, None, r"none\)")],
)
def test_ties_and_silence_are_told(biases, label, first, words):
    """Of output neurons that see nothing of the image but their initial potentials."""
    model = make("first_spike")
    with torch.no_grad():
        model.fold_standardisation()
        model.readout.weight.fill_(0.0)
        model.readout.bias.copy_(torch.tensor(biases))
    answer = model.classify(torch.rand(1, 8, 8), top_k=2)
    assert (answer.label, answer.first_spike, answer.tie, len(answer.top)) == (label, first, first is not None, 2)
    name = "ab"[label]
    assert re.fullmatch(rf"Classification\({name} .*; decided after .*; first output spike: {words}", repr(answer))
    assert answer.decision_time == (4 if first is None else answer.spike_times.min())  # 4 is the last window's end


def test_batches_devices_and_precisions_do_not_matter_and_mode_comes_back(device):
    model, images = make(dropout=0.5).train(), torch.rand(7, 1, 8, 8)
    whole, parts = model.classify(images), model.classify(list(images), batch_size=3)
    assert model.training
    assert model.classify([]) == []
    assert len(model.classify(np.zeros((2, 8, 8, 1), np.uint8))) == 2
    for one, other, there in zip(whole, parts, model.to(device).classify(images), strict=True):
        torch.testing.assert_close(one.logits, other.logits)
        torch.testing.assert_close((one.logits, one.spike_times), (there.logits, there.spike_times))
        assert (there.logits.device.type, there.label) == ("cpu", one.label)
    double = make().double()
    torch.testing.assert_close(double.classify(images[0]).logits, double(images[:1].double())[0].detach().float())
    with pytest.raises(ValueError, match="classify: top_k and batch_size must be at least 1; got 5 and 0"):
        double.classify(images, batch_size=0)


def test_threads_take_turns_and_inference_mode_changes_nothing():
    model, images = make(), torch.rand(16, 1, 1, 8, 8)
    expected = [model.classify(batch)[0].spike_times for batch in images]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(expected, pool.map(model.classify, images), strict=True):
            assert torch.equal(one, other[0].spike_times)
    with torch.inference_mode():
        assert torch.equal(expected[0], model.classify(images[0])[0].spike_times)


# ---- images in every accepted form, as the network's input


def pixels(height=6, width=5, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def one(image, preprocessing, channels):
    (row,) = network_input([image], preprocessing, channels)
    assert row.dtype == torch.float32
    assert 0 <= row.min() <= row.max() <= 1
    return row


def forms(array, folder):
    """The same pixels in all forms that are accepted: images and their files; arrays and tensors."""
    tensor, path = torch.from_numpy(array).permute(2, 0, 1), folder / "a.png"
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image.save(path)
    files = {"image": image, "file": path, "name": str(path)}
    arrays = {"array": array, "tensor": tensor, "reals": array / 255, "floats": tensor.float() / 255}
    flat = {"flat array": array[:, :, 0], "flat tensor": tensor[0], "mirrored": array[:, ::-1].copy()[:, ::-1]}
    return files, arrays | (flat if array.shape[2] == 1 else {})


@pytest.mark.parametrize("size", [(6, 5), (13, 17), (3, 2)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_all_forms_are_the_same_image_as_in_training(size, channels, mode, fit, tmp_path):
    """Real values of another size or of other colours are rounded to 8 bits; arrays of this size are not cropped."""
    files, arrays = forms(pixels(*size, channels), tmp_path)
    for images, crop in ((files, fit == "crop"), (arrays, fit == "crop" and size != (6, 5))):
        file = {"bytes": None, "path": str(files["file"])}
        trained = decode_image(file, (6, 5), mode, centre_crop if crop else None)
        expected = torch.from_numpy(np.array(trained)).permute(2, 0, 1) / 255
        for name, image in images.items():
            row = one(image, Preprocessing((6, 5), mode, fit=fit), 1 if mode == "L" else 3)
            assert torch.equal(row, expected), name


def test_channels_that_are_no_colours_need_tensors():
    preprocessing = Preprocessing((6, 5), None)
    whole = torch.randint(0, 256, (2, 6, 5), dtype=torch.uint8)
    for image in (whole, whole / 255):
        assert torch.equal(one(image, preprocessing, 2), whole / 255)
    for image, message in (
        (Image.new("L", (5, 6)), "image 0 must be a tensor: this network's channels are not colours"),
        (torch.rand(3, 6, 5), r"must have shape .*, C = 2; got \(3, 6, 5\)"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), r"must be \(6, 5\) pixels, 2 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            one(image, preprocessing, 2)


def test_rounding_beyond_the_range_is_cut_off():
    assert one(torch.full((3, 6, 5), 1 + 1e-6), Preprocessing((6, 5), "RGB"), 3).max() == 1


def test_what_is_no_image_is_refused():
    for image, message in (
        (torch.zeros(3, 6, 5, dtype=torch.int64), r"must be uint8, or floating point .* got torch\.int64"),
        (np.full((6, 5, 3), 1.5), r"must have values in \[0, 1\]; got 1.5 to 1.5\. Divide pixels by 255"),
        (torch.full((3, 6, 5), -0.5), "must have values .* Undo the normalisation"),
        (torch.full((3, 6, 5), float("nan")), r"must have values in \[0, 1\]; got nan"),
        (torch.zeros(6, 5, 3), r"must have shape \[C, height, width\] .*, C = 1 or 3; got \(6, 5, 3\)"),
        (np.zeros((3, 6, 5), np.uint8), r"must have shape .*, \[height, width, C\] as an array, .*; got \(3, 6, 5\)"),
        (np.array(3, np.uint8), r"must have shape .*; got \(\)"),
        (torch.zeros(3, 0, 5), "must have shape"),
        (Image.new("F", (5, 6)), "pixel mode F has no 8-bit meaning"),
        (7, "must be a Pillow image, a path, an array or a tensor; got int"),
        ("nowhere.png", r"must exist; there is no file nowhere\.png"),
        (__file__, "must be readable"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"classify: image 1 {message}"):
            network_input([torch.rand(3, 6, 5), image], Preprocessing((6, 5), "RGB"), 3)


# ---- the command

BUNDLED, NAMES = "bundled:cnn1-mnist", ("zero.png", "one.png")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """What `ttfs classify` prints beside a drawn zero of the network's size and a drawn one of another, in colour."""
    monkeypatch.chdir(tmp_path)
    zero, one = Image.new("L", (28, 28)), Image.new("RGB", (56, 56))
    ImageDraw.Draw(zero).ellipse((8, 5, 20, 23), outline=255, width=3)
    ImageDraw.Draw(one).line((30, 10, 26, 46), fill="white", width=6)
    zero.save(NAMES[0])
    one.save(NAMES[1])

    def command(*words):
        main("Classify.", list(words))
        return capsys.readouterr().out

    return command


def test_command_prints_the_decisions_of_the_model_as_json_or_as_a_table(command):
    lines = [json.loads(line) for line in command(BUNDLED, *NAMES, "--json", "--top", "2").splitlines()]
    for line, result in zip(lines, TTFSModel.from_pretrained(BUNDLED).classify(NAMES, top_k=2), strict=True):
        assert 4 <= line["first_spike_time"] == result.spike_times.min().item() <= line["windows"] == 5
        assert (line["first_spike"], line["top"]) == (result.first_spike, [vars(score) for score in result.top])
    assert [(line["image"], line["class_name"]) for line in lines] == [("zero.png", "0"), ("one.png", "1")]
    _, _, zero, second, one, *_ = command(BUNDLED, *NAMES, "--top", "2").splitlines()
    assert (zero.split()[:2], len(second.split()), one.split()[:2]) == (["zero.png", "0"], 2, ["one.png", "1"])
    assert zero.endswith(" of 5")
    silent = TTFSModel(NetworkConfig("4C3-P2-8", image_size=(28, 28)))
    silent.readout.bias.data.fill_(-1000)
    silent.save_pretrained("folder")
    line = json.loads(command("folder", "zero.png", "--json"))
    assert line["first_spike"] is line["first_spike_class_name"] is line["first_spike_time"] is None
    assert command("folder", "zero.png").splitlines()[2].split()[-2:] == ["none", "–"]


def test_command_refuses_what_is_no_image_before_any_result(command, capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes((tmp_path / "zero.png").read_bytes()[:50])
    for name, rule in (("nowhere.png", "must exist; there is no file nowhere.png"), ("broken.png", "must be readable")):
        with pytest.raises(SystemExit):
            command(BUNDLED, "zero.png", name)
        shown = capsys.readouterr()
        assert (f"error: image 1 {rule}" in shown.err, shown.out) == (True, "")
