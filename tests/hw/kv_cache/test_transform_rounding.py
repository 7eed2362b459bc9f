import numpy as np
import pytest
from amaranth.hdl import signed

from hw.kv_cache.transform_rounding import SaturatingOffset, ShiftRounder
from hw.simulation import simulate_stream
from quantizers.kv_cache.fixed_point import saturate
from quantizers.kv_cache.rotation import shift_half_even
from tests.hw.kv_cache.transform_blocks import Loaded

STALLS = [(1.0, 1.0), (0.6, 0.5)]


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
