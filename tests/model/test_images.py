"""Images in every accepted form, as the network's input; equal to what training feeds it."""

import numpy as np
import pytest
import torch
from PIL import Image

from ttfs_triton.data.pixels import centre_crop, decode_image, to_float
from ttfs_triton.model import Preprocessing
from ttfs_triton.model.classification import network_input

GRAY, COLOUR = Preprocessing((6, 5), "L"), Preprocessing((6, 5), "RGB")


def pixels(height=6, width=5, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def one(image, preprocessing=COLOUR, channels=3):
    (row,) = network_input([image], preprocessing, channels)
    assert row.dtype == torch.float32
    return row


def forms(array):
    """The same pixels in all forms that are accepted."""
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image, reals = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array), array / 255
    all_forms = {"image": image, "array": array, "tensor": tensor, "reals": reals, "floats": tensor.float() / 255}
    flat = {"flat array": array[:, :, 0], "flat tensor": tensor[0], "mirrored": array[:, ::-1].copy()[:, ::-1]}
    return all_forms | (flat if array.shape[2] == 1 else {})


@pytest.mark.parametrize("size", [(6, 5), (13, 17)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preprocessing", [GRAY, COLOUR])
def test_all_forms_are_the_same_image(size, channels, preprocessing):
    """Real values of another size or of other colours are rounded to 8 bits."""
    array, wanted = pixels(*size, channels), 1 if preprocessing is GRAY else 3
    images = forms(array)
    expected = one(images["image"], preprocessing, wanted)
    if size == (6, 5) and channels == wanted:
        assert torch.equal(expected, to_float(torch.from_numpy(array).permute(2, 0, 1)[None])[0])
    for name, image in images.items():
        assert torch.equal(one(image, preprocessing, wanted), expected), name


@pytest.mark.parametrize("size", [(6, 5), (13, 17), (3, 2)])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_files_are_read_as_in_training(tmp_path, size, mode):
    path = tmp_path / "a.png"
    Image.fromarray(pixels(*size)).convert(mode).save(path)
    trained = decode_image({"bytes": path.read_bytes(), "path": None}, (6, 5))
    expected = to_float(torch.from_numpy(np.array(trained)).permute(2, 0, 1)[None])[0].expand(3, -1, -1)
    assert torch.equal(one(path), expected)
    assert torch.equal(one(str(path)), expected)


@pytest.mark.parametrize("size", [(32, 48), (12, 10)])
def test_cropped_images_are_the_middle_but_for_arrays_of_the_networks_size(size):
    array, cropping = pixels(*size), Preprocessing((12, 10), "RGB", fit="crop")
    middle = torch.from_numpy(np.array(centre_crop(Image.fromarray(array), (12, 10)))).permute(2, 0, 1) / 255
    for name, image in forms(array).items():
        whole = size == (12, 10) and name != "image"
        expected = torch.from_numpy(array).permute(2, 0, 1) / 255 if whole else middle
        assert torch.equal(one(image, cropping), expected), name


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


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 6, 5, dtype=torch.int64), r"must be uint8, or floating point .* got torch\.int64"),
        (np.full((6, 5, 3), 1.5), r"must have values in \[0, 1\]; got 1.5 to 1.5\. Divide pixels by 255"),
        (torch.full((3, 6, 5), float("nan")), r"must have values in \[0, 1\]; got nan"),
        (torch.zeros(6, 5, 3), r"must have shape \[C, height, width\] .*, C = 1 or 3; got \(6, 5, 3\)"),
        (np.zeros((3, 6, 5), np.uint8), r"must have shape .*, \[height, width, C\] as an array, .*; got \(3, 6, 5\)"),
        (np.array(3, np.uint8), r"must have shape .*; got \(\)"),
        (torch.zeros(3, 0, 5), "must have shape"),
        (Image.new("F", (5, 6)), "pixel mode F has no 8-bit meaning"),
        (7, "must be a Pillow image, a path, an array or a tensor; got int"),
        ("nowhere.png", r"must exist; there is no file nowhere\.png"),
        (__file__, "must be readable"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises((TypeError, ValueError), match=f"classify: image 1 {message}"):
        network_input([torch.rand(3, 6, 5), image], COLOUR, 3)
