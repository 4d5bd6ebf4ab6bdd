"""Price of a memory access by the memory's size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttfs_triton.hardware.energy.chip import Memory
from ttfs_triton.hardware.energy.chip_files import load_chip
from ttfs_triton.hardware.energy.prices import Price

KB = 1024


@pytest.fixture
def sram():
    memory = load_chip("lemaire45:int8").memory
    assert memory is not None
    return memory


@pytest.mark.parametrize(("size_kb", "pj"), [(1, 10), (8, 10), (20, 15), (32, 20), (1024, 100)])
def test_access_matches_published_sizes(sram, size_kb, pj):
    price = sram.access(size_kb * KB, 64)
    assert (price.low, price.value, price.high) == pytest.approx((pj, pj, pj))
    assert price.status == "simulated"


def test_access_has_full_words_at_its_low_end(sram):
    price = sram.access(8 * KB, 8)
    assert (price.low, price.value, price.high) == pytest.approx((10 / 8, 10, 10))
    packed = Memory(sram.points, packed=True).access(8 * KB, 8)
    assert (packed.low, packed.value, packed.high) == pytest.approx((10 / 8, 10 / 8, 10))


def test_access_beyond_the_largest_memory_is_banks_of_it(sram):
    price = sram.access(64 * 1024 * KB, 64)
    assert price.value == pytest.approx(100)
    assert price.high > 5000
    assert price.status == "assumed"
    assert not sram.holds(64 * 1024 * KB)


def test_one_size_is_the_price_of_all():
    memory = Memory(((KB, Price(4, unit="pJ", status="measured", source="a paper")),))
    assert memory.access(100, 64).value == memory.access(100 * KB, 64).value == pytest.approx(4)


@given(st.floats(1, 1e9), st.integers(1, 128))
def test_access_is_ordered_and_rises(size, bits):
    memory = load_chip("lemaire45:fp32").memory
    assert memory is not None
    small, large = memory.access(size, bits), memory.access(size * 2, bits)
    assert small.low <= small.value <= small.high
    assert small.value <= large.value * (1 + 1e-12)
