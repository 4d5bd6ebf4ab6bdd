"""Arguments that no layer can have are refused when it is built, in the words of the argument."""

import pytest
import torch

from ttfs_triton.nn import AnalogEncoder, DFTConv2d, DFTLinear, Neuron, SignedEncoder

CONVOLUTIONS = [DFTConv2d, AnalogEncoder, SignedEncoder]


@pytest.mark.parametrize("layer", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride must be an integer of at least 1.*got 0"),
        ({"padding": -1}, "padding must be an integer of at least 0.*got -1"),
        ({"padding": (1, 1, 1)}, r"padding must be an integer of at least 0.*got \(1, 1, 1\)"),
        ({"padding": 1.0}, "padding must be an integer of at least 0.*got 1.0"),
        ({"padding": "some"}, 'padding must be sizes, "same" or "valid"; got .some.'),
        ({"padding": "same", "stride": 2}, r"stride must be 1 with padding=\"same\"; got \(2, 2\)"),
    ],
)
def test_sizes_that_cannot_be_are_refused(layer, options, message):
    with pytest.raises(ValueError, match=f"{layer.__name__}: {message}"):
        layer(3, 4, 3, **options)


def test_dilation_and_kernels_are_checked_too():
    with pytest.raises(ValueError, match="dilation must be an integer of at least 1"):
        DFTConv2d(3, 4, 3, dilation=0)
    with pytest.raises(ValueError, match=r"kernel_size must be an integer of at least 1.*got 3\.5"):
        DFTConv2d(3, 4, 3.5)
    with pytest.raises(ValueError, match=r"kernel_size must be odd with padding=\"same\""):
        DFTConv2d(3, 4, 2, padding="same")


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "padding"), [(3, 1, "same"), ((3, 5), (2, 1), "same"), (2, 2, "same"), (3, 1, "valid")]
)
def test_padding_by_words_is_pytorchs(kernel_size, dilation, padding):
    layer = DFTConv2d(3, 4, kernel_size, padding=padding, dilation=dilation)
    expected = torch.nn.Conv2d(3, 4, kernel_size, padding=padding, dilation=dilation)
    x = torch.rand(2, 3, 9, 8)
    assert layer(x).shape == expected(x).shape


@pytest.mark.parametrize("build", [lambda **options: DFTConv2d(3, 4, 3, **options), lambda **o: DFTLinear(3, 4, **o)])
def test_neuron_and_backend_are_checked(build):
    with pytest.raises(TypeError, match=r"neuron must be a Neuron; got 0\.4\. Give Neuron\(psp_persistence="):
        build(neuron=0.4)
    with pytest.raises(ValueError, match=r"backend must be one of auto, triton, torch; got .cuda.\."):
        build(backend="cuda")
    assert build(neuron=Neuron(0.4), backend="torch").neuron == Neuron(0.4)
