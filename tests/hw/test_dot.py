import numpy as np
import pytest

from costmodel import synthesize
from hw.dot import TREES, DotProduct
from hw.reference import multiply_accumulate
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from tests.hw.test_mac import formats_of, random_codes

PAIRS = ["int8 int8", "int4 int4", "int3 uint8", "e2m1 e2m1", "e2m1 int8", "e3m2 e4m1", "ternary int8"]


def vectors_of(pair, lanes, count, seed=1):
    """Stream items, and their exact sums; the first are the extreme codes."""
    weights, activations = formats_of(pair)
    rng = np.random.default_rng(seed)
    w, a = (random_codes(fmt, (count, lanes), rng) for fmt in (weights, activations))
    extremes = [
        [int(pick(fmt.values())) for pick in (np.nanargmin, np.nanargmax)] for fmt in (weights, activations)
    ]
    for row, (x, y) in enumerate((x, y) for x in extremes[0] for y in extremes[1]):
        w[row], a[row] = x, y
    items = [{"weights": x, "activations": y} for x, y in zip(w.tolist(), a.tolist(), strict=True)]
    return items, [
        int(total) for total in multiply_accumulate(w, a, weights=weights, activations=activations)
    ]


def dut_of(pair, lanes, **arguments):
    weights, activations = formats_of(pair)
    return DotProduct(weights=weights, activations=activations, lanes=lanes, **arguments)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("lanes", [1, 2, 5, 16])
@pytest.mark.parametrize("pair", PAIRS)
def test_sums_are_exact_under_back_pressure(pair, lanes, tree):
    items, sums = vectors_of(pair, lanes, 40)
    dut = dut_of(pair, lanes, tree=tree)
    trace = simulate_stream(dut, items, output_count=40, seed=3, valid_probability=0.7, ready_probability=0.5)
    assert trace.outputs == sums


@pytest.mark.parametrize(
    ("pair", "lanes", "levels", "latency"),
    [("int8 int8", 16, 2, 4), ("int8 int8", 16, 1, 6), ("int8 int8", 16, 0, 2), ("e2m1 e2m1", 1, 2, 2)],
)
def test_latency_and_one_vector_a_cycle(pair, lanes, levels, latency):
    items, sums = vectors_of(pair, lanes, 30)
    dut = dut_of(pair, lanes, levels_per_stage=levels)
    extra = dut.latency - latency
    assert extra in (0, 1)  # the last lane closes its product in one stage more than the others
    trace = simulate_stream(dut, items, output_count=30)
    assert (trace.outputs, trace.cycles) == (sums, 30 + latency + extra)


def test_width_of_the_sums():
    assert dut_of("int8 int8", 16).accumulator_bits == 20


@pytest.mark.parametrize("lanes", [0, -1, 2.0, True])
def test_lanes_are_positive(lanes):
    fmt = parse_scalar_format("int8")
    with pytest.raises(UsageError) as caught:
        DotProduct(weights=fmt, activations=fmt, lanes=lanes)
    assert str(caught.value) == f"lanes must be a positive integer, not {lanes!r}"


def test_tree_is_known():
    with pytest.raises(UsageError) as caught:
        dut_of("int8 int8", 2, tree="heap")
    assert str(caught.value) == "unknown tree 'heap'; expected one of: adders, compressors"


@pytest.mark.parametrize(
    ("pair", "lanes", "tree", "sites"),
    [
        ("int8 int8", 16, "adders", 857),
        ("int8 int8", 16, "compressors", 770),
        ("e2m1 e2m1", 32, "adders", 595),
        ("e2m1 e2m1", 32, "compressors", 520),
    ],
)
def test_cost(pair, lanes, tree, sites):
    """Yosys 0.70: 832, 747, 577 and 501 sites; Vivado needs 1,325 for int8 and a smaller accumulator."""
    assert synthesize(dut_of(pair, lanes, tree=tree), name="dot").luts <= sites
