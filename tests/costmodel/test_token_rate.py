from __future__ import annotations

import re
from dataclasses import replace

import pytest

from costmodel.geometries import Decoder, LatentDecoder, find_geometry
from costmodel.parts import Part, find_part
from costmodel.token_rate import (
    ENGINE,
    MEMORIES,
    SCHEMES,
    STANDARD,
    Engine,
    Input,
    Memory,
    TokenRate,
    WeightScheme,
    find_memory,
    token_rate,
)
from quantizers.errors import UsageError


def given(value: float) -> Input:
    return Input(value, "any unit", "this test")


TINY = Decoder(
    name="tiny", layers=2, hidden=10, ffn=20, source="this test", query_heads=2, kv_heads=1, head_dim=5,
    vocabulary=30,
)  # fmt: skip
PART = Part(name="small", family="xc7", luts=1000, ffs=2000, dsps=0, brams=0)
SCHEME = WeightScheme(
    name="two bits",
    lookup_bits=given(2),
    stored_bits=given(2.5),
    luts_per_bit=given(5),
    lane_bits=given(8),
)
MEMORY = Memory(bandwidth=given(1e6), efficiency=given(0.5), capacity=given(1000))
SLOW = Engine(
    clock=given(1000), lut_share=given(0.25), head_bits=given(8), context=given(4), cache_bits=given(16)
)


def test_both_bounds_by_hand() -> None:
    rate = token_rate(TINY, SCHEME, PART, MEMORY, SLOW)
    # 2 layers of 100 + 50 + 50 + 100 and 3 * 200 weights; 20 cached values a token; a head of 300.
    weights, head = 1800, 300
    assert rate.lanes == 6  # of 40 LUTs each in 250
    assert rate.lookup_bits == 2 * weights + 8 * head
    assert rate.read_bytes == (2.5 * weights + 8 * head + 4 * 16 * 20) / 8 == 1022.5
    assert rate.compute_bound == 1000 * 6 * 8 / 6000 == 8
    assert rate.memory_bound == 5e5 / 1022.5
    assert rate.saturating_lanes == 367  # 6 / 8 * 489.0
    assert (rate.tokens_per_second, rate.limit, rate.fits) == (8, "compute", False)
    assert (rate.model, rate.scheme, rate.part) == ("tiny", "two bits", "small")


def test_the_lower_bound_limits() -> None:
    roomy = replace(MEMORY, bandwidth=given(1022.5 * 2 * 7), capacity=given(1022.5))
    rate = token_rate(TINY, SCHEME, PART, roomy, SLOW)
    assert (rate.tokens_per_second, rate.limit, rate.fits) == (7, "memory", True)


def test_every_input_is_listed_with_its_source() -> None:
    inputs = token_rate(TINY, SCHEME, PART, MEMORY, SLOW).inputs
    assert set(inputs) == {
        "layer_weights", "head_weights", "cached_values", "luts", "lookup_bits", "stored_bits", "luts_per_bit",
        "lane_bits", "bandwidth", "efficiency", "capacity", "clock", "lut_share", "head_bits", "context",
        "cache_bits",
    }  # fmt: skip
    assert inputs["luts"] == Input(1000, "LUTs", "data sheet of small")
    assert inputs["cached_values"] == Input(20, "values a token", "this test")
    assert inputs["bandwidth"] is MEMORY.bandwidth


def rate_of(model: str, scheme: str, part: str = "xc7z020") -> TokenRate:
    geometry, device = find_geometry(model), find_part(part)
    assert isinstance(geometry, Decoder | LatentDecoder)
    return token_rate(geometry, SCHEMES[scheme], device, find_memory(device), ENGINE)


@pytest.mark.parametrize("part", list(MEMORIES))
def test_standard_estimates_rest_on_named_inputs(part: str) -> None:
    for model, scheme in STANDARD:
        rate = rate_of(model, scheme, part)
        assert rate.tokens_per_second == min(rate.compute_bound, rate.memory_bound) > 0
        assert all(value.source and value.unit for value in rate.inputs.values())


def test_estimates_on_the_zynq() -> None:
    ternary, two, four = (
        rate_of("BitNet-3B", "ternary"), rate_of("Llama-2-7B", "int2"), rate_of("Llama-2-7B", "int4"),
    )  # fmt: skip
    assert (ternary.lanes, two.lanes) == (272, 361)
    # 26,600 LUTs / 97.5 a lane * 15 * 200 MHz over 3.22e9 weights and a head of 4 * 102e6 weight bits.
    assert ternary.compute_bound == pytest.approx(272 * 15 * 200e6 / (3_221_504_000 + 4 * 102_406_400))
    assert (ternary.limit, ternary.fits) == ("memory", True)
    assert ternary.tokens_per_second == pytest.approx(3.82, abs=0.01)
    assert (two.fits, four.fits) == (False, False)
    assert four.tokens_per_second < two.tokens_per_second < ternary.tokens_per_second


@pytest.mark.parametrize(
    ("weights", "stored_bits", "bandwidth", "luts", "clock", "published", "share"),
    [
        # TerEffic on a U280: 2.7 billion weights from HBM2 at 460 GB/s, five in a byte.
        (2.7e9, 1.6, 460e9, 1_303_680, 150e6, 727, 0.85),
        # TeLLMe v2 on a KV260: 0.73 billion weights from 64-bit DDR4-2400.
        (0.73e9, 5 / 3, 19.2e9, 117_120, 250e6, 25, 0.20),
    ],
)
def test_published_systems_stay_below_the_estimate(
    weights: float,
    stored_bits: float,
    bandwidth: float,
    luts: int,
    clock: float,
    published: float,
    share: float,
) -> None:
    flat = Decoder(
        name="flat", layers=1, hidden=1, ffn=round(weights / 2), source="this test", query_heads=1, kv_heads=1,
        head_dim=1, vocabulary=1, gated=False,
    )  # fmt: skip
    scheme = replace(SCHEMES["ternary"], stored_bits=given(stored_bits))
    memory = Memory(bandwidth=given(bandwidth), efficiency=given(1), capacity=given(1e12))
    engine = replace(ENGINE, clock=given(clock))
    part = Part(name="theirs", family="xcup", luts=luts, ffs=2 * luts, dsps=0, brams=0)
    rate = token_rate(flat, scheme, part, memory, engine)
    assert rate.limit == "memory"
    assert published / rate.tokens_per_second == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Input(0, "Hz", "here"), "an input must be positive and finite, not 0 Hz"),
        (lambda: Input(float("nan"), "Hz", "here"), "an input must be positive and finite, not nan Hz"),
        (lambda: Input(1, "Hz", ""), "the input 1 Hz needs a source"),
        (lambda: replace(MEMORY, efficiency=given(1.5)), "efficiency must be at most 1, not 1.5"),
        (lambda: replace(SLOW, lut_share=given(2)), "lut_share must be at most 1, not 2"),
        (
            lambda: token_rate(TINY, SCHEME, PART, MEMORY, replace(SLOW, lut_share=given(0.039))),
            "a lane of 40 LUTs does not fit the 39 LUTs set aside on small",
        ),
        (
            lambda: find_memory(find_part("xc7a35t")),
            "unknown part with a known memory 'xc7a35t' (did you mean 'xc7k325t'?); "
            "expected one of: xc7z010, xc7z020, xc7z045, xc7k325t",
        ),
    ],
)
def test_wrong_inputs_are_named(call, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        call()
