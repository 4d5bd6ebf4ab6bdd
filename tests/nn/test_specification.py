import pytest

from ttfs_triton.nn.config import Convolution, Dense, Pool, parse_specification

AVERAGES = [("4C3-A2-8", "A2"), ("4C3-A-4C3", "A"), ("4C3-A2-P2", "A2"), ("A2-4C3", "A2")]


def test_parse_reads_the_papers_network():
    assert parse_specification("16C5-P2-32C5p0-P2-128") == (
        Convolution(16, 5, padding=2, stride=1),
        Pool(2, 2),
        Convolution(32, 5, padding=0, stride=1),
        Pool(2, 2),
        Dense(128),
    )


def test_parse_reads_strides_and_spaces():
    assert parse_specification("8C3s2 - 8C1p0s3 - P3s2") == (
        Convolution(8, 3, padding=1, stride=2),
        Convolution(8, 1, padding=0, stride=3),
        Pool(3, 2),
    )


def test_parse_reads_blocks():
    block = Convolution(8, 3, padding=1, stride=2), Convolution(8, 3, padding=1, stride=1, skip=1)
    assert parse_specification("4C3-(8C3s2 - 8C3)x2-P2-(16-16-16)") == (
        Convolution(4, 3, padding=1, stride=1),
        *block,
        *block,
        Pool(2, 2),
        Dense(16),
        Dense(16),
        Dense(16, skip=2),
    )


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("4C3-(8C3)", r'a block must be of two or more convolutions.*; got "\(8C3\)"'),
        ("(8C3-P2)", r'a block must be of two or more .*; got "\(8C3-P2\)"'),
        ("(8C3-8C3)x0", r'a block must be of two or more .*; got "\(8C3-8C3\)x0"'),
        ("(8C3-(8C3-8C3))", r'got "\(8C3-\(8C3-8C3\)\)"|got "\(8C3"'),
        ("(8C3-8C3", "a block must be of two or more|must look like"),
        ("(8-8)x9999", "specification must have at most 2048 layers"),
        ("(8-8)-8C3", "must come before fully connected layers"),
        ("16C5-Q2-128", r'must look like "64C3", "64C3p0s2", "P2", "A2" or "128"; got "Q2" in "16C5-Q2-128"'),
        ("", 'got ""'),
        ("16C5--128", 'got ""'),
        ("0C3-128", 'must be from 1 to .*; got "0C3"'),
        ("99999999C3", 'channels must be from 1 to 1048576; got "99999999C3"'),
        ("8C3p2000", 'padding must be from 0 to 1024; got "8C3p2000"'),
        ("1" * 5000, "specification must be text of at most 4096 characters; got 5000"),
        *((text, f'an average must follow a convolution or pool.*; got "{average}"') for text, average in AVERAGES),
        ("4C3-8-A", "convolutions and pools must come before fully connected layers"),
        ("4C3-A0-4C3", 'kernel_size must be from 1 to 1024; got "A0"'),
        ("128-16C3", r'must come before fully connected layers; got "16C3"'),
        ("16C3-128-P2", r'must come before fully connected layers; got "P2"'),
    ],
)
def test_parse_names_the_bad_token(specification, message):
    with pytest.raises(ValueError, match=message):
        parse_specification(specification)
