"""The neuron's ranges, each refusal by its message."""

import math
import re

import pytest

from ttfs_kernels import Neuron

NAN = math.nan
REFUSALS = [
    *(({name: "1"}, f"{name} must be a number; got '1'") for name in ("psp_persistence", "derivative_clip")),
    ({"surrogate_width": None}, "surrogate_width must be a number; got None"),
    ({"psp_persistence": True}, "psp_persistence must be a number; got True"),
    *(({"psp_persistence": sigma}, f"psp_persistence must lie in [0, 1]; got {sigma}") for sigma in (1.5, -0.1, NAN)),
    *(({"derivative_clip": clip}, f"derivative_clip must be positive or None; got {clip}") for clip in (0, -1.0, NAN)),
    *(
        ({"surrogate_width": width}, f"surrogate_width must be finite and at least 0; got {width}")
        for width in (-0.5, math.inf, NAN)
    ),
]


@pytest.mark.parametrize(("properties", "message"), REFUSALS)
def test_neuron_refuses_properties_out_of_range(properties, message):
    with pytest.raises(ValueError, match=re.escape(f"Neuron: {message}")):
        Neuron(**properties)
