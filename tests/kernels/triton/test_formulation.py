"""Which form each chip and Triton version gets, and which are refused because they would race."""

import dataclasses

import pytest
import torch
import triton

from tests.kernels.triton import common
from ttfs_kernels import Neuron
from ttfs_kernels.triton_backend import passes, rule
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.formulation import (
    Chip,
    Form,
    check_form,
    default_form,
    inputs_first,
    refused,
    triton_version,
    two_accumulators,
)
from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.problem import Problem

AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL = (Chip("cuda", sm) for sm in (80, 89, 90, 100, 120))
MI300 = Chip("hip", "gfx942")
CHIPS = (AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL, MI300)
VERSIONS = ((3, 5), (3, 7), (3, 8), (3, 9), (3, 10), (4, 0))


@pytest.mark.parametrize(
    ("chip", "form", "accumulators", "first"),
    [
        (AMPERE, Form.ACTIVATIONS_FIRST, 1, True),
        (ADA, Form.ACTIVATIONS_FIRST, 1, True),
        (HOPPER, Form.WEIGHTS_FIRST, 2, False),
        (BLACKWELL, Form.WEIGHTS_FIRST, 2, False),
        (GEFORCE_BLACKWELL, Form.ACTIVATIONS_FIRST, 1, True),
        (MI300, Form.ACTIVATIONS_FIRST, 1, True),
    ],
    ids=str,
)
def test_each_chip_gets_its_form(chip, form, accumulators, first):
    assert default_form(chip) == form
    assert two_accumulators(chip) == (accumulators == 2)
    assert inputs_first(chip) == first


@pytest.mark.parametrize("version", VERSIONS)
def test_racing_forms_are_refused(version):
    """On Hopper: a mask in registers beside activations in shared memory always, all in registers before 3.9."""
    racing = {(chip, form) for chip in CHIPS for form in Form if refused(form, chip, version) is not None}
    expected = {(HOPPER, Form.ACTIVATIONS_FIRST)}
    if version < (3, 9):
        expected.add((HOPPER, Form.STACKED))
    assert racing == expected
    assert not any(refused(default_form(chip), chip, version) for chip in CHIPS)


def test_racing_forms_are_not_launched():
    problem = Problem(1, 1, 1, 4, 2)
    x, weight = torch.empty(1, 1, 1, 4, device="meta"), torch.empty(2, 1, 1, 4, device="meta")
    config = Config(16, 16, 16, 4, 1, Form.ACTIVATIONS_FIRST)
    with pytest.raises(RuntimeError, match="ACTIVATIONS_FIRST is a register race on sm_90 with every Triton version"):
        passes.forward(problem, x, weight, None, Neuron(), True, config, "ieee", HOPPER)
    safe = dataclasses.replace(config, form=default_form(HOPPER))
    assert passes.forward(problem, x, weight, None, Neuron(), True, safe, "ieee", HOPPER).launches


def test_refusal_says_which_form_is_safe():
    message = r"STACKED is a register race on sm_90 before Triton 3\.9; got Triton 3\.8\. Use WEIGHTS_FIRST, which is"
    with pytest.raises(RuntimeError, match=message):
        check_form(Form.STACKED, HOPPER, (3, 8))
    check_form(Form.STACKED, HOPPER, (3, 9))


def test_forms_are_numbered_as_in_the_kernels():
    for form in Form:
        assert int(getattr(rule, form.name).value) == form


@pytest.mark.parametrize(("text", "version"), [("3.9.0", (3, 9)), ("3.10.1+git1234", (3, 10)), ("4.0.0rc1", (4, 0))])
def test_triton_version_is_read(monkeypatch, text, version):
    monkeypatch.setattr(triton, "__version__", text)
    assert triton_version() == version


def test_triton_version_must_be_numbers(monkeypatch):
    monkeypatch.setattr(triton, "__version__", "nightly")
    with pytest.raises(RuntimeError, match="Triton's version must start with two numbers; got 'nightly'"):
        triton_version()


@pytest.mark.parametrize(("chip", "name", "warp"), [(HOPPER, "sm_90", 32), (MI300, "gfx942", 64)])
def test_chips_have_a_name_and_a_warp_size(chip, name, warp):
    assert str(chip) == name
    assert chip.warp_size == warp


def test_property_tests_draw_no_form_that_the_gpu_refuses(monkeypatch):
    """A skip inside would end the whole test at the first refused form."""
    hopper = Device("made up", Chip("cuda", 90), 132)
    monkeypatch.setattr(common.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(common, "device_of", lambda device: hopper)
    assert Form.ACTIVATIONS_FIRST not in common.allowed_forms()
    assert Form.WEIGHTS_FIRST in common.allowed_forms()
    monkeypatch.setattr(common, "device_of", lambda device: hopper._replace(chip=Chip("cuda", 80)))
    assert common.allowed_forms() == list(Form)
