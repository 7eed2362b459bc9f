"""The packer and the unpacker, which are the same gearbox."""

import numpy as np
import pytest

from hw.kv_cache.gearbox import Gearbox
from hw.kv_cache.packer import Packer
from hw.kv_cache.unpacker import Unpacker
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.kv_cache.packing import pack

STALLS = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.6, 0.6))
KNOWN = [
    # bits, lanes, codes, word_bits, cycles of a record packed and unpacked
    (4, 8, 64, 32, 8, 8),
    (3, 8, 64, 32, 8, 8),
    (3, 8, 32, 32, 4, 4),
    (3, 1, 11, 32, 12, 11),
    (8, 8, 64, 32, 16, 16),
    (2, 8, 64, 64, 8, 8),
    (5, 7, 14, 8, 9, 9),
]


def assert_exact(codes, *, bits, lanes, word_bits, stalls=STALLS):
    """Records (n, codes); returns the cycles of packing and of unpacking."""
    size = codes.shape[1]
    words = [int(word) for word in pack(codes, bits, word_bits=word_bits).reshape(-1)]
    transfers = codes.reshape(-1, lanes).tolist()
    cycles = []
    for seed, (valid, ready) in enumerate(stalls):
        for component, sent, expected in ((Packer, transfers, words), (Unpacker, words, transfers)):
            dut = component(bits=bits, lanes=lanes, codes=size, word_bits=word_bits)
            trace = simulate_stream(
                dut,
                sent,
                output_count=len(expected),
                seed=seed,
                valid_probability=valid,
                ready_probability=ready,
            )
            assert trace.outputs == expected
            cycles.append(trace.cycles)
    return cycles[:2]


@pytest.mark.parametrize("seed", range(40))
def test_random_widths(seed):
    rng = np.random.default_rng(seed)
    bits, lanes, word_bits = (int(rng.integers(1, most)) for most in (9, 9, 65))
    codes = rng.integers(0, 1 << bits, (int(rng.integers(1, 6)), lanes * int(rng.integers(1, 20))))
    sizes = {"bits": bits, "lanes": lanes, "codes": codes.shape[1], "word_bits": word_bits}
    intervals = [Packer(**sizes).interval, Unpacker(**sizes).interval]
    cycles = assert_exact(codes, bits=bits, lanes=lanes, word_bits=word_bits)
    assert cycles == [len(codes) * interval + 1 for interval in intervals]


@pytest.mark.parametrize(("bits", "lanes", "size", "word_bits", "packing", "unpacking"), KNOWN)
def test_known_cycles(bits, lanes, size, word_bits, packing, unpacking):
    codes = np.random.default_rng(1).integers(0, 1 << bits, (5, size))
    cycles = assert_exact(codes, bits=bits, lanes=lanes, word_bits=word_bits, stalls=STALLS[:1])
    assert cycles == [5 * packing + 1, 5 * unpacking + 1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Packer(bits=0, lanes=1, codes=1, word_bits=1), "bits must be a positive integer, not 0"),
        (
            lambda: Packer(bits=4, lanes=3, codes=64, word_bits=32),
            "lanes must divide record (64), which 3 does not; the nearest that does is 2",
        ),
        (
            lambda: Unpacker(bits=4, lanes=5, codes=64, word_bits=32),
            "lanes must divide record (64), which 5 does not; the nearest that does is 4",
        ),
        (
            lambda: Gearbox(input_bits=1, output_bits=0, record_bits=1),
            "output_bits must be a positive integer, not 0",
        ),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(UsageError) as caught:
        build()
    assert str(caught.value) == message
