"""Lanes, matrices in turn, the search and the rounding, each on its own."""

import numpy as np
import pytest
from amaranth.hdl import signed, unsigned

from hw.kv_cache.transform_geometry import TransformGeometry, stage_thresholds
from hw.kv_cache.transform_lanes import Gatherer, Serializer
from hw.kv_cache.transform_matrices import MatricesInTurn
from hw.kv_cache.transform_rounding import SaturatingOffset, ShiftRounder
from hw.kv_cache.transform_search import ThresholdSearch
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat
from quantizers.kv_cache.fixed_point import saturate
from quantizers.kv_cache.rotation import shift_half_even
from tests.hw.kv_cache.transform_blocks import Loaded, random_block

STALLS = [(1.0, 1.0), (0.6, 0.5)]


@pytest.mark.parametrize(("valid", "ready"), STALLS)
@pytest.mark.parametrize(("lanes", "elements"), [(4, 10), (1, 3), (3, 9), (5, 2)])
def test_lanes(lanes, elements, valid, ready):
    vectors = np.random.default_rng(1).integers(1, 256, (6, elements))
    chances = {"valid_probability": valid, "ready_probability": ready, "seed": 1}
    words = np.pad(vectors, [(0, 0), (0, -elements % lanes)]).reshape(-1, lanes)
    serializer = Serializer(shape=unsigned(8), lanes=lanes, elements=elements)
    trace = simulate_stream(serializer, words.tolist(), output_count=vectors.size, **chances)
    assert trace.outputs == vectors.reshape(-1).tolist()
    gatherer = Gatherer(shape=unsigned(8), lanes=lanes, elements=elements)
    trace = simulate_stream(gatherer, trace.outputs, output_count=len(words), **chances)
    found = np.array(trace.outputs).reshape(6, -1)[:, :elements]
    assert found.tolist() == vectors.tolist()


@pytest.mark.parametrize(("valid", "ready"), STALLS)
@pytest.mark.parametrize(
    ("matrices", "rows", "columns", "pe", "simd"), [(3, 5, 6, 2, 4), (1, 4, 4, 4, 4), (2, 3, 8, 1, 2)]
)
def test_matrices_in_turn(matrices, rows, columns, pe, simd, valid, ready):
    rng = np.random.default_rng(1)
    held = rng.integers(-128, 128, (matrices, rows, columns))
    held[0, 0] = -128
    vectors = rng.integers(-32768, 32768, (4, matrices, columns))
    vectors[0] = -32768
    unit = MatricesInTurn(
        weights=IntegerFormat(bits=8),
        activations=IntegerFormat(bits=16),
        matrices=matrices,
        rows=rows,
        columns=columns,
        pe=pe,
        simd=simd,
        memory="lutram",
        multipliers="dsps",
    )
    folding, count = unit.folding, 4 * matrices
    words = np.pad(vectors, [(0, 0), (0, 0), (0, folding.spare_lanes)], constant_values=7).reshape(-1, simd)
    items = {"load": unit.load_words(held), "inputs": (words & 0xFFFF).tolist()}
    trace = simulate_stream(
        unit,
        items,
        output_count=count * folding.row_folds,
        first=("load",),
        valid_probability=valid,
        ready_probability=ready,
    )
    wanted = np.einsum("mrc,tmc->tmr", held, vectors).reshape(count, rows)
    assert np.array(trace.outputs).reshape(count, -1)[:, :rows].tolist() == wanted.tolist()
    if valid == ready == 1:
        first = folding.column_folds - 1 + unit.latency
        later = count * folding.cycles - folding.column_folds
        assert trace.cycles == unit.load_count + first + later + 1


@pytest.mark.parametrize(("valid", "ready"), STALLS)
def test_search(valid, ready):
    """Sums right below, at and above every threshold, and the extremes."""
    rng = np.random.default_rng(2)
    blocks = [random_block(rng, d=4, n=n, max_bits=bits) for n, bits in ((5, 4), (3, 2))]
    widths = [*blocks[0].widths, *blocks[1].widths, 0, 0]
    slots = [sum(width > stage for width in widths) for stage in range(4)]
    search = ThresholdSearch(shape=signed(26), coefficients=10, slots=slots)
    load = [*widths]
    for stage in range(4):
        load += [t & (1 << 26) - 1 for t in stage_thresholds(blocks, stage, bits=26)]
    tables = [t for block in blocks for t in block.thresholds] + [(), ()]
    near = [[min(t, 1 << 24) + step for t in table for step in (-1, 0, 1)] for table in tables]
    tokens = [[values[index % len(values)] if values else index for values in near] for index in range(45)]
    tokens += [[-(1 << 25)] * 10, [(1 << 25) - 2] * 10]
    sums = [value for token in tokens for value in token]
    trace = simulate_stream(
        Loaded(search, sizes=search.sizes, width=26),
        {"load": load, "inputs": sums},
        output_count=len(sums),
        first=("load",),
        valid_probability=valid,
        ready_probability=ready,
    )
    codes = [
        int(np.searchsorted(table, value, side="right"))
        for token in tokens
        for value, table in zip(token, tables, strict=True)
    ]
    layout = search.outputs.payload.shape()
    found = [layout.from_bits(word) for word in trace.outputs]
    assert [int(word["code"]) for word in found] == codes
    assert [int(word["width"]) for word in found] == widths * 47
    assert [int(word["is_last"]) for word in found] == ([0] * 9 + [1]) * 47
    if valid == ready == 1:
        assert trace.cycles == len(load) + len(sums) + search.latency


@pytest.mark.parametrize(("valid", "ready"), STALLS)
def test_rounding_by_every_shift(valid, ready):
    rng = np.random.default_rng(3)
    spread = np.exp2(rng.uniform(0, 29, (31, 40)))
    sums = (rng.uniform(-1, 1, (31, 40)) * spread).astype(np.int64)
    shifts = np.arange(31)
    # Ties, to both sides of zero, of even and of odd floors.
    for tie in range(4):
        sums[1:, tie] = np.clip((2 * tie - 3) << (shifts[1:] - 1), -(1 << 29), (1 << 29) - 1)
    sums[:, 4], sums[:, 5] = -(1 << 29), (1 << 29) - 1
    rounder = ShiftRounder(shape=signed(30), matrices=31, elements=40)
    trace = simulate_stream(
        Loaded(rounder, sizes=[31], width=5),
        {"load": shifts.tolist(), "inputs": sums.reshape(-1).tolist()},
        output_count=sums.size,
        first=("load",),
        valid_probability=valid,
        ready_probability=ready,
    )
    wanted = [saturate(shift_half_even(row, int(shift))) for row, shift in zip(sums, shifts, strict=True)]
    assert trace.outputs == np.concatenate(wanted).tolist()
    if valid == ready == 1:
        assert trace.cycles == 31 + sums.size + rounder.latency


@pytest.mark.parametrize("subtracts", [False, True])
def test_offsets(subtracts):
    rng = np.random.default_rng(4)
    offsets = rng.integers(-32768, 32768, 7)
    elements = rng.integers(-32768, 32768, (20, 7))
    component = SaturatingOffset(elements=7, subtracts=subtracts)
    trace = simulate_stream(
        Loaded(component, sizes=[7], width=16),
        {"load": (offsets & 0xFFFF).tolist(), "inputs": elements.reshape(-1).tolist()},
        output_count=elements.size,
        first=("load",),
    )
    assert (
        trace.outputs
        == saturate(elements - offsets if subtracts else elements + offsets).reshape(-1).tolist()
    )
    assert trace.cycles == 7 + elements.size + component.latency


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([[]], "tokens must have blocks of one number and size, not [0] of []"),
        ([[(8, 3)], [(8, 3), (8, 2)]], "tokens must have blocks of one number and size, not [1, 2] of [8]"),
        ([[(8, 3), (4, 3)]], "tokens must have blocks of one number and size, not [2] of [4, 8]"),
    ],
)
def test_blocks_of_several_sizes(blocks, message):
    rng = np.random.default_rng(5)
    tokens = [[random_block(rng, d=d, n=n) for d, n in token] for token in blocks]
    with pytest.raises(UsageError) as caught:
        TransformGeometry.covering(*tokens)
    assert str(caught.value) == message


def test_entries_of_more_bits():
    block = random_block(np.random.default_rng(6), d=4, n=2, entry_bits=10)
    with pytest.raises(UsageError) as caught:
        TransformGeometry.covering([block], entry_bits=8)
    assert str(caught.value) == "entries of 8 bits must be from -128 to 127; one is -512"
    assert TransformGeometry.covering([block], entry_bits=10).coefficients == 2


def test_room_for_several_tokens():
    rng = np.random.default_rng(7)
    tokens = [[random_block(rng, d=8, n=n, max_bits=bits)] for n, bits in ((6, 2), (3, 5))]
    one, other = (TransformGeometry.covering(token) for token in tokens)
    both = TransformGeometry.covering(*tokens)
    assert (both.coefficients, len(both.slots)) == (6, 5)
    assert both.slots == tuple(max(a, b) for a, b in zip((*one.slots, 0, 0, 0), other.slots, strict=True))
    # A coefficient that a block lacks has one level.
    assert both.levels == max(one.levels, other.levels + 3)
    for token in tokens:
        both.check(token, None)
