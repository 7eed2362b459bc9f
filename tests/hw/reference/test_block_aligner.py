import numpy as np
import pytest

from hw.reference.block_aligner import align_words
from quantizers.errors import UsageError
from quantizers.table_lookup.wide_float import WideFloat, wide_float

BF16 = wide_float("bf16")


def test_hand_made_blocks():
    words = BF16.encode([[1.0, -0.5], [0.3125, 0.0], [2.0, 1.0], [-0.25, 0.125]])
    codes, exponents = align_words(words, activations=BF16, words_per_block=2, bits=4)
    assert codes.tolist() == [[4, -2], [1, 0], [4, 2], [0, 0]]
    assert exponents.tolist() == [127, 127, 128, 128]


@pytest.mark.parametrize("bits", [4, 9, 12])
def test_integers_times_units_are_the_values(bits):
    """Within half a unit, or a whole one where the largest saturate."""
    fmt = WideFloat(5, 6)
    rng = np.random.default_rng(1)
    words = rng.choice(np.flatnonzero(np.isfinite(fmt.values())), (60, 4))
    codes, exponents = align_words(words, activations=fmt, words_per_block=3, bits=bits)
    unit = 2.0 ** (exponents - fmt.exponent_bias + 2 - bits)[:, None]
    error = np.abs(codes * unit - fmt.decode(words)) / unit
    is_largest = np.abs(codes) == (1 << (bits - 1)) - 1
    assert error[~is_largest].max() <= 0.5
    assert error[is_largest].max(initial=0) < 1
    assert exponents.reshape(-1, 3).tolist() == [[e] * 3 for e in exponents[::3]]


def test_fields_of_zeros_and_subnormals_count_as_one():
    codes, exponents = align_words([[0, 1 << 15], [1, 3]], activations=BF16, words_per_block=1, bits=9)
    assert codes.tolist() == [[0, 0], [1, 3]]
    assert exponents.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([[0], [1], [2]], "words must be of shape (n, lanes), n a multiple of 2, not (3, 1)"),
        ([0, 1], "words must be of shape (n, lanes), n a multiple of 2, not (2,)"),
        ([[1], [1 << 16]], "code 65536 is outside bf16: expected 0 to 65535"),
        ([[1], [0x7F80]], "a block with inf cannot be aligned; it is at position (0, 1)"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(UsageError) as caught:
        align_words(words, activations=BF16, words_per_block=2, bits=8)
    assert str(caught.value) == message
