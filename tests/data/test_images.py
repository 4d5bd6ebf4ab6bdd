import io
import logging
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from ttfs_triton.data.decode import EncodedImages, InMemoryImages
from ttfs_triton.data.images import ImageData, draw_images, load_images, train_validation_split
from ttfs_triton.data.reading import open_image


def with_labels(labels: list[int]) -> ImageData:
    names = [str(i) for i in range(max(labels) + 1)]
    pixels = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return ImageData(InMemoryImages(pixels), torch.tensor(labels), names, "a/b", "train", "0")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_load_images_reads_a_folder(tmp_path, random_images, write_parquet, channels, streaming):
    images, labels = random_images(20, channels), [i % 3 for i in range(20)]
    write_parquet(tmp_path / "train.parquet", images, labels, names=["x", "y", "z"], image="img", label="fine_label")
    data = load_images(None, tmp_path, streaming=streaming)
    assert isinstance(data.store, EncodedImages if streaming else InMemoryImages)
    expected = torch.from_numpy(images.reshape(20, 6, 6, channels)).permute(0, 3, 1, 2)
    assert torch.equal(data.images, expected)
    assert torch.equal(data.images_at(torch.tensor([7, 0])), expected[[7, 0]])
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == labels
    assert data.class_names == ["x", "y", "z"]
    assert (data.name, data.split, data.skipped, len(data)) == (str(tmp_path), "train", [], 20)


def test_load_images_reads_parquet_without_types(tmp_path, random_images, encode_png):
    images = random_images(3)
    column = [{"bytes": encode_png(image), "path": f"{i}.png"} for i, image in enumerate(images)]
    pq.write_table(pa.table({"image": column, "label": [2, 0, 1]}), tmp_path / "train.parquet")
    data = load_images(None, tmp_path)
    assert torch.equal(data.images[:, 0], torch.from_numpy(images))
    assert data.class_names == ["0", "1", "2"]


def test_load_images_reads_class_folders_in_the_numbering_of_the_training_split(tmp_path, random_images):
    for folder, count in (("train/cat", 2), ("train/dog", 2), ("train/fox", 1), ("test/dog", 1), ("test/fox", 1)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random_images(1)[0]).save(tmp_path / folder / f"{i}.png")
    train = load_images(None, tmp_path)
    test = load_images(None, tmp_path, split="test", like=train)
    assert train.labels.tolist() == [0, 0, 1, 1, 2]
    assert test.labels.tolist() == [1, 2]
    assert test.class_names == train.class_names == ["cat", "dog", "fox"]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([4, 0, 2], None, [4, 0, 2]),
        (["dog", "cat", "dog"], None, [1, 0, 1]),
        ([1, 0, 1], ["cat", "dog"], [1, 0, 1]),
    ],
)
def test_load_images_accepts_labels(tmp_path, random_images, write_parquet, labels, names, numbers):
    write_parquet(tmp_path / "train.parquet", random_images(3), labels, names=names)
    data = load_images(None, tmp_path)
    assert data.labels.tolist() == numbers
    assert data.class_names == (
        ["0", "1", "2", "3", "4"] if isinstance(labels[0], int) and not names else ["cat", "dog"]
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, -1], r"must be in 0 to 0; got -1 in row 1 of the train split of .* \(2 such rows\)\. Splits without"),
        ([0, None, 1], "labels must be given; got none in row 1"),
        ([0.5, 1.0, 2.0], "labels must be whole numbers or strings; got double in column 'label'"),
    ],
)
def test_load_images_rejects_labels(tmp_path, random_images, write_parquet, labels, message):
    write_parquet(tmp_path / "train.parquet", random_images(3), labels)
    with pytest.raises(ValueError, match=message):
        load_images(None, tmp_path)


def test_load_images_rejects_an_empty_split(monkeypatch):
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    empty = datasets.Dataset.from_dict({"image": [], "label": []}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=empty))
    with pytest.raises(ValueError, match="the train split of a/b must hold rows; got none"):
        load_images("a/b")


def test_load_images_rejects_a_column_without_images(tmp_path):
    pq.write_table(pa.table({"image": [1, 2], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"image_column must hold encoded images; got 'image' of type .*int64"):
        load_images(None, tmp_path)


def test_load_images_rejects_test_labels_unknown_in_training(tmp_path, random_images, write_parquet):
    write_parquet(tmp_path / "train.parquet", random_images(2), [0, 1])
    write_parquet(tmp_path / "test.parquet", random_images(2), [0, 5])
    train = load_images(None, tmp_path)
    with pytest.raises(ValueError, match="labels must be in 0 to 1; got 5 in row 1 of the test split"):
        load_images(None, tmp_path, split="test", like=train)


def test_load_images_rejects_test_classes_unknown_in_training(tmp_path, random_images, write_parquet):
    write_parquet(tmp_path / "train.parquet", random_images(2), ["cat", "dog"])
    write_parquet(tmp_path / "test.parquet", random_images(2), ["cat", "cow"])
    train = load_images(None, tmp_path)
    with pytest.raises(
        ValueError, match=r"classes of the test split of .* must be those of the training split; got cow"
    ):
        load_images(None, tmp_path, split="test", like=train)


def test_load_images_gives_the_test_split_channels_and_size_of_training(tmp_path, random_images, write_parquet):
    write_parquet(tmp_path / "train.parquet", random_images(2, 3), [0, 1])
    write_parquet(tmp_path / "test.parquet", random_images(2), [0, 1])
    train = load_images(None, tmp_path)
    assert load_images(None, tmp_path, split="test", like=train).shape == (2, 3, 6, 6)
    resized = load_images(None, tmp_path, image_size=4)
    with pytest.raises(ValueError, match="where the training images have 4x4"):
        load_images(None, tmp_path, split="test", like=resized)
    assert load_images(None, tmp_path, split="test", like=resized, image_size=4).shape == (2, 3, 4, 4)


def test_load_images_says_which_split_stands_in_for_test(tmp_path, random_images, write_parquet, caplog):
    write_parquet(tmp_path / "validation.parquet", random_images(2), [0, 1])
    with caplog.at_level(logging.WARNING):
        data = load_images(None, tmp_path, split="test")
    assert data.split == "validation"
    assert "has no test split; using validation" in caplog.text


def test_load_images_max_samples_keeps_class_proportions(tmp_path, random_images, write_parquet):
    labels = [0] * 30 + [1] * 10
    write_parquet(tmp_path / "train.parquet", random_images(40), labels)
    data = load_images(None, tmp_path, max_samples=8)
    assert torch.bincount(data.labels).tolist() == [6, 2]
    again = load_images(None, tmp_path, max_samples=8, streaming=True)
    assert again.fingerprint == data.fingerprint
    assert len(load_images(None, tmp_path, max_samples=100)) == 40


def test_load_images_rejects_max_samples_below_one(tmp_path, random_images, write_parquet):
    write_parquet(tmp_path / "train.parquet", random_images(2), [0, 1])
    with pytest.raises(ValueError, match="max_samples must be at least 1; got 0"):
        load_images(None, tmp_path, max_samples=0)


def test_load_images_skips_the_label_of_a_bad_image_too(tmp_path, random_images, write_parquet):
    images = random_images(4)
    write_parquet(tmp_path / "train.parquet", [images[0], b"damaged", images[2], images[3]], [0, 1, 2, 3])
    for streaming in (False, True):
        data = load_images(None, tmp_path, streaming=streaming)
        assert data.skipped == [1]
        assert data.labels.tolist() == [0, 2, 3]
        assert torch.equal(data.images[:, 0], torch.from_numpy(images[[0, 2, 3]]))
    with pytest.raises(ValueError, match="at most 0 images must be undecodable; got 1 up to row 1 of the train split"):
        load_images(None, tmp_path, max_bad_images=0)


def test_load_images_fingerprint_depends_on_content_only(tmp_path, random_images, write_parquet):
    images, labels = random_images(6), [0, 1, 2, 0, 1, 2]

    def fingerprint(folder: str, pixels: np.ndarray = images, classes: list[int] = labels, **options: str) -> str:
        write_parquet(tmp_path / folder / "train.parquet", pixels, classes, **options)
        return load_images(None, tmp_path / folder).fingerprint

    first = fingerprint("a")
    assert fingerprint("b", image="img", label="fine_label") == first
    others = {
        fingerprint("c", images ^ 1),
        fingerprint("d", classes=[0, 1, 2, 0, 2, 1]),
        fingerprint("e", images.reshape(6, 4, 9)),
    }
    assert first not in others
    assert len(others) == 3


@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.floats(0, 0.99), st.integers(0, 3))
def test_train_validation_split_is_stratified_and_complete(labels, fraction, seed):
    data = with_labels(labels)
    count = round(fraction * len(labels))
    if count == len(labels):
        count = len(labels) - 1
    train, validation = train_validation_split(data, count, seed)
    assert len(validation) == count
    assert sorted(torch.cat([train, validation]).tolist()) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert validation.tolist() == sorted(validation.tolist())
    sizes = torch.bincount(data.labels, minlength=5)
    chosen = torch.bincount(data.labels[validation], minlength=5)
    assert ((chosen - sizes * count / len(labels)).abs() < 1).all()


def test_train_validation_split_is_a_function_of_the_seed():
    data = with_labels([i % 10 for i in range(1000)])
    first, again, other = (train_validation_split(data, 0.1, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first) == 100


def test_train_validation_split_without_validation():
    train, validation = train_validation_split(with_labels([0, 1, 1]), 0.0, 0)
    assert (train.tolist(), validation.tolist()) == ([0, 1, 2], [])


@pytest.mark.parametrize("validation", [-1, -0.1, 3, 1.0, 7])
def test_train_validation_split_rejects_what_leaves_nothing(validation):
    with pytest.raises(ValueError, match=f"validation must leave images to train on; got {validation} of 3 images"):
        train_validation_split(with_labels([0, 1, 1]), validation, 0)


def test_draw_images_draws_by_the_seed_among_those_named():
    pixels = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
    data = ImageData(InMemoryImages(pixels), torch.zeros(20, dtype=torch.int64), ["a"], "a/b", "train", "0")
    some = (draw_images(data, 5, seed=1, among=torch.arange(10, 20)) * 255).flatten()
    assert some.dtype == torch.float32
    assert set(some.tolist()) < set(range(10, 20))
    assert torch.equal(some, (draw_images(data, 5, seed=1, among=torch.arange(10, 20)) * 255).flatten())
    assert not torch.equal(some, (draw_images(data, 5, seed=2, among=torch.arange(10, 20)) * 255).flatten())
    everything = draw_images(data, 100, seed=1)
    assert everything.shape == (20, 1, 1, 1)
    torch.testing.assert_close(everything.flatten().sort().values, torch.arange(20) / 255)


def test_parquet_holds_images_not_names_of_files(tmp_path):
    rows = {"image": [{"bytes": None, "path": "/dev/stdin"}, {"bytes": None, "path": None}], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="image_column must hold images, not names of files; got names in 'image'"):
        load_images(data_dir=tmp_path)


def test_other_formats_pipes_and_giants_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is no regular file"):
        open_image({"bytes": None, "path": str(tmp_path / "a.png")})
    with pytest.raises(UnidentifiedImageError):
        open_image({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\n", "path": None})
    with pytest.raises(ValueError, match="no image"):
        open_image({"bytes": b"", "path": "a.png"})
    Image.new("1", (2**14, 2**13 + 1)).save(tmp_path / "b.png")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="must have at most 134217728 pixels; got 16384 × 8193"),
    ):
        open_image({"bytes": None, "path": str(tmp_path / "b.png")})
    (tmp_path / "c.png").touch()
    os.truncate(tmp_path / "c.png", 2**29 + 1)
    with pytest.raises(ValueError, match="must have at most 536870912 bytes; got 536870913"):
        open_image({"bytes": None, "path": str(tmp_path / "c.png")})


def test_header_that_asks_for_gigabytes_gets_none(tmp_path):
    """Pillow asks a file for as many bytes as the length of a chunk says, and memory for them is taken first."""
    buffer = io.BytesIO()
    Image.new("L", (5, 6)).save(buffer, "PNG")
    content = buffer.getvalue()
    place = content.index(b"IDAT")
    (tmp_path / "a.png").write_bytes(content[: place - 4] + b"\x7f\xff\xff\xff" + content[place:])
    with open_image({"bytes": None, "path": str(tmp_path / "a.png")}) as image:
        assert isinstance(image.fp, io.BytesIO)  # which gives what it has


def test_labels_have_a_bound(tmp_path, write_parquet):
    write_parquet(tmp_path / "train.parquet", np.zeros((2, 4, 4), np.uint8), [0, 10**9])
    with pytest.raises(ValueError, match="labels must be below 1048576; got 1000000000 in row 1"):
        load_images(data_dir=tmp_path)
