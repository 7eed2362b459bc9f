from __future__ import annotations

import re
from dataclasses import replace

import pytest

from costmodel.geometries import Decoder, LatentDecoder, find_geometry
from costmodel.lookup_accelerator import LookupCost, LookupDesign
from costmodel.lookup_record import lookup_cost
from costmodel.parts import Part, find_part
from costmodel.token_rate import (
    MEMORIES,
    SETTING,
    STANDARD,
    CacheUse,
    Input,
    Memory,
    Setting,
    TokenRate,
    WeightScheme,
    find_memory,
    token_rate,
    weight_scheme,
)
from quantizers.errors import UsageError


def given(value: float) -> Input:
    return Input(value, "any unit", "this test")


TINY = Decoder(
    name="tiny", layers=2, hidden=10, ffn=20, source="this test", query_heads=2, kv_heads=1, head_dim=5,
    vocabulary=30,
)  # fmt: skip
PART = Part(name="small", family="xc7", luts=1000, lutrams=400, ffs=2000, dsps=0, brams=0)
SCHEME = WeightScheme(
    design=LookupDesign(weights="int2", groups=1, folds=4, columns=20), stored_bits=given(2.5)
)
COST = LookupCost(
    lanes=(3, 6, 12), luts=(120, 180, 300), lutrams=(30, 60, 120), ffs=(9, 18, 36),
    tools={"yosys": "0", "placed_on": "another part"},
)  # fmt: skip
MEMORY = Memory(bandwidth=given(1e6), efficiency=given(0.5), capacity=given(1000))
SLOW = Setting(
    lut_share=given(0.25), lutram_share=given(0.5), head_bits=given(4), context=given(4), cache_bits=given(16),
    clock=given(12_120),
)  # fmt: skip


def tiny_rate(
    cost: LookupCost = COST, memory: Memory = MEMORY, setting: Setting = SLOW, part: Part = PART
) -> TokenRate:
    return token_rate(TINY, SCHEME, cost, part, memory, setting)


def test_both_bounds_by_hand() -> None:
    rate = tiny_rate()
    # 250 LUTs hold 60 and nine lanes of 20; ten LUTs of RAM a lane are within 200.
    assert (rate.lanes, rate.luts, rate.lutrams, rate.lane_limit) == (9, 240, 90, "LUTs")

    # Four weights are looked up a cycle, so ten columns are 3 chunks, and twenty 5. Nine lanes of four folds
    # hold 36 rows; a table takes 15 cycles, more than four turns. Around that 16 cycles to the first look-up,
    # after the last table as many turns as are left, and 3 to the result.
    def one_block(chunks: int, turns: int) -> int:
        return 16 + (chunks - 1) * 15 + turns + 3

    qkv, o, down = one_block(3, 3), one_block(3, 2), one_block(5, 2)  # 20, 10 and 10 rows
    gate_up = 3 * 15 + one_block(3, 1)  # 36 and 4 rows
    head = 3 * 15 + one_block(3, 3)  # 60 rows of two planes each: 36 and 24
    assert rate.cycles == 2 * (qkv + o + down + gate_up) + head
    # 2 layers of 100 + 50 + 50 + 100 and 3 * 200 weights; a head of 300; 20 cached values a token.
    assert rate.lane_use == (1800 + 2 * 300) / (rate.cycles * 9 * 4)
    assert rate.weight_bytes == (2.5 * 1800 + 4 * 300) / 8
    assert rate.cache_bytes == 4 * 16 * 20 / 8
    assert rate.read_bytes == 872.5
    assert rate.compute_bound == 12_120 / rate.cycles
    assert rate.memory_bound == 5e5 / 872.5
    assert (rate.tokens_per_second, rate.limit, rate.fits) == (rate.compute_bound, "compute", True)
    assert rate.enough_lanes is None
    assert (rate.model, rate.weights, rate.part, rate.context) == ("tiny", "int2", "small", 4)


def test_the_lower_bound_limits() -> None:
    narrow = replace(MEMORY, bandwidth=given(872.5 * 2 * 7), capacity=given(872))
    rate = tiny_rate(memory=narrow)
    assert (rate.tokens_per_second, rate.limit, rate.fits) == (7, "memory", False)


def test_the_fewest_lanes_that_keep_up_with_the_memory() -> None:
    wide = replace(SLOW, lut_share=given(1), lutram_share=given(1), clock=given(1e6))
    slow_memory = replace(MEMORY, bandwidth=given(872.5 * 2 * 1500))  # 1500 tokens a second
    rate = tiny_rate(memory=slow_memory, setting=wide)
    assert (rate.lanes, rate.limit, rate.enough_lanes) == (39, "memory", 9)

    def bound(lanes: int) -> float:
        only = replace(wide, lut_share=given((60 + 20 * lanes) / 1000))
        return tiny_rate(memory=slow_memory, setting=only).compute_bound

    assert bound(9) >= 1500 > bound(6)


def test_lut_ram_can_limit_the_lanes() -> None:
    rate = tiny_rate(setting=replace(SLOW, lutram_share=given(0.2)))
    assert (rate.lanes, rate.lane_limit) == (6, "LUT RAM")


def test_the_cache_grows_with_the_context() -> None:
    one, two = (tiny_rate(setting=replace(SLOW, context=given(n))) for n in (1000, 2000))
    assert (one.cache_bytes, two.cache_bytes) == (40_000, 80_000)
    assert (one.stored_cache_bytes, two.stored_cache_bytes) == (40_000, 80_000)
    assert one.weight_bytes == two.weight_bytes
    assert one.cycles == two.cycles
    assert one.memory_bound > two.memory_bound


def test_a_cache_that_is_given_takes_the_place_of_the_bits() -> None:
    bits = given(3)
    use = CacheUse(stored_bytes=300, read_bytes=50, inputs={"key_bits": bits})
    rate = token_rate(TINY, SCHEME, COST, PART, MEMORY, SLOW, cache=use)
    assert (rate.cache_bytes, rate.stored_cache_bytes, rate.read_bytes) == (50, 300, 762.5)
    assert rate.memory_bound == 5e5 / 762.5
    # 712.5 bytes of weights; 1000 are there.
    assert not rate.fits
    assert tiny_rate().fits
    assert rate.inputs["key_bits"] is bits
    assert "cache_bits" not in rate.inputs


def test_every_input_is_listed_with_its_source() -> None:
    inputs = tiny_rate().inputs
    assert set(inputs) == {
        "layer_weights", "head_weights", "cached_values", "luts", "lutrams", "weights_per_lane",
        "luts_per_lane", "fixed_luts", "lutrams_per_lane", "stored_bits", "head_stored_bits", "clock",
        "bandwidth", "efficiency", "capacity", "lut_share", "lutram_share", "head_bits", "context",
        "cache_bits",
    }  # fmt: skip
    assert inputs["luts"] == Input(1000, "LUTs", "data sheet of small")
    assert inputs["cached_values"] == Input(20, "values a token", "this test")
    assert inputs["bandwidth"] is MEMORY.bandwidth
    assert inputs["clock"] is SLOW.clock
    assert inputs["luts_per_lane"] == Input(
        20, "LUTs", "measured: Yosys 0, engines of 3, 6, 12 lanes; off a line by at most 0.0 %"
    )


def test_the_clock_is_the_measured_one_unless_given() -> None:
    placed = replace(COST, seeds_mhz=(100.0, 110.0), placed_lanes=3)
    rate = tiny_rate(cost=placed, setting=replace(SLOW, clock=None))
    assert rate.compute_bound == 105e6 / rate.cycles
    assert rate.inputs["clock"] == Input(
        105e6, "Hz",
        "measured: nextpnr, 3 lanes on a another part, not the part named; mean of 2 seeds, 100 to 110 MHz",
    )  # fmt: skip


def rate_of(model: str, weights: str, part: str = "xc7z020") -> TokenRate:
    geometry, device = find_geometry(model), find_part(part)
    assert isinstance(geometry, Decoder | LatentDecoder)
    scheme = weight_scheme(LookupDesign(weights=weights))
    return token_rate(geometry, scheme, lookup_cost(scheme.design), device, find_memory(device), SETTING)


@pytest.mark.parametrize("part", list(MEMORIES))
def test_standard_estimates_rest_on_named_inputs(part: str) -> None:
    for model, weights in STANDARD:
        rate = rate_of(model, weights, part)
        assert rate.tokens_per_second == min(rate.compute_bound, rate.memory_bound) > 0
        assert 0 < rate.lane_use < 1
        assert all(value.source and value.unit for value in rate.inputs.values())


def test_estimates_on_the_zynq() -> None:
    ternary, two, four = (
        rate_of("BitNet-3B", "ternary"), rate_of("Llama-2-7B", "int2"), rate_of("Llama-2-7B", "int4"),
    )  # fmt: skip
    # 3.22e9 weights of 5/3 bits, a head of three ternary digits a weight, 1024 tokens of 166,400 bytes.
    read = (3_221_504_000 + 3 * 102_406_400) * 5 / 3 / 8 + 1024 * 166_400
    assert ternary.memory_bound == pytest.approx(4 * 1066e6 * 0.8 / read)
    assert (ternary.limit, ternary.fits) == ("memory", True)
    assert ternary.tokens_per_second == pytest.approx(3.77, abs=0.01)
    assert (two.fits, four.fits) == (False, False)
    assert four.tokens_per_second < two.tokens_per_second < ternary.tokens_per_second


def test_stored_bits_are_the_indices_and_what_scales_take() -> None:
    assert weight_scheme(LookupDesign(weights="ternary")).stored_bits.value == 5 / 3
    assert weight_scheme(LookupDesign(weights="ternary", group=2)).stored_bits.value == 2
    int4 = weight_scheme(LookupDesign(weights="int4"))
    assert int4.stored_bits.value == 4 + 20 / 128
    assert int4.stored_bits.source == (
        "the engine's indices, a float16 scale and a zero point for 128 weights"
    )
    own = given(3)
    assert weight_scheme(LookupDesign(weights="int4"), own).stored_bits is own


@pytest.mark.parametrize(
    ("weights", "stored_bits", "bandwidth", "published", "share"),
    [
        # TerEffic on a U280: 2.7 billion weights from HBM2 at 460 GB/s, five in a byte.
        (2.7e9, 1.6, 460e9, 727, 0.85),
        # TeLLMe v2 on a KV260: 0.73 billion weights from 64-bit DDR4-2400.
        (0.73e9, 5 / 3, 19.2e9, 25, 0.20),
    ],
)
def test_published_systems_stay_below_the_memory_bound(
    weights: float, stored_bits: float, bandwidth: float, published: float, share: float
) -> None:
    flat = Decoder(
        name="flat", layers=round(weights / 8000), hidden=1, ffn=3998, source="this test", query_heads=1,
        kv_heads=1, head_dim=1, vocabulary=1, gated=False,
    )  # fmt: skip
    scheme = weight_scheme(LookupDesign(weights="ternary"), given(stored_bits))
    memory = Memory(bandwidth=given(bandwidth), efficiency=given(1), capacity=given(1e12))
    near = replace(SETTING, context=given(1))
    rate = token_rate(flat, scheme, lookup_cost(scheme.design), find_part("xc7z020"), memory, near)
    assert rate.cache_bytes < 0.002 * rate.weight_bytes
    assert published / rate.memory_bound == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Input(0, "Hz", "here"), "an input must be positive and finite, not 0 Hz"),
        (lambda: Input(float("nan"), "Hz", "here"), "an input must be positive and finite, not nan Hz"),
        (lambda: Input(1, "Hz", ""), "the input 1 Hz needs a source"),
        (lambda: replace(MEMORY, efficiency=given(1.5)), "efficiency must be at most 1, not 1.5"),
        (lambda: replace(SLOW, lut_share=given(2)), "lut_share must be at most 1, not 2"),
        (lambda: replace(SLOW, lutram_share=given(2)), "lutram_share must be at most 1, not 2"),
        (lambda: replace(SLOW, head_bits=given(4.5)), "head_bits must be a whole number, not 4.5"),
        (
            lambda: tiny_rate(setting=replace(SLOW, lut_share=given(0.119))),
            "3 lanes take 120 LUTs, 30 of them as RAM, and 119 and 200 are set aside on small",
        ),
        (
            lambda: tiny_rate(setting=replace(SLOW, clock=None)),
            "the engine was not placed and routed, so a clock must be given",
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
