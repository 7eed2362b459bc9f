from fractions import Fraction

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.uniform import UniformGroups, bits_per_element, dequantize, quantize


def by_definition(x: list[int], bits: int) -> tuple[list[int], int, int]:
    """In rational numbers; Python's `round` takes ties to even."""
    low, span = min(x), max(x) - min(x)
    return [round(Fraction((e - low) * (2**bits - 1), span)) if span else 0 for e in x], low, span


def back_by_definition(codes: list[int], low: int, span: int, bits: int) -> list[int]:
    return [low + round(Fraction(code * span, 2**bits - 1)) for code in codes]


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_offset_of_every_small_span(bits: int) -> None:
    for span in range(130):
        x = list(range(-7, span - 6))
        codes, minimum, found = quantize(x, bits)
        assert (codes.tolist(), int(minimum), int(found)) == by_definition(x, bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_random_groups_and_the_largest_spans(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for spread in (1, 40, 3000, 32768):
        x = rng.integers(-spread, spread, (20, 3, 16)).astype(np.int16)
        x[0, 0, :3] = -32768, 32767, 0
        x[1, 2] = -32768
        groups = quantize(x, bits)
        decoded = dequantize(groups, bits)
        assert [a.dtype for a in (*groups, decoded)] == [np.uint8, np.int16, np.uint16, np.int16]
        assert decoded.shape == x.shape
        assert groups.minimum.shape == groups.span.shape == (20, 3)
        for place in np.ndindex(20, 3):
            codes, low, span = by_definition(x[place].tolist(), bits)
            assert (groups.codes[place].tolist(), groups.minimum[place], groups.span[place]) == (
                codes,
                low,
                span,
            )
            assert decoded[place].tolist() == back_by_definition(codes, low, span, bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_ties_of_wide_spans(bits: int) -> None:
    """Spans of 2 * (2**bits - 1) * k have a tie between every two codes."""
    steps = 2**bits - 1
    for k in (1, 7, 65535 // (2 * steps)):
        x = [-32768, -32768 + 2 * steps * k] + [-32768 + k * odd for odd in range(1, 2 * steps, 2)]
        codes = quantize(x, bits).codes.tolist()
        assert codes == by_definition(x, bits)[0]
        assert codes[2:] == [(odd + 1) // 2 // 2 * 2 for odd in range(1, 2 * steps, 2)]


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_of_every_span(bits: int) -> None:
    """Against integer arithmetic: there are no ties to decode."""
    steps = 2**bits - 1
    spans = np.arange(65536)
    codes = np.tile(np.arange(steps + 1, dtype=np.uint8), (65536, 1))
    minimum = np.full(65536, -32768, np.int16)
    decoded = dequantize(UniformGroups(codes, minimum, spans.astype(np.uint16)), bits)
    expected = -32768 + (2 * np.arange(steps + 1) * spans[:, None] + steps) // (2 * steps)
    np.testing.assert_array_equal(decoded, expected)


def test_ends_are_kept_and_equal_elements_have_code_0() -> None:
    assert quantize([5, 5, 5], 3) == (pytest.approx([0, 0, 0]), 5, 0)
    for bits in range(2, 9):
        x = np.array([-32768, 32767, 17], np.int16)
        assert dequantize(quantize(x, bits), bits)[:2].tolist() == [-32768, 32767]
        assert dequantize(quantize([9, 9], bits), bits).tolist() == [9, 9]


def test_bits_per_element() -> None:
    assert bits_per_element(4, 32) == 5
    assert bits_per_element(4, 128) == 4.25


def test_no_groups() -> None:
    assert dequantize(quantize(np.zeros((0, 4), np.int16), 4), 4).shape == (0, 4)


GROUPS = UniformGroups(np.zeros((2, 4), np.uint8), np.zeros(2, np.int16), np.zeros(2, np.uint16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize([1, 2], 1), "bits must be an integer from 2 to 8, not 1"),
        (lambda: quantize([1, 2], 9), "bits must be an integer from 2 to 8, not 9"),
        (lambda: quantize([1, 2], True), "bits must be an integer from 2 to 8, not True"),
        (lambda: quantize([1.0, 2.0], 4), "x must be integers, not float64"),
        (lambda: quantize([1, 32768], 4), "x must be from -32768 to 32767; one is 32768"),
        (lambda: quantize([-32769, 1], 4), "x must be from -32768 to 32767; one is -32769"),
        (
            lambda: quantize(np.zeros((3, 0), np.int16), 4),
            "x must be of shape (..., g) with groups of at least one element, not (3, 0)",
        ),
        (lambda: quantize(3, 4), "x must be of shape (..., g) with groups of at least one element, not ()"),
        (lambda: dequantize(GROUPS, 0), "bits must be an integer from 2 to 8, not 0"),
        (
            lambda: dequantize(GROUPS._replace(codes=np.full((2, 4), 4, np.uint8)), 2),
            "codes must be from 0 to 3; one is 4",
        ),
        (
            lambda: dequantize(GROUPS._replace(span=np.zeros(3, np.uint16)), 2),
            "codes, minimum and span must be of shapes (..., g), (...) and (...), not (2, 4), (2,) and (3,)",
        ),
        (
            lambda: dequantize(GROUPS._replace(minimum=np.array([40000, 0])), 2),
            "minimum must be from -32768 to 32767; one is 40000",
        ),
        (
            lambda: dequantize(GROUPS._replace(span=np.array([70000, 0])), 2),
            "span must be from 0 to 65535; one is 70000",
        ),
        (
            lambda: dequantize(GROUPS._replace(span=np.array([32768, 0])), 2),
            "minimum + span must be at most 32767; one is 32768",
        ),
    ],
)
def test_wrong_arguments(call, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message
