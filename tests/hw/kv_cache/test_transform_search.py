import numpy as np
import pytest
from amaranth.hdl import signed

from hw.kv_cache.transform_geometry import stage_thresholds
from hw.kv_cache.transform_search import ThresholdSearch
from hw.simulation import simulate_stream
from tests.hw.kv_cache.transform_blocks import Loaded, random_block

STALLS = [(1.0, 1.0), (0.6, 0.5)]


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
