import numpy as np
import pytest

from costmodel import synthesize
from hw.float_mac import FloatMultiplyAccumulate
from hw.reference import float_accumulate
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

PAIRS = ["e4m3 e4m3", "e5m2 e5m2", "e2m1 e2m1", "e4m3 int8", "e3m2 uint4", "ternary e2m3", "ue4m4 e3m0"]


def dut_of(pair, **arguments):
    weights, activations = map(parse_scalar_format, pair.split())
    return FloatMultiplyAccumulate(
        **{"weights": weights, "activations": activations, "dot_length": 64, **arguments}
    )


def codes_of(fmt, shape, rng):
    return rng.choice(np.flatnonzero(np.isfinite(fmt.values())), shape)


def payloads(pair, w, a, guard_bits):
    """Of the stream of pairs, and what must come out: exponents above significands."""
    weights, activations = map(parse_scalar_format, pair.split())
    last = np.arange(w.shape[1]) == w.shape[1] - 1
    items = (w | a << weights.bits | last[None] << weights.bits + activations.bits).ravel()
    bits = dut_of(pair, guard_bits=guard_bits).accumulator_bits
    sums = float_accumulate(w, a, weights=weights, activations=activations, guard_bits=guard_bits)
    expected = [(int(s) & ((1 << bits) - 1)) | int(e) << bits for s, e in zip(*sums, strict=True)]
    return items, expected


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("guard_bits", [0, 5])
def test_dot_products_as_the_reference(pair, guard_bits):
    """One pair a cycle without a gap, and under back-pressure on both sides."""
    rng = np.random.default_rng(1)
    weights, activations = map(parse_scalar_format, pair.split())
    model = VerilatedStream(dut_of(pair, guard_bits=guard_bits))
    latency = dut_of(pair).latency
    for count, length in ((200, 40), (400, 1), (30, 64)):
        w, a = (codes_of(fmt, (count, length), rng) for fmt in (weights, activations))
        items, expected = payloads(pair, w, a, guard_bits)
        trace = model.run(items, output_count=count)
        assert trace.outputs.tolist() == expected
        assert trace.cycles == len(items) + latency
        slow = model.run(items, output_count=count, seed=3, valid_probability=0.7, ready_probability=0.05)
        assert slow.outputs.tolist() == expected


@pytest.mark.parametrize("pair", ["e2m1 e2m1", "e3m2 e3m2"])
def test_every_pair_of_codes_after_every_other(pair):
    """Dot products of two pairs: the first sets the exponent, the second is shifted or shifts."""
    weights, activations = map(parse_scalar_format, pair.split())
    rng = np.random.default_rng(2)
    w, a = (
        grid.ravel()
        for grid in np.meshgrid(np.arange(1 << weights.bits), np.arange(1 << activations.bits), indexing="ij")
    )
    w = np.stack([codes_of(weights, (4, len(w)), rng), np.broadcast_to(w, (4, len(w)))], axis=-1).reshape(
        -1, 2
    )
    a = np.stack([codes_of(activations, (4, len(a)), rng), np.broadcast_to(a, (4, len(a)))], axis=-1).reshape(
        -1, 2
    )
    items, expected = payloads(pair, w, a, 2)
    trace = VerilatedStream(dut_of(pair, guard_bits=2)).run(items, output_count=len(w))
    assert trace.outputs.tolist() == expected


@pytest.mark.parametrize("sign", [0, 1])
def test_the_longest_dot_product_of_extreme_codes_fits(sign):
    w, a = (np.full((1, 64), code) for code in (0x7F | sign << 7, 0x7F))
    items, expected = payloads("e4m3 e4m3", w, a, 3)
    trace = VerilatedStream(dut_of("e4m3 e4m3", guard_bits=3)).run(items, output_count=1)
    assert trace.outputs.tolist() == expected
    largest = (15 * 15 * 64) << 3
    assert int(float_accumulate(w, a, **e4m3(), guard_bits=3)[0][0]) == (-largest if sign else largest)


def e4m3():
    fmt = parse_scalar_format("e4m3")
    return {"weights": fmt, "activations": fmt}


def test_its_size():
    """Measured: 171 sites; the exact accumulator takes 88, bins take 62."""
    assert synthesize(dut_of("e4m3 e4m3", dot_length=4608), name="mac").luts <= 176


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pair": "int8 e1m3"}, "a floating sum needs exponents, and neither int8 nor e1m3 has any"),
        ({"guard_bits": -1}, "guard_bits must be a non-negative integer, not -1"),
        ({"dot_length": 0}, "dot_length must be a positive integer, not 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        dut_of(**{"pair": "e4m3 e4m3", **arguments})
    assert str(caught.value) == message
