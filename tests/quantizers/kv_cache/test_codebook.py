from fractions import Fraction

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.formats import MinifloatFormat
from quantizers.kv_cache.codebook import (
    Codebook,
    ScaleFormat,
    magnitude_sums,
    nested_codebook,
    normal_codebook,
)
from quantizers.kv_cache.rotation import largest_sum, random_signs, rotate, unrotate

# J. Max, "Quantizing for minimum distortion", IRE Transactions on Information Theory 6 (1960), table 1.
MAX_1960 = {
    1: ([], [0.7980], 0.3634),
    2: ([0.9816], [0.4528, 1.510], 0.1175),
    3: ([0.5006, 1.050, 1.748], [0.2451, 0.7560, 1.344, 2.152], 0.03454),
    4: (
        [0.2582, 0.5224, 0.7996, 1.099, 1.437, 1.844, 2.401],
        [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
        0.009497,
    ),
}


@pytest.mark.parametrize("bits", MAX_1960)
def test_the_codebook_of_a_normal_density_is_that_of_max(bits):
    thresholds, levels, distortion = MAX_1960[bits]
    book = normal_codebook(bits)
    assert book.thresholds == pytest.approx(thresholds, abs=6e-4)
    assert book.levels == pytest.approx(levels, abs=6e-4)
    assert book.distortion == pytest.approx(distortion, rel=6e-4)


@pytest.mark.parametrize(("bits", "decibels"), [(5, 26.01), (6, 31.89)])
def test_larger_codebooks_lose_what_the_asymptote_says(bits, decibels):
    """N. S. Jayant and P. Noll, "Digital Coding of Waveforms", table 4.6."""
    assert -10 * np.log10(normal_codebook(bits).distortion) == pytest.approx(decibels, abs=0.03)


@pytest.mark.parametrize("exponent_bits", [2, 3, 4, 5])
@pytest.mark.parametrize("mantissa_bits", [1, 3, 4, 7])
def test_scales_are_rounded_like_minifloats(exponent_bits, mantissa_bits):
    fmt = ScaleFormat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, unit=3)
    bias = 1 - mantissa_bits
    float_format = MinifloatFormat(exponent_bits, mantissa_bits, bias=bias, signed=False)
    rng = np.random.default_rng(1)
    sums = np.concatenate([np.arange(3000), np.exp2(rng.uniform(0, 40, 3000)).astype(np.int64)])
    codes = fmt.encode(sums)
    assert np.array_equal(codes, float_format.encode(sums / 8.0))
    assert np.array_equal(fmt.decode(codes), 8 * float_format.decode(codes))
    every = np.arange(1 << fmt.bits)
    assert np.array_equal(fmt.encode(fmt.decode(every)), every)
    assert fmt.largest == fmt.decode(every)[-1]


def test_wide_mantissas_round_ties_to_even():
    fmt = ScaleFormat(exponent_bits=5, mantissa_bits=11)
    sums = np.array([4095, 4096, 4097, 4098, 4099, 8190, 8191, 2**62 - 1])
    assert fmt.decode(fmt.encode(sums)).tolist() == [
        *(4095, 4096, 4096, 4098, 4100, 8190, 8192),
        4095 << 30,
    ]


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_format_covers_every_rotated_vector(size, bits):
    fmt = ScaleFormat.covering(largest_sum(size), bits=bits)
    assert fmt.bits == bits
    assert fmt.largest >= largest_sum(size)
    if fmt.unit:
        assert ScaleFormat(mantissa_bits=bits - 4, unit=fmt.unit - 1).largest < largest_sum(size)


def code_by_definition(book, w, scale):
    magnitude = w if w >= 0 else -1 - w
    reached = sum(magnitude >= Fraction(t * scale, 2**book.shift).__floor__() for t in book.thresholds)
    code = 2 ** (book.bits - 1) + reached
    return code if w >= 0 else 2**book.bits - 1 - code


def level_by_definition(book, code, scale):
    if scale == 0:
        return 0
    half = 2 ** (book.bits - 1)
    place = code - half if code >= half else half - 1 - code
    level = 2 * Fraction(book.levels[place] * scale, 2 ** (book.shift + 1)).__floor__() + 1
    return level if code >= half else -level


@pytest.mark.parametrize("bits", range(1, 7))
@pytest.mark.parametrize("size", [8, 48, 64])
def test_codes_and_levels_by_their_definition(bits, size):
    book = Codebook(bits=bits, size=size)
    fmt = ScaleFormat.covering(largest_sum(64))
    rng = np.random.default_rng(bits)
    w = rng.normal(0, np.exp2(rng.uniform(0, 16, (6, 1))), (6, size)).astype(np.int64)
    w[0] = 0
    scales = fmt.decode(fmt.encode(magnitude_sums(w)))
    codes = book.quantize(w, scales)
    levels = book.dequantize(codes, scales)
    assert codes.dtype == np.uint8
    for place in np.ndindex(w.shape):
        scale = int(scales[place[0]])
        assert codes[place] == code_by_definition(book, int(w[place]), scale)
        assert levels[place] == level_by_definition(book, int(codes[place]), scale)


def test_thresholds_and_the_numbers_next_to_them():
    book = Codebook(bits=3, size=64)
    for scale in (31 << 10, 17 << 13, 640):
        limits = [t * scale >> book.shift for t in book.thresholds]
        w = np.array([[0, -1, *(e for t in limits for e in (t - 1, t, -t, -1 - t))]])
        assert book.quantize(w, np.array([scale]))[0].tolist() == [4, 3, 4, 5, 3, 2, 5, 6, 2, 1, 6, 7, 1, 0]


@pytest.mark.parametrize("bits", range(1, 7))
def test_the_error_of_normal_vectors_is_that_of_the_codebook(bits):
    rng = np.random.default_rng(bits)
    x = rng.normal(0, 1500, (4000, 64)).astype(np.int16)
    signs = random_signs(64, 1)
    w = rotate(x, signs=signs)
    fmt, book = ScaleFormat.covering(largest_sum(64)), Codebook(bits=bits, size=64)
    scales = fmt.decode(fmt.encode(magnitude_sums(w)))
    error = unrotate(book.dequantize(book.quantize(w, scales), scales), signs=signs) - x.astype(float)
    loss = np.square(error).mean() / np.square(x.astype(float)).mean()
    # The scale is that of the vector itself, which is a little better than that of the source; its
    # three bits of fraction cost a little.
    assert loss == pytest.approx(normal_codebook(bits).distortion, rel=0.03)


def test_of_zeros_nothing_comes_back():
    book = Codebook(bits=4, size=64)
    scales = np.zeros(2, int)
    codes = book.quantize(np.array([[0] * 64, [-1] * 64]), scales)
    assert codes[:, 0].tolist() == [15, 0]
    assert not book.dequantize(codes, scales).any()


def test_shapes_are_kept():
    book = Codebook(bits=2, size=8)
    w = np.random.default_rng(1).integers(-99, 99, (2, 3, 8))
    scales = magnitude_sums(w)
    assert scales.shape == (2, 3)
    codes = book.quantize(w, scales)
    assert codes.shape == book.dequantize(codes, scales).shape == (2, 3, 8)
    assert np.array_equal(codes[1, 2], book.quantize(w[1, 2], scales[1, 2]))


def test_magnitudes_are_symmetric_about_minus_a_half():
    assert magnitude_sums(np.array([[3, 0], [-4, -1]], np.int16)).tolist() == [3, 3]


@pytest.mark.parametrize(("bits", "finest"), [(1, 5), (2, 5), (3, 5), (4, 5), (3, 4), (5, 6), (4, 4)])
def test_codes_of_fewer_bits_are_the_highest_bits_of_finer_ones(bits, finest):
    coarse, fine = Codebook(bits=bits, size=64, finest=finest), Codebook(bits=finest, size=64)
    rng = np.random.default_rng(bits)
    w = rng.normal(0, 1500, (3000, 64)).astype(np.int64)
    scales = ScaleFormat.covering(largest_sum(64), bits=16).decode(
        ScaleFormat.covering(largest_sum(64), bits=16).encode(magnitude_sums(w))
    )
    codes = coarse.quantize(w, scales)
    assert np.array_equal(codes, fine.quantize(w, scales) >> (finest - bits))
    error = np.square(coarse.dequantize(codes, scales) - w).mean() / np.square(w).mean()
    assert error == pytest.approx(nested_codebook(bits, finest).distortion, rel=0.03)
    # No more than 5 % beyond a codebook of its own.
    assert 1 <= nested_codebook(bits, finest).distortion / normal_codebook(bits).distortion < 1.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_codebook(7), "bits must be an integer from 1 to 6, not 7"),
        (lambda: Codebook(bits=0, size=64), "bits must be an integer from 1 to 6, not 0"),
        (lambda: Codebook(bits=4, size=64, finest=3), "finest must be an integer from 4 to 6, not 3"),
        (lambda: nested_codebook(4, 3), "bits must be an integer from 1 to 3, not 4"),
        (lambda: Codebook(bits=4, size=0), "size must be an integer from 1 to 4096, not 0"),
        (
            lambda: Codebook(bits=4, size=64, fraction_bits=3),
            "fraction_bits must be an integer from 4 to 12, not 3",
        ),
        (lambda: ScaleFormat(exponent_bits=6), "exponent_bits must be an integer from 2 to 5, not 6"),
        (lambda: ScaleFormat.covering(1, bits=4), "mantissa_bits must be an integer from 1 to 12, not 0"),
        (
            lambda: ScaleFormat.covering(1 << 60),
            f"no scale of 8 bits reaches {1 << 60}; expected at most {31 << 46}",
        ),
        (lambda: ScaleFormat().encode([-1]), f"sums must be from 0 to {2**62 - 1}; one is -1"),
        (lambda: ScaleFormat().decode([256]), "codes must be from 0 to 255; one is 256"),
        (
            lambda: Codebook(bits=2, size=4).quantize(np.zeros((3, 4), int), np.zeros(2, int)),
            "there must be a scale a vector, shape (3,), not (2,)",
        ),
        (
            lambda: Codebook(bits=2, size=4).dequantize(np.full((1, 4), 4), np.zeros(1, int)),
            "codes must be from 0 to 3; one is 4",
        ),
        (
            lambda: Codebook(bits=2, size=1).dequantize(np.zeros((1, 1), int), np.array([1 << 32])),
            f"a scale of {1 << 32} gives coefficients beyond 32 bits",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message
