"""Codecs of single tokens against straightforward re-implementations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.formats import BlockFormat, parse_format
from quantizers.kv_cache.codebook import ScaleFormat, nested_codebook
from quantizers.kv_cache.codec import code_bits
from quantizers.kv_cache.fitting import (
    hadamard_basis,
    integer_means,
    principal_basis,
    rotations,
    tempered,
    transforms,
)
from quantizers.kv_cache.formats_codec import InFormat
from quantizers.kv_cache.grouped import PerChannel, PerToken
from quantizers.kv_cache.outliers import SplitOutliers, Thresholds
from quantizers.kv_cache.rotated import Rotated, Rotation, padded_size
from quantizers.kv_cache.rotation import largest_sum, random_signs
from quantizers.kv_cache.transform import Block, Transformed
from tests.quantizers.kv_cache.small_calibration import random_calibration


def random_integers(*shape: int, spread: float = 900, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, shape).round().astype(np.int64)


def half_even(value: Fraction) -> int:
    return round(value)


def uniform(group: np.ndarray, bits: int) -> list[int]:
    """Of one group, in rational numbers."""
    low, span, steps = int(group.min()), int(np.ptp(group)), (1 << bits) - 1
    codes = [half_even(Fraction((int(x) - low) * steps, max(span, 1))) for x in group]
    return [low + half_even(Fraction(code * span, steps)) for code in codes]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_groups_run_along_tokens_or_channels(bits: int) -> None:
    x = random_integers(3, 8, 6)
    codec = PerChannel(channels=6, bits=bits, group=8)
    read = codec.decode(codec.encode(x))
    for unit, channel in np.ndindex(3, 6):
        assert read[unit, :, channel].tolist() == uniform(x[unit, :, channel], bits)
    tokens = x.reshape(24, 1, 6)
    by_token = PerToken(channels=6, bits=bits, group=3)
    read = by_token.decode(by_token.encode(tokens))
    for token, group in np.ndindex(24, 2):
        share = slice(3 * group, 3 * group + 3)
        assert read[token, 0, share].tolist() == uniform(tokens[token, 0, share], bits)


@pytest.mark.parametrize("name", ["e2m1", "e3m0", "int4", "int4n", "e4m3fn"])
def test_half_precision_scales(name: str) -> None:
    x, fmt = random_integers(40, 1, 32), parse_format(name)
    codec = InFormat(channels=32, format=name, group=16)
    read = codec.decode(codec.encode(x)).reshape(40, 2, 16)
    for token, group in np.ndindex(40, 2):
        share = x[token, 0, 16 * group : 16 * group + 16]
        scale = float(np.float16(np.abs(share).max() / fmt.grid.maximum))
        assert read[token, group].tolist() == np.rint(fmt.round(share / scale) * scale).tolist()
    assert codec.unit_bits == 32 * fmt.bits + 2 * 16


@pytest.mark.parametrize(("name", "group"), [("mxfp4", 32), ("mxint8", 32), ("mxfp8_e4m3", 32), ("e2m3", 8)])
def test_power_of_two_scales(name: str, group: int) -> None:
    x, fmt = random_integers(40, 1, 64), parse_format(name)
    block = fmt if isinstance(fmt, BlockFormat) else BlockFormat(fmt, name, group)
    codec = InFormat(channels=64, format=name, group=group, scale="power")
    expected = np.clip(np.rint(block.round(x[:, 0].astype(np.float64))), -32768, 32767)
    assert np.array_equal(codec.decode(codec.encode(x))[:, 0], expected)
    assert codec.bits_per_element == block.element.bits + 8 / group


def test_thresholds_are_quantiles() -> None:
    found = Thresholds.of(np.arange(-500, 501), outer=0.04, inner=0.06)
    assert found == Thresholds(-480, -30, 30, 480)
    with pytest.raises(UsageError) as caught:
        Thresholds(0, 3, 2, 9)
    assert str(caught.value) == (
        "outer_low <= inner_low <= inner_high <= outer_high must hold, not (0, 3, 2, 9)"
    )


def test_outliers_are_coded_over_their_own_range() -> None:
    x = random_integers(30, 1, 48)
    t = Thresholds.of(x, outer=0.1, inner=0.1)
    codec = SplitOutliers(channels=48, thresholds=t, outliers=0.2, bits=3, outlier_bits=5)
    code = codec.encode(x)
    read, outliers = codec.decode(code)[:, 0], 0
    for token in range(30):
        row = x[token, 0]
        outer = (row < t.outer_low) | (row > t.outer_high)
        inner = (row >= t.inner_low) & (row <= t.inner_high)
        middle = ~outer & ~inner
        outliers += int((outer | inner).sum())
        above = np.where(outer, t.outer_high, t.inner_high)
        below = np.where(outer, t.outer_low, t.inner_low)
        offset = np.where(inner, 0, np.where(row > 0, above, below))
        shifted = row - offset
        for mine, bits in ((middle, 3), (outer, 5), (inner, 5)):
            if mine.any():
                coded = np.array(uniform(shifted[mine], bits))
                sides = np.where(coded > 0, above[mine], below[mine]) * (not inner[mine].any())
                assert read[token, mine].tolist() == (coded + sides).tolist()
    # 6 bits of channel, 1 of group, 2 more of code; a count of 0 to 48, and three ranges.
    assert int(code_bits(code).sum()) == 30 * (48 * 3 + 6 + 96) + 9 * outliers


@pytest.mark.parametrize("elements", [8, 12])
def test_rotation_in_floats(elements: int) -> None:
    """Within what integers and the small scale add; sizes that are no power of two are filled up."""
    size = padded_size(elements)
    signs = random_signs(size, 5)
    bits = tuple([3, 4] * (size // 2))
    vector = Rotation(
        elements=elements,
        bits=bits,
        finest=4,
        signs=tuple(signs.tolist()),
        scale=ScaleFormat.covering(1 << 18, bits=16),
    )
    codec = Rotated([vector, vector])
    x = random_integers(50, 1, 2 * elements)
    matrix = np.array([[(-1) ** bin(i & j).count("1") for j in range(size)] for i in range(size)])
    padded = np.pad(x.reshape(100, elements), [(0, 0), (0, size - elements)]) * signs
    z = padded @ matrix / np.sqrt(size)
    spread = np.abs(z).mean(axis=1, keepdims=True) * np.sqrt(np.pi / 2)
    coded = np.zeros_like(z)
    for j, b in enumerate(bits):
        book = nested_codebook(b, 4)
        levels = np.concatenate([-np.array(book.levels)[::-1], book.levels])
        limits = np.concatenate([-np.array(book.thresholds)[::-1], [0], book.thresholds])
        nearest = (z[:, j, None] / spread >= limits).sum(axis=1)
        coded[:, j] = levels[nearest] * spread[:, 0]
    expected = (coded @ matrix / np.sqrt(size) * signs)[:, :elements].reshape(50, 2 * elements)
    read = codec.decode(codec.encode(x))[:, 0]
    assert np.median(np.abs(read - expected)) < 3
    assert codec.unit_bits == 2 * (sum(bits) + 16)


def test_tables_of_a_rotation_must_fit() -> None:
    scale = ScaleFormat.covering(1 << 18)
    with pytest.raises(UsageError) as caught:
        Rotation(elements=6, bits=(3,) * 6, finest=3, signs=(1,) * 8, scale=scale)
    assert str(caught.value) == "a vector of 6 elements takes 8 bits, not 6"
    with pytest.raises(UsageError) as caught:
        Rotation(elements=6, bits=(3,) * 8, finest=3, signs=(1,) * 8, scale=scale, means=(1, 2))
    assert str(caught.value) == "a vector of 6 elements takes 6 means, not 2"
    with pytest.raises(UsageError) as caught:
        Rotation(elements=8, bits=(3,) * 8, finest=2, signs=(1,) * 8, scale=scale)
    assert str(caught.value) == "bits must be from 0 to 2; one is 3"
    with pytest.raises(UsageError) as caught:
        Rotation(elements=8, bits=(3,) * 8, finest=3, signs=(1, -1, 3, 0) * 2, scale=scale)
    assert str(caught.value) == "signs must be 1 or -1; one is 0"
    with pytest.raises(UsageError) as caught:
        Rotation(elements=2, bits=(3,) * 2, finest=3, signs=(1, 3), scale=scale)
    assert str(caught.value) == "signs must be 1 or -1; one is 3"
    with pytest.raises(UsageError) as caught:
        Rotation(elements=2, bits=(3,) * 2, finest=3, signs=(1, -1), scale=scale, means=(0, -32769))
    assert str(caught.value) == "means must be from -32768 to 32767; one is -32769"
    # Taken away twice they may leave the range as well.
    vector = Rotation(elements=2, bits=(3,) * 2, finest=3, signs=(1, -1), scale=scale, means=(0, 32767))
    with pytest.raises(UsageError) as caught:
        Rotated([vector]).centred([0, 1])
    assert str(caught.value) == "means must be from -32768 to 32767; one is 32768"


def test_rotated_vectors_take_means_away_in_one_bit_more() -> None:
    """Differences beyond 16 bits are not cut off: the hardware adds them in 17."""
    scale = ScaleFormat.covering(largest_sum(8), bits=16)
    vector = Rotation(elements=8, bits=(6,) * 8, finest=6, signs=(1, -1) * 4, scale=scale)
    means = np.array([-32768, 32767] * 4)
    codec = Rotated([vector]).centred(means)
    assert codec.vectors[0].means == tuple(means.tolist())
    x = np.random.default_rng(1).integers(-32768, 32768, (200, 1, 8))
    x[0] = means
    read = codec.decode(codec.encode(x))
    assert np.array_equal(read[0], x[0])
    assert np.abs(read - x).mean() < 2000 < np.abs(x - means).mean() / 10
    with pytest.raises(UsageError) as caught:
        Rotated([vector]).centred([1, 2])
    assert str(caught.value) == "there must be 8 means, a channel one, not (2,)"


def small_block() -> Block:
    return Block(
        forward=np.array([[3, -1, 2], [0, 5, -7]]),
        inverse=np.array([[4, 0], [-3, 1], [2, 2]]),
        shift=3,
        thresholds=((-100, 0, 100), (7,)),
        levels=((-300, -50, 50, 300), (-11, 13)),
    )


def test_transform_by_hand() -> None:
    codec = Transformed([small_block()])
    code = codec.encode(np.array([[[10, -70, 0]], [[1, 3, 1]], [[-40, 0, -1]]]))
    # z = (100, -350), (2, 8), (-122, 7): a coefficient on a threshold has reached it.
    assert code[0].values.tolist() == [[3, 0], [2, 1], [0, 1]]
    assert code[0].widths == (2, 1)
    # v = (300, -11), (50, 13), (-300, 13); sums / 8 half to even.
    assert codec.decode(code).tolist() == [[[150, -114, 72]], [[25, -17, 16]], [[-150, 114, -72]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ((-1, 1, 2), (0, 1))}, "3 levels take 2 ascending thresholds, and are a power of two"),
        (
            {"inverse": np.zeros((2, 2), int)},
            "2 coefficients of 3 elements take an inverse of shape (3, 2) and 2 tables, not (2, 2), 2 and 2",
        ),
        ({"shift": 31}, "shift must be an integer from 0 to 30, not 31"),
        (
            {"forward": np.full((2, 3), 2048)},
            "forward must be from -2048 to 2047; one is 2048",
        ),
    ],
)
def test_tables_of_a_transform_must_fit(change: dict, message: str) -> None:
    block = small_block()
    with pytest.raises(UsageError) as caught:
        Block(**{**{name: getattr(block, name) for name in block.__dataclass_fields__}, **change})
    assert str(caught.value) == message


def test_principal_coefficients_do_not_correlate() -> None:
    calibration = random_calibration()
    covariance, importance = calibration.covariances[0, :16, :16], calibration.importances[0, :16, :16]
    basis = principal_basis(covariance, importance, entry_bits=12)
    seen = basis.forward @ covariance @ basis.forward.T
    correlation = seen / np.sqrt(np.outer(np.diag(seen), np.diag(seen)))
    assert np.abs(correlation - np.eye(16)).max() < 0.05
    assert np.all(np.diff(basis.errors) < basis.errors[:-1] * 0.01)
    assert np.abs(basis.forward).max(axis=1).tolist() == [2047] * 16
    assert basis.errors.sum() == pytest.approx(np.trace(covariance @ importance), rel=0.02)


def test_the_hadamard_basis_is_that_of_the_codec() -> None:
    calibration = random_calibration()
    signs = random_signs(8, 1)
    basis = hadamard_basis(calibration.covariances[0, :8, :8], calibration.importances[0, :8, :8], signs)
    rows = calibration.samples[0, :, :8] - calibration.means[0, :8]
    assert basis.variances == pytest.approx((rows @ basis.forward.T).var(axis=0, ddof=1), rel=1e-9)


def test_tempering_keeps_or_forgets_what_matters() -> None:
    importance = random_calibration().importances[0, :8, :8]
    units = np.exp2(np.arange(8) // 4 + 3.0)
    assert tempered(importance, units, 1.0) == pytest.approx(
        importance, rel=1e-4, abs=1e-6 * importance.max()
    )
    assert tempered(importance, units, 0.0) == pytest.approx(np.diag(units**-2.0), abs=1e-12)


@pytest.mark.parametrize("bits", [2.5, 4.0])
def test_fitted_transforms_lose_what_the_codebook_says(bits: float) -> None:
    """More bits, less error; and eight-bit entries are enough."""
    calibration = random_calibration()
    spans = [slice(0, 64)]
    errors = []
    for b in (bits, bits + 1):
        (block,) = transforms(calibration, spans, bits=b, entry_bits=8, tempering=0.0, floor=0.0)[0]
        x = calibration.samples[0].astype(np.int64) - integer_means(calibration, 0)
        errors.append(float(np.square(block.decode(block.encode(x)) - x).mean()))
    assert 2.0 < errors[0] / errors[1] < 5.0


def test_bits_of_fitted_codecs_are_on_budget() -> None:
    calibration = random_calibration()
    spans = [slice(8 * n, 8 * n + 8) for n in range(8)]
    found = transforms(calibration, spans, bits=3.1)
    assert sum(sum(block.widths) for layer in found for block in layer) == int(3.1 * 128)
    turned = rotations(calibration, spans, bits=4.1, scale_bits=8)
    assert sum(vector.stored_bits for layer in turned for vector in layer) == int(3.1 * 128) + 16 * 8
