import numpy as np
import pytest

from hw.kv_cache.dequantizer import GroupDequantizer
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.uniform import UniformGroups, dequantize


def random_words(rng, count, bits, lanes):
    codes = rng.integers(0, 1 << bits, (count, lanes))
    span = rng.integers(0, 65536, count)
    span[:3] = 0, 1, 65535
    return UniformGroups(codes, rng.integers(-32768, 32768 - span), span)


@pytest.mark.parametrize("seed", range(20))
def test_random_words_cycles_and_stalls(seed):
    rng = np.random.default_rng(seed)
    bits, lanes = 2 + seed % 7, int(rng.integers(1, 9))
    words = random_words(rng, 30, bits, lanes)
    items = [
        {"codes": codes, "minimum": minimum, "span": span}
        for codes, minimum, span in zip(*(part.tolist() for part in words), strict=True)
    ]
    expected = dequantize(words, bits).tolist()
    for valid, ready in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.6, 0.6)):
        dut = GroupDequantizer(bits=bits, lanes=lanes)
        trace = simulate_stream(
            dut, items, output_count=30, seed=seed, valid_probability=valid, ready_probability=ready
        )
        assert trace.outputs == expected
        if valid == ready == 1:
            assert trace.cycles == 30 + dut.latency


@pytest.mark.parametrize(("bits", "latency"), [(2, 6), (3, 6), (4, 6), (5, 7), (6, 6), (7, 7), (8, 7)])
def test_latency(bits, latency):
    """That words come then is what the test above relies on."""
    assert GroupDequantizer(bits=bits).latency == latency


def steps_by_the_series(bits):
    """The step of every span, as the component computes it, and the places below its point."""
    places, shift = 2 * bits + 2, bits
    value = np.arange(65536, dtype=np.int64) << places - bits
    while shift < 16 + places - bits:
        value, shift = value + (value >> shift), 2 * shift
    return value, places


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_of_every_span_in_the_arithmetic_of_the_hardware(bits):
    steps, places = steps_by_the_series(bits)
    largest = 2**bits - 1
    codes = np.tile(np.arange(largest + 1), (65536, 1))
    zeros = np.full(65536, -32768)
    decoded = -32768 + ((codes * steps[:, None] + (1 << places - 1) + 2 * largest) >> places)
    np.testing.assert_array_equal(decoded, dequantize(UniformGroups(codes, zeros, np.arange(65536)), bits))


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_of_every_span(bits):
    lanes = min(16, 1 << bits)
    stream = VerilatedStream(GroupDequantizer(bits=bits, lanes=lanes))
    codes = np.tile(np.arange(1 << bits).reshape(-1, lanes), (65536, 1))
    span = np.repeat(np.arange(65536), (1 << bits) // lanes)
    minimum = np.random.default_rng(bits).integers(-32768, 32768 - span)
    packed = np.zeros(len(codes), object)
    for lane in range(lanes):
        packed |= codes[:, lane].astype(object) << bits * lane
    packed |= ((minimum & 0xFFFF) | span << 16).astype(object) << bits * lanes
    trace = stream.run(packed, output_count=len(codes))
    np.testing.assert_array_equal(trace.outputs, dequantize(UniformGroups(codes, minimum, span), bits))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 9}, "bits must be 2 to 8, not 9"),
        ({"lanes": 0}, "lanes must be a positive integer, not 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        GroupDequantizer(**arguments)
    assert str(caught.value) == message
