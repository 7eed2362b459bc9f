import numpy as np
import pytest

from hw.kv_cache.quantizer import GroupQuantizer
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.uniform import quantize


def words_of(x, bits, lanes):
    """The payloads that must come of groups (n, g), as numbers."""
    groups, size = x.shape
    codes, minimum, span = quantize(x, bits)
    words = np.zeros(groups * size // lanes, object)
    for lane in range(lanes):
        words |= codes.reshape(-1, lanes)[:, lane].astype(object) << bits * lane
    metadata = (minimum.astype(object) & 0xFFFF) | span.astype(object) << 16
    return words | np.repeat(metadata, size // lanes) << bits * lanes


def assert_exact(x, *, bits, lanes, **stalls):
    """Of groups (n, g); returns the cycles."""
    dut = GroupQuantizer(bits=bits, group=x.shape[1], lanes=lanes)
    words = words_of(x, bits, lanes).tolist()
    trace = simulate_stream(dut, x.reshape(-1, lanes).tolist(), output_count=len(words), **stalls)
    assert trace.outputs == words
    return trace.cycles


def random_groups(rng, count, size):
    """Of all spreads, one of equal elements, one of the full range."""
    spreads = rng.choice([1, 4, 60, 1000, 32768], (count, 1))
    x = rng.integers(-32768, 32768, (count, size)) % (2 * spreads) - spreads
    x[0], x[-1, : size // 2], x[-1, -1] = 77, -32768, 32767
    return x


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_offset_of_every_small_span(bits):
    spans = np.arange(48)[:, None]
    x = np.minimum(np.arange(48), spans) - 20
    assert_exact(x, bits=bits, lanes=4)


@pytest.mark.parametrize("bits", range(2, 9))
def test_ties_of_wide_spans(bits):
    """Every tie there is between two codes; the span is even, and once as wide as elements can be apart."""
    steps = 2**bits - 1
    odd = np.arange(1, 2 * steps, 2)
    x = np.stack([np.concatenate([[0, 2 * steps], odd]) * k for k in (1, 3, 65535 // (2 * steps))]) - 32768
    assert_exact(np.pad(x, [(0, 0), (0, -x.shape[1] % 4)], mode="edge"), bits=bits, lanes=4)


@pytest.mark.parametrize("seed", range(24))
def test_cycles_and_stalls(seed):
    rng = np.random.default_rng(seed)
    bits, lanes = 2 + seed % 7, int(rng.integers(1, 6))
    x = random_groups(rng, int(rng.integers(2, 7)), lanes * int(rng.integers(1, 7)))
    dut = GroupQuantizer(bits=bits, group=x.shape[1], lanes=lanes)
    assert assert_exact(x, bits=bits, lanes=lanes) == dut.cycles(len(x))
    assert dut.interval == x.shape[1] // lanes
    valid, ready = ((1.0, 0.4), (0.4, 1.0), (0.6, 0.6))[seed % 3]
    assert_exact(x, bits=bits, lanes=lanes, seed=seed, valid_probability=valid, ready_probability=ready)


@pytest.mark.parametrize(
    ("bits", "lanes", "latency"), [(4, 8, 12), (2, 8, 10), (8, 8, 16), (4, 1, 10), (4, 16, 13)]
)
def test_latency(bits, lanes, latency):
    """After it the only group of a run comes out, a word a cycle."""
    dut = GroupQuantizer(bits=bits, group=2 * lanes, lanes=lanes)
    assert dut.latency == latency
    x = np.arange(2 * lanes)[None]
    assert assert_exact(x, bits=bits, lanes=lanes) == 2 + latency + 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_offset_of_every_span_below_1024_and_random_groups(bits):
    stream = VerilatedStream(GroupQuantizer(bits=bits, group=1024, lanes=8))
    rng = np.random.default_rng(bits)
    every = np.minimum(np.arange(1024), np.arange(1024)[:, None]) + 31000
    for x, stalls in ((every, 1.0), (random_groups(rng, 500, 1024), 0.7)):
        words = words_of(x, bits, 8)
        trace = stream.run(
            x.reshape(-1, 8), output_count=len(words), valid_probability=stalls, ready_probability=stalls
        )
        np.testing.assert_array_equal(trace.outputs, words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits must be 2 to 8, not 1"),
        ({"bits": True}, "bits must be 2 to 8, not True"),
        ({"group": 0}, "group must be a positive integer, not 0"),
        ({"lanes": -1}, "lanes must be a positive integer, not -1"),
        (
            {"group": 32, "lanes": 6},
            "lanes must divide group (32), which 6 does not; the nearest that does is 4",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        GroupQuantizer(**arguments)
    assert str(caught.value) == message
