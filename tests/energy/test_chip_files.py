"""Chips: what comes with the package, what files are refused, and published figures that the prices reproduce."""

import dataclasses

import pytest

from tests.energy.energy_cases import dense_network
from ttfs_triton.energy import Memory, Price, Range, available_chips, estimate, load_chip
from ttfs_triton.energy.chip import FOLDER, STATUSES, UNITS, Access, weakest

GIVEN = {"unit": "pJ", "status": "measured", "source": "a paper"}
MINE = """
description = "a chip of mine"
synop_scope = "including fetch"
node_nm = 22

[prices.synop]
value = 2.0
low = 1.0
high = 4.0
unit = "pJ"
status = "measured"
source = "my bench"

[prices.leakage_power]
value = 3
unit = "mW"
status = "measured"
source = "my bench"
"""
ADDITIONS = MINE.replace("including fetch", "arithmetic").replace("prices.synop", "prices.accumulate")
MEMORY = """
[[memory.accesses]]
size_kb = 8
value = 10
unit = "pJ"
status = "measured"
source = "my bench"
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        return path

    return write


def test_every_file_loads():
    names = available_chips()
    assert {name.partition(":")[0] for name in names} == {path.stem for path in FOLDER.glob("*.toml")}
    assert [load_chip(name).name for name in names] == list(names)
    assert load_chip("anp_i").prices["leakage_power"].amount is None  # nobody published it: that is not zero
    assert str(load_chip("spinnaker2").prices["synop"]) == "67.1 (10 to 450) pJ, assumed"


# ---- prices and memories


def test_amounts_are_in_the_first_unit_of_their_dimension():
    assert Price(10, 5, 450, **GIVEN | {"unit": "nJ"}).amount == Range(5e3, 1e4, 4.5e5)
    assert Price(2, **GIVEN | {"unit": "uJ"}) == Price(2, **GIVEN | {"unit": "μJ"})  # the Greek letter, and u
    # 1 mW over 1 ms is 1 µJ: the first units of the three dimensions multiply.
    assert UNITS["power"]["mW"] * UNITS["time"]["ms"] == UNITS["energy"]["µJ"]
    found = [weakest(statuses) for statuses in (["measured", "assumed", "fitted"], STATUSES, [])]
    assert found == ["assumed", "unpublished", None]


def test_access_interpolates_packs_words_at_its_low_end_and_needs_banks_beyond_the_largest_size():
    memory = load_chip("lemaire45:int8").memory
    for size_kb, pj in ((1, 10), (8, 10), (20, 15), (32, 20), (1024, 100)):
        price = memory.access(size_kb * 1024, 64)
        assert (price.low, price.value, price.high, price.status) == pytest.approx((pj, pj, pj, "simulated"))
    price, packed = (each.access(8192, 8) for each in (memory, Memory(memory.accesses, packed=True)))
    assert (price.low, price.value, price.high) == pytest.approx((10 / 8, 10, 10))
    assert (packed.low, packed.value, packed.high) == pytest.approx((10 / 8, 10 / 8, 10))
    wide = Memory(memory.accesses, word_bits=32).access(8192, 48)  # two aligned words
    assert (wide.low, wide.value, wide.high) == pytest.approx((15, 20, 20))
    banks = memory.access(64 * 2**20, 64)
    assert (banks.value, banks.status, memory.largest_bytes) == (pytest.approx(100), "assumed", 2**20)
    assert banks.high > 5000
    one = Memory((Access(4, size_kb=1, **GIVEN),))
    assert one.access(100, 64).value == one.access(102_400, 64).value == pytest.approx(4)


# ---- measured powers


def power_uw(chip, synaptic_operations_per_second):
    """Leakage, idle power and synaptic operations at a rate."""
    static = estimate(dense_network(), chip, steps=1, step_us=0.5).of_kind("static")  # two windows, a microsecond
    return chip.prices["synop"].amount.scaled(synaptic_operations_per_second * 1e-6) + static  # pJ/op · op/s = 1e-6 µW


# 0.55 V. Accelerated: a synaptic operation takes two cycles. Biological: 256 neurons at 10 Hz, 256 synapses each.
@pytest.mark.parametrize(("clock_mhz", "per_second", "published_uw"), [(75, 37.5e6, 477), (1.3, 0.65e6, 35)])
def test_odin_power_matches_measurements(clock_mhz, per_second, published_uw):
    # Frenkel et al., 2019, section IV-A; the powers are 13.6 times apart.
    clock, odin = Price(clock_mhz, unit="MHz", status="measured", source="the paper"), load_chip("odin")
    odin = dataclasses.replace(odin, prices=odin.prices | {"clock": clock})
    assert power_uw(odin, per_second).nominal == pytest.approx(published_uw, rel=3e-3)


def test_truenorth_prices_predict_a_measurement_that_the_average_of_26_pj_misses():
    # Akopyan et al., 2015, Fig. 17: 0.8 V, 1,048,576 neurons with 128 active synapses each; powers printed to 1 mW. The
    # prices are fitted to the first and the last point, the middle one is held out.
    for hertz, milliwatts, error, of_average in (
        (11.58, 68, 0.0, -0.41),
        (20.07, 71, -0.0054, -0.02),
        (95.93, 94, 0.0, 2.56),
    ):
        rate = 1_048_576 * 128 * hertz
        power = power_uw(load_chip("truenorth"), rate)
        assert power.nominal / (1000 * milliwatts) - 1 == pytest.approx(error, abs=1e-4)
        assert power.low * (1 - 1e-4) <= 1000 * milliwatts <= power.high * (1 + 1e-4)
        assert 26e-9 * rate / milliwatts - 1 == pytest.approx(of_average, abs=0.02)


# ---- files of the user's own


def test_users_own_file_loads(write):
    chip = load_chip(write(MINE))
    assert (chip.name, chip.prices["synop"].high, chip.memory) == ("mine", 4, None)
    more = '[precisions.int4]\nbits = 4\n[precisions.int4.prices.multiply_accumulate]\nvalue = 1\nunit = "pJ"\n'
    path = write(f'{ADDITIONS}{more}status = "measured"\nsource = "my bench"\n{MEMORY}')
    chip = load_chip(f"{path}:int4")
    assert (chip.name, chip.bits) == ("mine:int4", 4)
    assert {*chip.prices} == {"accumulate", "multiply_accumulate", "leakage_power"}
    assert chip.memory.accesses == (Access(10, size_kb=8, unit="pJ", status="measured", source="my bench"),)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Loihi 2", "one of anp_i, .* or the path of a TOML file; got Loihi 2. Nobody has published the energy"),
        ("horowitz45", "one of horowitz45:fp32, .*; got no precision"),
        ("loihi:int8", "one of loihi; got precision int8"),
        ("none.toml", "a TOML file that exists; got none.toml"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=f"load_chip: chip must be {message}"):
        load_chip(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("node_nm", "node_um", "node_um: there is no such key"),
        ("prices.synop", "prices.synpo", "included and prices must be of accumulate, .*; got synpo"),
        ('"pJ"', '"mW"', "prices.synop.unit must measure energy; got mW"),
        ("value = 2.0", "", "prices.synop: value must be given, unless .*; got None, measured"),
        ("low = 1.0", "low = 3.0", "prices.synop: value must be within low and high; got 3.0 ≤ 2.0 ≤ 4.0"),
        ('"including fetch"', '"arithmetic"', 'synop must be absent, because synop_scope = "arithmetic" covers it'),
        (MINE, ADDITIONS, 'prices.multiply_accumulate must be there for synop_scope = "arithmetic"'),
        ("node_nm = 22", "precisions = 3", r"must be one of .*mine\.toml; got no precision"),
        ("node_nm = 22", "# \udcff", "must be TOML; got an error: 'utf-8' codec"),
        ("node_nm = 22", "#" * 300_000, "must be TOML; got an error: .* at most 262144 are allowed"),
        ("[prices.synop]", f"{MEMORY}[prices.synop]", "memory must be absent, because synop_scope"),
        ("node_nm = 22", 'included = ["leakage_power"]', "leakage_power must be absent, because included covers it"),
        ("[prices.synop]", f"{MEMORY * 2}[prices.synop]", r"memory: accesses must have rising sizes; got \[8.0, 8.0\]"),
        ("[prices.synop]", MEMORY.replace("pJ", "mW") + "[prices.synop]", "must be a published energy; got 10 mW"),
    ],
)
def test_bad_files_are_refused(write, old, new, message):
    with pytest.raises(ValueError, match=f"(?s)load_chip: .*{message}"):
        load_chip(write(MINE.replace(old, new, 1)))
