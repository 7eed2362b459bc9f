import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.packing import pack, unpack, word_count


def by_definition(codes: list[int], widths: list[int], word_bits: int) -> list[int]:
    """All codes as one long integer."""
    number = start = 0
    for code, width in zip(codes, widths, strict=True):
        number |= code << start
        start += width
    return [number >> low & (1 << word_bits) - 1 for low in range(0, start, word_bits)]


@pytest.mark.parametrize("width", range(17))
@pytest.mark.parametrize("word_bits", [1, 5, 8, 16, 24, 32, 33, 64])
def test_one_width(width: int, word_bits: int) -> None:
    rng = np.random.default_rng(width)
    for count in (0, 1, 7, 8, 33, 64):
        codes = rng.integers(0, 1 << width, (2, 3, count))
        words = pack(codes, width, word_bits=word_bits)
        assert words.dtype == np.uint64
        assert words.shape == (2, 3, word_count(count, width, word_bits=word_bits))
        for place in np.ndindex(2, 3):
            assert words[place].tolist() == by_definition(codes[place].tolist(), [width] * count, word_bits)
        found = unpack(words, width, count=count, word_bits=word_bits)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("seed", range(40))
def test_a_width_for_each_code(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, word_bits = int(rng.integers(1, 100)), int(rng.integers(1, 65))
    widths = rng.integers(0, 17, count).tolist()
    codes = rng.integers(0, np.left_shift(1, widths), (5, count))
    words = pack(codes, widths, word_bits=word_bits)
    assert words.shape == (5, word_count(count, widths, word_bits=word_bits))
    for row, expected in zip(words, codes, strict=True):
        assert row.tolist() == by_definition(expected.tolist(), widths, word_bits)
    np.testing.assert_array_equal(unpack(words, widths, count=count, word_bits=word_bits), codes)


def test_the_order_of_bits() -> None:
    assert pack([1, 2, 7], 3, word_bits=4).tolist() == [1 | (2 & 1) << 3, 1 | 3 << 2, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack([4, 0], 2), "codes must be from 0 to 3; one is 4"),
        (lambda: pack([0, -1], 2), "codes must be from 0 to 3; one is -1"),
        (lambda: pack([0.5], 2), "codes must be integers, not float64"),
        (lambda: pack(0, 2), "codes must be of shape (..., n), not ()"),
        (lambda: pack([0], 17), "widths must be an integer from 0 to 16, not 17"),
        (lambda: pack([0], [-1]), "each of widths must be an integer from 0 to 16, not -1"),
        (lambda: pack([0, 1], [3]), "there must be a width for each of 2 codes, not 1"),
        (lambda: pack([[0, 1], [1, 5]], [1, 2]), "code 1 has 2 bits; one is 5"),
        (lambda: pack([0], 2, word_bits=65), "word_bits must be an integer from 1 to 64, not 65"),
        (lambda: pack([0], 2, word_bits=0), "word_bits must be an integer from 1 to 64, not 0"),
        (
            lambda: unpack(np.zeros((2, 3), np.int64), 4, count=8),
            "8 codes take 1 words of 32 bits; the shape is (2, 3)",
        ),
        (lambda: unpack([256], 4, count=2, word_bits=8), "words must be from 0 to 255; one is 256"),
    ],
)
def test_wrong_arguments(call, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message
