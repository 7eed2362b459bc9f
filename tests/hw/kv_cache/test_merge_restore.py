import numpy as np
import pytest

from costmodel import synthesize
from hw.kv_cache.merge_restore import MergeRestore
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.merge_arithmetic import MergeArithmetic, restore
from tests.hw.kv_cache.merge_words import array_word, as_objects


class Cache:
    """Merged tokens, some of them retained, as payloads; and what comes of them."""

    def __init__(self, channels, lanes, tokens, retained, seed):
        rng = np.random.default_rng(seed)
        self.arithmetic, self.lanes = MergeArithmetic(channels=channels), lanes
        bits = self.arithmetic.magnitude_bits
        directions = rng.integers(-32768, 32768, (tokens, channels))
        directions[0] = -32768
        magnitudes = rng.integers(0, 1 << bits, tokens) >> rng.integers(0, bits, tokens)
        magnitudes[0] = (1 << bits) - 1
        places = np.sort(rng.choice(tokens, retained, replace=False))
        rows = rng.integers(-32768, 32768, (retained, channels))
        self.want = restore(directions, magnitudes)
        self.want[places] = rows
        self.merged = [
            array_word(word)
            | int(magnitudes[token]) << 16 * lanes
            | (token == tokens - 1) << 16 * lanes + bits
            for token in range(tokens)
            for word in directions[token].reshape(-1, lanes)
        ]
        self.rows = [
            array_word(word) | int(place) << 16 * lanes | (row == number == 0) << 16 * lanes + 16
            for row, place in enumerate(places)
            for number, word in enumerate(rows[row].reshape(-1, lanes))
        ]

    def streams(self, passes):
        return {"rows": as_objects(self.rows), "merged": as_objects(self.merged * passes)}


@pytest.mark.parametrize(
    ("channels", "lanes", "retained", "multipliers"),
    [(64, 4, 8, "dsps"), (12, 3, 7, "luts"), (4, 4, 1, "dsps"), (8, 1, 8, "dsps")],
)
def test_restored_vectors_and_retained_rows(channels, lanes, retained, multipliers):
    cache = Cache(channels, lanes, 40, retained, seed=channels)
    component = MergeRestore(arithmetic=cache.arithmetic, lanes=lanes, capacity=8, multipliers=multipliers)
    words = 2 * len(cache.merged)
    cycles = component.cycles(words)
    model = VerilatedStream(component)
    for valid, ready in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.3), (0.4, 0.6)):
        run = model.run(
            cache.streams(passes=2),
            output_count=words,
            first=["rows"],
            seed=2,
            valid_probability=valid,
            ready_probability=ready,
        )
        np.testing.assert_array_equal(run.outputs.reshape(2, 40, channels), np.stack([cache.want] * 2))
        if valid == ready == 1:
            assert run.cycles == len(cache.rows) + cycles


def test_new_rows_replace_the_earlier_ones():
    """A second prefill's rows, with the mark, before any token is read."""
    earlier, cache = Cache(8, 4, 9, 5, seed=1), Cache(8, 4, 9, 3, seed=2)
    component = MergeRestore(arithmetic=cache.arithmetic, lanes=4, capacity=5)
    run = simulate_stream(
        component,
        {"rows": earlier.rows + cache.rows, "merged": cache.merged},
        output_count=len(cache.merged),
        first=["rows"],
    )
    np.testing.assert_array_equal(np.reshape(run.outputs, (9, 8)), cache.want)


def test_without_rows():
    cache = Cache(8, 4, 6, 0, seed=3)
    component = MergeRestore(arithmetic=cache.arithmetic, lanes=4)
    run = simulate_stream(component, {"rows": [], "merged": cache.merged}, output_count=12)
    np.testing.assert_array_equal(np.reshape(run.outputs, (6, 8)), cache.want)


def test_its_size():
    """Measured: 276 sites, 4 DSP slices and a block RAM for 32 rows of 64 channels."""
    found = synthesize(MergeRestore(arithmetic=MergeArithmetic(channels=64)), name="restore")
    assert found.luts <= 290
    assert (found.dsps, found.brams) == (4, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 0}, "capacity must be a positive integer, not 0"),
        ({"token_bits": -1}, "token_bits must be a positive integer, not -1"),
        ({"lanes": 7}, "lanes must divide the 64 channels, not be 7"),
        ({"multipliers": "none"}, "unknown multipliers 'none'; expected one of: luts, dsps"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError) as caught:
        MergeRestore(**{"arithmetic": MergeArithmetic(channels=64), **changes})
    assert str(caught.value) == message
