import json

import pytest

from costmodel.record import PATH, best_units, figures_of, grown, read_record, recorded_designs
from costmodel.yosys import yosys_version

# One of each structure; `make test-all` measures all.
SOME = [
    "dot int4 int4 lanes=16",
    "dot int4 int4 lanes=16 compressors",
    "dsp_mac int8 int8 n=4608",
    "float_mac e2m1 e2m1 n=4608 guard=8",
    "mx_dot mxfp4 mxfp4",
    "pipelined_mac exact int8 int8 n=4608",
    "multiplier int4 int4",
    "multiplier int8 int8",
    "mac exact int4 int4 n=4608",
    "mac exact int8 int8 n=4608",
    "mac exact e2m1 e2m1 n=4608",
    "mac exact e4m3 e4m3 n=32",
    "mac bins e4m3 e4m3 n=4608",
    "mac bins e5m2 e5m2 n=4608",
    "mac exact ternary int8 n=512",
    "mac exact e2m1 int8 n=4608",
]


def test_the_record_holds_all_designs_and_no_other():
    assert sorted(read_record()) == sorted(recorded_designs())


def test_the_record_was_made_with_this_yosys():
    document = json.loads(PATH.read_text())
    assert document["tools"] == {"yosys": yosys_version()}
    assert {"-nodsp" in figures["flags"] for figures in document["designs"].values()} == {True, False}


@pytest.mark.parametrize("name", SOME)
def test_some_designs_are_no_larger_than_the_record_says(name):
    assert grown(name, figures_of(recorded_designs()[name])) == []


@pytest.mark.slow
def test_no_design_is_larger_than_the_record_says():
    names = [name for name in recorded_designs() if name not in SOME]
    assert [text for name in names for text in grown(name, figures_of(recorded_designs()[name]))] == []


def test_growth_is_told():
    name = "mac exact int8 int8 n=4608"
    recorded = read_record()[name]
    assert grown(name, {**recorded, "luts": recorded["luts"] * 1.03}) == []
    assert grown(name, {**recorded, "luts": recorded["luts"] + 3, "ffs": 1}) == [
        f"{name}: luts grew from {recorded['luts']} to {recorded['luts'] + 3}"
    ]


def test_the_best_unit_has_the_fewest_sites_times_cycles():
    record = {
        "multiplier int4 int4": {"luts": 12},
        "mac exact e4m3 e4m3 n=32": {"luts": 80, "cycles_per_product": 1.0},
        "mac bins e4m3 e4m3 n=32": {"luts": 60, "cycles_per_product": 3.0},
        "mac exact e4m3 e4m3 n=4608": {"luts": 90, "cycles_per_product": 1.0},
        "mac bins e4m3 e4m3 n=4608": {"luts": 60, "cycles_per_product": 1.1},
    }
    assert list(best_units(record)) == [
        ("e4m3 e4m3 n=32", "exact", 80, 1.0),
        ("e4m3 e4m3 n=4608", "bins", 60, 1.1),
    ]
