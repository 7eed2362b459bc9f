import itertools

import numpy as np
import pytest
from amaranth.lib import data

from hw.kv_cache.graded import CuttingStage, GradedDequantizerStage, SplittingStage, width_field
from hw.kv_cache.lane_table import LaneTable, table_rows
from hw.kv_cache.lockstep import Lockstep
from hw.verilator import VerilatedStream
from quantizers.kv_cache.codebook import Codebook, ScaleFormat
from quantizers.kv_cache.rotation import largest_sum

SCALE_BITS = 6


def width_table(widths, finest, lanes):
    """Of all words that come, once."""
    field = width_field(finest)
    rows = table_rows({"width": widths.reshape(-1)}, {"width": field}, lanes)
    return LaneTable(field=field, lanes=lanes, depth=len(rows), rows=rows)


def items_of(codes, scales, widths, finest):
    """What the cutting stage is to give: numbers and widths, of words (vectors, words, lanes)."""
    items = []
    for vector, (words, scale) in enumerate(zip(codes, scales, strict=True)):
        for word, lanes in enumerate(words):
            number, length = (int(scale), SCALE_BITS) if word == 0 else (0, 0)
            for code, width in zip(lanes.tolist(), widths[vector, word].tolist(), strict=True):
                number |= (code >> (finest - width)) << length
                length += width
            items.append((number, length))
    return items


@pytest.mark.parametrize(("finest", "lanes"), [(5, 4), (4, 2), (3, 1), (6, 8)])
def test_codes_are_cut_put_together_and_taken_apart(finest, lanes):
    """Every code in every width."""
    rng = np.random.default_rng(finest)
    every = np.array(list(itertools.product(range(1 << finest), range(finest + 1))))
    words = 4
    vectors = -(-len(every) // (words * lanes))
    shuffled = rng.permutation(np.resize(every, (vectors * words * lanes, 2)))
    codes, widths = shuffled.T.reshape(2, vectors, words, lanes)
    scales = rng.integers(0, 1 << SCALE_BITS, vectors)
    expected = items_of(codes, scales, widths, finest)
    arguments = {"finest": finest, "scale_bits": SCALE_BITS, "words": words}

    cutting = CuttingStage(**arguments, table=width_table(widths, finest, lanes))
    assert cutting.latency == 3 + lanes.bit_length() - 1
    inputs = [
        sum(code << finest * lane for lane, code in enumerate(word)) | int(scale) << finest * lanes
        for vector, scale in zip(codes.tolist(), scales, strict=True)
        for word in vector
    ]
    trace = VerilatedStream(Lockstep(cutting)).run(inputs, output_count=len(inputs), ready_probability=0.7)
    code_bits = SCALE_BITS + lanes * finest
    assert [int(x) for x in trace.outputs] == [number | length << code_bits for number, length in expected]

    splitting = SplittingStage(**arguments, table=width_table(widths, finest, lanes))
    assert splitting.latency == 2 + lanes.bit_length() - 1
    trace = VerilatedStream(Lockstep(splitting)).run(
        [number for number, _ in expected], output_count=len(expected), valid_probability=0.7
    )
    layout = splitting.outputs.shape()
    for place, (payload, word, width) in enumerate(
        zip(trace.outputs, codes.reshape(-1, lanes), widths.reshape(-1, lanes), strict=True)
    ):
        found = data.Const(layout, int(payload))
        if place % words == 0:
            assert found.scale == scales[place // words]
        for lane, (code, bits) in enumerate(zip((word >> (finest - width)).tolist(), width, strict=True)):
            half = (1 << int(bits)) >> 1
            is_negative = bits > 0 and code < half
            magnitude = half - 1 - code if is_negative else code - half
            assert found.lanes[lane].index == (half + magnitude if bits else 0)
            assert found.lanes[lane].sign == is_negative


@pytest.mark.parametrize(("finest", "lanes"), [(4, 2), (3, 4), (2, 8)])
def test_levels_of_every_width(finest, lanes):
    """Every index with either sign, for random scales and that of a vector of zeros."""
    size = 16
    scale = ScaleFormat.covering(largest_sum(size))
    rng = np.random.default_rng(1)
    scales = scale.encode(rng.integers(0, largest_sum(size), 300))
    scales[:2] = 0
    indices = rng.integers(0, 1 << finest, (len(scales), size))
    signs = rng.integers(0, 2, indices.shape) & (indices > 0)
    stage = GradedDequantizerStage(size=size, lanes=lanes, finest=finest, scale=scale)
    words = size // lanes
    inputs = [
        sum(
            (int(i) | int(s) << finest) << lane * (finest + 1)
            for lane, (i, s) in enumerate(zip(index, sign, strict=True))
        )
        | int(scales[place // words]) << lanes * (finest + 1)
        for place, (index, sign) in enumerate(
            zip(indices.reshape(-1, lanes), signs.reshape(-1, lanes), strict=True)
        )
    ]
    expected = np.zeros(indices.shape, np.int64)
    for bits in range(1, finest + 1):
        half = 1 << (bits - 1)
        magnitude = indices - half
        codes = np.where(signs == 1, half - 1 - magnitude, half + magnitude)
        has_bits = (indices >= half) & (indices < 2 * half)
        book = Codebook(bits=bits, size=size, finest=finest)
        levels = book.dequantize(np.where(has_bits, codes, 0), scale.decode(scales))
        expected = np.where(has_bits, levels, expected)
    trace = VerilatedStream(Lockstep(stage)).run(
        inputs, output_count=len(inputs), seed=1, valid_probability=0.8, ready_probability=0.8
    )
    assert np.array_equal(trace.outputs, expected.reshape(-1, lanes))
