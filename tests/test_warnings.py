"""Which warnings are errors in tests: ours, not those of other packages."""

import warnings

import pytest


@pytest.mark.parametrize("module", ["ttfs_triton.nn.layers", "ttfs_kernels.ops", "tests.oracles", "_kernels_time"])
def test_a_warning_of_ours_is_an_error(module):
    with pytest.raises(DeprecationWarning, match="mend me"):
        warnings.warn_explicit("mend me", DeprecationWarning, f"{module}.py", 1, module)


@pytest.mark.parametrize("module", ["torch._subclasses.schema_check_mode", "triton.runtime.interpreter", "numpy"])
def test_a_warning_of_others_is_shown(module):
    with warnings.catch_warnings(record=True) as shown:
        warnings.warn_explicit("theirs", DeprecationWarning, f"{module}.py", 1, module)
    assert [str(warning.message) for warning in shown] == ["theirs"]
