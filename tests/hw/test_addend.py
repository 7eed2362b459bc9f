import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.arith.addend import DspAddend, EncodedAddend, OpenBoothAddend, ScaledAddend, product_addend
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format


def all_products(dut, pairs):
    """``addend + carry`` of every pair, modulo ``2**bits``, signed."""
    seen = []

    async def testbench(ctx):
        for step in range(len(pairs) + dut.latency):
            if step < len(pairs):
                ctx.set(dut.weight, pairs[step][0])
                ctx.set(dut.activation, pairs[step][1])
            if step >= dut.latency:
                seen.append(ctx.get(dut.addend) + (ctx.get(dut.carry) if len(dut.carry) else 0))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    half = 1 << (len(dut.addend) - 1)
    return [(value + half) % (2 * half) - half for value in seen]


@pytest.mark.parametrize(
    ("weights", "activations", "kind"),
    [
        ("e2m1", "e2m1", EncodedAddend),
        ("e2m1", "ue2m1", EncodedAddend),
        ("int4", "int4", OpenBoothAddend),
        ("int5", "uint5", OpenBoothAddend),
        ("int6", "int4", OpenBoothAddend),
        ("int7", "int6", OpenBoothAddend),
        ("int8", "int5", OpenBoothAddend),
        ("int3", "int3", ScaledAddend),
        ("int2", "int8", OpenBoothAddend),
        ("e2m1", "int4", ScaledAddend),
        ("e3m1", "e3m1", ScaledAddend),
        ("e2m2", "e1m3", ScaledAddend),
        ("ternary", "int8", ScaledAddend),
    ],
)
@pytest.mark.parametrize("extra_bits", [0, 5])
def test_every_product(weights, activations, kind, extra_bits):
    check_every_product(weights, activations, kind, extra_bits)


@pytest.mark.parametrize("extra_bits", [0, 5])
@pytest.mark.parametrize("pair", ["int5 uint4", "uint6 int3", "int8 int4", "int5n uint5"])
def test_every_product_of_a_dsp_slice(pair, extra_bits):
    check_every_product(*pair.split(), DspAddend, extra_bits, multipliers="dsps")


def check_every_product(weights, activations, kind, extra_bits, **arguments):
    w, a = parse_scalar_format(weights), parse_scalar_format(activations)
    pairs = [(x, y) for x in usable_codes(w) for y in usable_codes(a)]
    exact = [
        int(x) * int(y)
        for x, y in zip(
            *(fmt.fixed_point([p[k] for p in pairs]) for k, fmt in enumerate((w, a))), strict=True
        )
    ]
    bits = max(abs(value) for value in exact).bit_length() + 1 + extra_bits
    dut = product_addend(w, a, bits=bits, **arguments)
    assert type(dut) is kind
    assert all_products(dut, pairs) == exact


def usable_codes(fmt):
    values = fmt.values()
    return [code for code in range(1 << fmt.bits) if np.isfinite(values[code])]


def test_a_narrow_adder_wraps():
    fmt = parse_scalar_format("int5")
    pairs = [(x, y) for x in range(32) for y in range(32)]
    exact = np.multiply.outer(fmt.fixed_point(np.arange(32)), fmt.fixed_point(np.arange(32))).ravel()
    assert all_products(product_addend(fmt, fmt, bits=6), pairs) == ((exact + 32) % 64 - 32).tolist()


def test_bits_are_positive():
    fmt = parse_scalar_format("int4")
    with pytest.raises(UsageError, match=r"^bits must be a positive integer, not 0$"):
        product_addend(fmt, fmt, bits=0)


@pytest.mark.parametrize(
    ("pair", "multipliers", "message"),
    [
        ("int4 int4", "dsp", "unknown multipliers 'dsp' (did you mean 'dsps'?); expected one of: luts, dsps"),
        (
            "int8 e4m3",
            "dsps",
            "DSP slices multiply integers, and activations are e4m3; others take multipliers='luts'",
        ),
        (
            "int4 int4",
            "dsps",
            "products of int4 and int4 are of 8 bits, and synthesis gives those of fewer than 9 no DSP slice of their own; the block dsp_mac packs several into one",
        ),
    ],
)
def test_multipliers_that_there_are_not(pair, multipliers, message):
    with pytest.raises(UsageError) as caught:
        product_addend(*map(parse_scalar_format, pair.split()), bits=20, multipliers=multipliers)
    assert str(caught.value) == message
