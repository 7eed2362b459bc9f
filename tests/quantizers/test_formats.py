"""The formats against ml_dtypes, gfloat, plain-Python evaluations of the standards, and themselves."""

from __future__ import annotations

import math

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
from gfloat.block import compute_scale_amax, quantize_block
from gfloat.types import Domain
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizers.errors import UsageError
from quantizers.formats import (
    BlockFormat,
    IntegerFormat,
    MinifloatFormat,
    Specials,
    common_formats,
    describe_format,
    minifloat_splits,
    parse_format,
    parse_scalar_format,
    signed_formats,
)
from tests.quantizers.format_samples import (
    INTEGERS,
    MINIFLOATS,
    SCALARS,
    assert_same,
    critical_points,
    random_floats,
)

ML_DTYPES = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2ieee": ml_dtypes.float8_e5m2,
    "e4m3ieee": ml_dtypes.float8_e4m3,
    "e3m4ieee": ml_dtypes.float8_e3m4,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
}
MX_ORACLES = {
    "mxfp8_e4m3": gfloat.formats.format_info_mxfp8_e4m3,
    "mxfp8_e5m2": gfloat.formats.format_info_mxfp8_e5m2,
    "mxfp6_e2m3": gfloat.formats.format_info_mxfp6_e2m3,
    "mxfp6_e3m2": gfloat.formats.format_info_mxfp6_e3m2,
    "mxfp4": gfloat.formats.format_info_mxfp4_e2m1,
    "mxint8": gfloat.formats.format_info_mxint8,
}


def named(formats: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fmt", formats, ids=lambda fmt: fmt.name)


def gfloat_info(fmt: MinifloatFormat) -> gfloat.FormatInfo:
    nans = {Specials.NONE: 0, Specials.FN: 1, Specials.IEEE: 2**fmt.mantissa_bits - 1}
    return gfloat.FormatInfo(
        fmt.name,
        fmt.bits,
        fmt.mantissa_bits + 1,
        bias=fmt.exponent_bias,
        is_signed=fmt.signed,
        domain=Domain.Extended if fmt.specials is Specials.IEEE else Domain.Finite,
        has_nz=fmt.signed,
        num_high_nans=nans[fmt.specials],
        has_subnormals=True,
        is_twos_complement=False,
    )


class TestNames:
    @named([*SCALARS, *common_formats()])
    def test_round_trip(self, fmt):
        assert parse_format(fmt.name) == fmt
        assert str(fmt) == fmt.name
        assert parse_format(fmt.name).name == fmt.name

    def test_names_are_unique(self):
        assert len({fmt.name for fmt in SCALARS}) == len(SCALARS)

    @pytest.mark.parametrize(
        ("fmt", "name"),
        [
            (IntegerFormat(8), "int8"),
            (IntegerFormat(4, signed=False), "uint4"),
            (IntegerFormat(4, narrow=True), "int4n"),
            (MinifloatFormat(4, 3), "e4m3"),
            (MinifloatFormat(4, 3, 7), "e4m3"),
            (MinifloatFormat(4, 3, 11), "e4m3b11"),
            (MinifloatFormat(4, 3, -2), "e4m3b-2"),
            (MinifloatFormat(3, 2, signed=False), "ue3m2"),
            (MinifloatFormat(5, 2, specials=Specials.IEEE), "e5m2ieee"),
            (MinifloatFormat(4, 3, 8, False, Specials.FN), "ue4m3b8fn"),
        ],
    )
    def test_canonical_name(self, fmt, name):
        assert fmt.name == name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("int1", "no format 'int1': int formats have 2 to 16 bits, not 1"),
            ("int17", "no format 'int17': int formats have 2 to 16 bits, not 17"),
            ("uint0", "no format 'uint0': uint formats have 1 to 16 bits, not 0"),
            (
                "uint4n",
                "no format 'uint4n': an unsigned integer has no negative code to leave out; "
                "narrow range is for signed ones",
            ),
            ("e0m3", "no format 'e0m3': minifloats have 1 to 5 exponent bits, not 0"),
            ("e6m1", "no format 'e6m1': minifloats have 1 to 5 exponent bits, not 6"),
            ("e4m8", "no format 'e4m8': minifloats have 0 to 7 mantissa bits, not 8"),
            ("e4m3b32", "no format 'e4m3b32': the exponent bias must lie in -31..31, not 32"),
            ("e4m3b-32", "no format 'e4m3b-32': the exponent bias must lie in -31..31, not -32"),
            (
                "e1m0fn",
                "no format 'e1m0fn': e1m0fn has no finite value but zero: its special codes take the rest",
            ),
        ],
    )
    def test_parameters_out_of_range(self, name, message):
        with pytest.raises(UsageError) as error:
            parse_format(name)
        assert str(error.value) == message
        assert error.value.given == name
        assert error.value.expected

    @pytest.mark.parametrize(
        "name", ["", "e4", "e4m3x", "E4M3", "int", " int8", "int8 ", "mxfp5", "float16", "e10m1"]
    )
    def test_unknown_name(self, name):
        with pytest.raises(UsageError, match=r"^unknown number format ") as error:
            parse_format(name)
        choices = [fmt.name for fmt in common_formats()]
        assert str(error.value).endswith(f"; expected one of: {', '.join(choices)}")
        assert sorted(error.value.expected) == sorted(choices)

    def test_unknown_name_suggests_the_nearest(self):
        with pytest.raises(
            UsageError, match=r"^unknown number format 'mxfp8_e4m' \(did you mean 'mxfp8_e4m3'\?\)"
        ) as error:
            parse_format("mxfp8_e4m")
        assert error.value.expected[0] == "mxfp8_e4m3"

    def test_scalar_needed(self):
        assert parse_scalar_format("e2m1") == MinifloatFormat(2, 1)
        with pytest.raises(UsageError) as error:
            parse_scalar_format("mxfp4")
        assert str(error.value) == (
            "'mxfp4' shares scales between elements; a scalar format is needed here, such as 'e4m3'"
        )


class TestLists:
    def test_splits(self):
        assert [f.name for f in minifloat_splits(4)] == ["e1m2", "e2m1", "e3m0"]
        assert [f.name for f in minifloat_splits(8)] == ["e1m6", "e2m5", "e3m4", "e4m3", "e5m2"]
        assert [f.name for f in signed_formats(3)] == ["int3", "e1m1", "e2m0"]

    def test_splits_have_the_bits_asked_for(self):
        for bits in range(2, 9):
            assert {fmt.bits for fmt in signed_formats(bits)} == {bits}

    @pytest.mark.parametrize(
        ("name", "bits", "family"),
        [
            ("int8", 8, "integer"),
            ("uint4", 4, "integer"),
            ("e4m3", 8, "minifloat"),
            ("ue3m2", 5, "minifloat"),
            ("ternary", 2, "ternary"),
            ("mxfp4", 4.25, "mx"),
            ("mxfp6_e3m2", 6.25, "mx"),
            ("mxint8", 8.25, "mx"),
        ],
    )
    def test_bits_and_family(self, name, bits, family):
        assert parse_format(name).bits_per_value == bits
        assert parse_format(name).family == family


class TestValues:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("int3", [0, 1, 2, 3, -4, -3, -2, -1]),
            ("uint2", [0, 1, 2, 3]),
            ("int3n", [0, 1, 2, 3, np.nan, -3, -2, -1]),
            ("ternary", [0, 1, np.nan, -1]),
            ("ue2m1", [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
            ("e2m0", [0, 1, 2, 4, -0.0, -1, -2, -4]),
            ("ue2m1ieee", [0, 0.5, 1, 1.5, 2, 3, np.inf, np.nan]),
            ("ue2m1fn", [0, 0.5, 1, 1.5, 2, 3, 4, np.nan]),
            ("ue2m1b3", [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1.5]),
        ],
    )
    def test_table(self, name, values):
        assert_same(parse_scalar_format(name).values(), np.array(values, np.float64))

    @pytest.mark.parametrize(
        ("name", "maximum", "minimum"),
        [
            ("e4m3", 480, -480),
            ("e4m3fn", 448, -448),
            ("e5m2ieee", 57344, -57344),
            ("e5m2", 114688, -114688),
            ("int8", 127, -128),
            ("uint8", 255, 0),
            ("ue4m3", 480, 0),
            ("ternary", 1, -1),
        ],
    )
    def test_range(self, name, maximum, minimum):
        fmt = parse_scalar_format(name)
        assert (fmt.maximum, fmt.minimum) == (maximum, minimum)

    @pytest.mark.parametrize("name", ML_DTYPES)
    def test_ml_dtypes(self, name):
        fmt = parse_scalar_format(name)
        codes = np.arange(1 << fmt.bits, dtype=np.uint8)
        assert_same(fmt.values(), codes.view(ML_DTYPES[name]).astype(np.float64))

    @pytest.mark.parametrize(("name", "dtype"), [("int4", ml_dtypes.int4), ("int2", ml_dtypes.int2)])
    def test_ml_dtypes_integers(self, name, dtype):
        fmt = parse_scalar_format(name)
        codes = np.arange(1 << fmt.bits, dtype=np.uint8)
        assert_same(fmt.values(), codes.view(dtype).astype(np.float64))

    @named(MINIFLOATS)
    def test_gfloat(self, fmt):
        codes = np.arange(1 << fmt.bits)
        assert_same(fmt.decode(codes), gfloat.decode_ndarray(gfloat_info(fmt), codes))

    @pytest.mark.parametrize("m", range(8))
    def test_one_exponent_bit_is_a_sign_magnitude_integer(self, m):
        fmt = MinifloatFormat(1, m)
        step = 2.0 ** (1 - m)
        magnitudes = np.arange(2 ** (m + 1)) * step
        assert_same(fmt.values(), np.concatenate([magnitudes, -magnitudes]))

    @named(SCALARS)
    def test_fixed_point_counts_the_smallest_step(self, fmt):
        codes = np.flatnonzero(np.isfinite(fmt.values()))
        counts = fmt.fixed_point(codes)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts * 2.0**fmt.grid.lsb_exponent, fmt.decode(codes))
        assert (counts % 2 == 1).any()  # a larger step would not do

    def test_fixed_point_needs_numbers(self):
        with pytest.raises(UsageError) as error:
            parse_scalar_format("e4m3fn").fixed_point([0, 127])
        assert str(error.value) == (
            "e4m3fn has codes that are not finite numbers; they have no fixed-point value"
        )


class TestRound:
    @pytest.mark.parametrize("name", ML_DTYPES)
    def test_a_million_floats_against_ml_dtypes(self, name):
        """ml_dtypes saturates where the format has no special codes and does not where it has."""
        fmt = parse_scalar_format(name)
        x = random_floats(1_000_000)
        with np.errstate(all="ignore"):
            expected = x.astype(ML_DTYPES[name]).astype(np.float32)
        assert_same(fmt.round(x, saturate=False), expected)

    @pytest.mark.parametrize("name", ML_DTYPES)
    def test_critical_points_against_ml_dtypes(self, name):
        fmt = parse_scalar_format(name)
        x = critical_points(fmt, dtype=np.float32)
        with np.errstate(all="ignore"):
            expected = x.astype(ML_DTYPES[name]).astype(np.float32)
        numbers = ~np.isnan(x)  # formats without a code for NaN: ml_dtypes makes it -0, here it stays
        assert_same(fmt.round(x, saturate=False)[numbers], expected[numbers])
        assert np.isnan(fmt.round(x)[~numbers]).all()

    @named([fmt for fmt in MINIFLOATS if not (fmt.specials is Specials.IEEE and fmt.exponent_bits == 1)])
    def test_saturating_against_gfloat(self, fmt):
        """Without e1m?ieee: gfloat's ``FormatInfo.max`` takes the lone subnormal binade for a normal
        one there and saturates to twice the value, which has the code of a NaN."""
        x = self.inputs(fmt)
        with np.errstate(all="ignore"):
            assert_same(fmt.round(x), gfloat.round_ndarray(gfloat_info(fmt), x, sat=True))

    @named([fmt for fmt in MINIFLOATS if fmt.specials is not Specials.NONE])
    def test_not_saturating_against_gfloat(self, fmt):
        x = self.inputs(fmt)
        with np.errstate(all="ignore"):
            assert_same(fmt.round(x, saturate=False), gfloat.round_ndarray(gfloat_info(fmt), x, sat=False))

    @staticmethod
    def inputs(fmt: MinifloatFormat) -> np.ndarray:
        x = np.concatenate([critical_points(fmt), random_floats(2000).astype(np.float64)])
        # gfloat leaves the rounding of negative numbers to an unsigned format open.
        return x if fmt.signed else x[~(x < 0) & ~np.signbit(x)]

    @pytest.mark.parametrize("name", ["e3m4", "ue3m2", "e3m0", "e4m0", "e2m5b4", "e5m2fn"])
    def test_a_million_floats_against_gfloat(self, name):
        fmt = parse_format(name)
        assert isinstance(fmt, MinifloatFormat)
        x = random_floats(1_000_000).astype(np.float64)
        x = x if fmt.signed else np.abs(x)
        assert_same(fmt.round(x), gfloat.round_ndarray(gfloat_info(fmt), x, sat=True))

    @named(INTEGERS)
    def test_integers(self, fmt):
        low, high = int(fmt.minimum), int(fmt.maximum)
        k = np.unique(np.linspace(low - 2, high + 2, 4001).astype(np.int64)).astype(np.float64)
        x = np.concatenate([k, k + 0.5, np.nextafter(k + 0.5, -np.inf), np.nextafter(k + 0.5, np.inf)])
        expected = np.array([float(min(max(round(v), low), high)) for v in x.tolist()])
        assert_same(fmt.round(x), expected)
        assert_same(fmt.round([np.inf, -np.inf, np.nan, -0.0]), np.array([high, low, np.nan, 0.0]))

    def test_integers_of_the_full_range(self):
        assert_same(
            parse_format("int4").round([-8.5, -8, -0.5, 0.5, 1.5, 2.5, 7.5]),
            np.array([-8.0, -8, 0, 0, 2, 2, 7]),
        )

    def test_ternary(self):
        x = [-np.inf, -7, -0.500001, -0.5, -0.0, 0.5, 0.50001, 1.5, np.inf, np.nan]
        expected = [-1.0, -1, -1, 0, 0, 0, 1, 1, 1, np.nan]
        assert_same(parse_format("ternary").round(x), np.array(expected))

    @named([fmt for fmt in SCALARS if not fmt.signed])
    def test_unsigned_formats_clip_negative_numbers_to_zero(self, fmt):
        x = np.array([-1e-45, -0.0, -0.3, -1.0, -1e30, -np.inf])
        for saturate in (True, False):
            assert_same(fmt.round(x, saturate=saturate), np.zeros(6))

    @pytest.mark.parametrize(
        ("name", "x", "saturated", "converted"),
        [
            ("e4m3fn", 464.0, 448.0, 448.0),  # the tie with the NaN code goes to the even code
            ("e4m3fn", 465.0, 448.0, np.nan),
            ("e4m3fn", -np.inf, -448.0, np.nan),
            ("e5m2ieee", 61439.0, 57344.0, 57344.0),
            ("e5m2ieee", 61440.0, 57344.0, np.inf),
            ("e5m2ieee", -np.inf, -57344.0, -np.inf),
            ("e4m3", 1e9, 480.0, 480.0),
            ("e4m3", -np.inf, -480.0, -480.0),
        ],
    )
    def test_overflow(self, name, x, saturated, converted):
        fmt = parse_format(name)
        assert_same(fmt.round([x]), np.array([saturated]))
        assert_same(fmt.round([x], saturate=False), np.array([converted]))

    @pytest.mark.parametrize(
        ("name", "ties", "expected"),
        # Codes of ue2m0: 0 -> 0, 1 -> 1, 2 -> 2, 3 -> 4; a tie goes to code 0 or 2. One more bias
        # moves every value down a binade and changes nothing else.
        [("ue2m0", [0.5, 1.5, 3], [0, 2, 2]), ("ue2m0b2", [0.25, 0.75, 1.5], [0, 1, 1])],
    )
    def test_ties_of_powers_of_two_go_to_the_even_code(self, name, ties, expected):
        assert_same(parse_format(name).round(ties), np.array(expected, np.float64))

    @pytest.mark.parametrize(
        ("dtype", "result"), [(np.float32, np.float32), (np.float64, np.float64), (np.float16, np.float64)]
    )
    def test_dtype(self, dtype, result):
        assert parse_format("e2m1").round(np.ones(2, dtype)).dtype == result
        assert parse_format("mxfp4").round(np.ones(2, dtype)).dtype == result

    def test_shape_is_kept(self):
        assert parse_format("e2m1").round(np.ones((2, 0, 3))).shape == (2, 0, 3)
        assert parse_format("e2m1").round(1.2).shape == ()


class TestCodes:
    @named(SCALARS)
    def test_encode_inverts_decode(self, fmt):
        codes = np.arange(1 << fmt.bits)
        values = fmt.decode(codes)
        numbers = ~np.isnan(values)
        np.testing.assert_array_equal(fmt.encode(values[numbers], saturate=False), codes[numbers])

    @named(SCALARS)
    def test_decode_of_encode_is_round(self, fmt):
        x = critical_points(fmt)
        x = x[~np.isnan(x)]
        assert_same(fmt.decode(fmt.encode(x)), fmt.round(x))

    @named([fmt for fmt in MINIFLOATS if fmt.has_nan])
    def test_nan_has_a_code(self, fmt):
        codes = fmt.encode(np.array([np.nan]))
        assert np.isnan(fmt.decode(codes)).all()

    @pytest.mark.parametrize(("name", "code"), [("e4m3fn", 127), ("e5m2ieee", 126)])
    def test_nan_code_is_that_of_ml_dtypes(self, name, code):
        assert parse_scalar_format(name).encode([np.nan])[0] == code
        assert int(np.array([np.nan]).astype(ML_DTYPES[name]).view(np.uint8)[0]) == code

    @pytest.mark.parametrize("name", ["int8", "ternary", "e4m3", "ue3m2", "e3m0ieee"])
    def test_nan_without_a_code(self, name):
        with pytest.raises(UsageError) as error:
            parse_scalar_format(name).encode([1.0, np.nan])
        assert str(error.value) == f"{name} has no code for NaN"

    def test_codes_must_be_integers(self):
        with pytest.raises(UsageError) as error:
            parse_scalar_format("e2m1").decode([0.0, 1.0])
        assert str(error.value) == "codes of e2m1 must be integers, not float64"

    @pytest.mark.parametrize(("codes", "worst"), [([3, 16], 16), ([-1, 3], -1)])
    def test_codes_out_of_range(self, codes, worst):
        with pytest.raises(UsageError) as error:
            parse_scalar_format("e2m1").decode(codes)
        assert str(error.value) == f"code {worst} is outside e2m1: expected 0 to 15"

    @pytest.mark.parametrize("name", ML_DTYPES)
    def test_codes_of_ml_dtypes(self, name):
        fmt = parse_scalar_format(name)
        x = critical_points(fmt, dtype=np.float32)
        x = x[~np.isnan(x)]
        with np.errstate(all="ignore"):
            expected = x.astype(ML_DTYPES[name]).view(np.uint8)
        actual = fmt.encode(x, saturate=False)
        numbers = ~np.isnan(fmt.decode(actual))  # ml_dtypes gives NaN the sign of the input
        np.testing.assert_array_equal(actual[numbers], expected[numbers])


class TestUnsignedCounterpart:
    @pytest.mark.parametrize(
        ("name", "counterpart"),
        [
            ("int8", "uint8"),
            ("uint4", "uint4"),
            ("ternary", "uint2"),
            ("e4m3", "ue4m4"),
            ("e1m6", "ue1m7"),
            ("ue3m2", "ue3m2"),
            ("e4m3b11", "ue4m4b11"),
            ("e4m3fn", "ue4m4fn"),
            ("e5m2ieee", "ue5m3ieee"),
        ],
    )
    def test_name(self, name, counterpart):
        assert parse_scalar_format(name).unsigned_counterpart == parse_format(counterpart)

    @named([fmt for bits in range(3, 9) for fmt in signed_formats(bits)])
    def test_same_bits_and_every_non_negative_value(self, fmt):
        unsigned = fmt.unsigned_counterpart
        assert unsigned.bits == fmt.bits
        values = fmt.values()
        assert set(values[values >= 0]) <= set(unsigned.values())


def mx_block_by_definition(fmt: BlockFormat, block: list[float]) -> list[float]:
    """OCP MX v1.0, section 6.3, one block, number by number, searching the element's value table."""
    if any(math.isnan(v) for v in block):
        return [math.nan] * len(block)
    element_scale = 2.0**fmt.element_exponent
    table = {c: v * element_scale for c, v in enumerate(fmt.element.values().tolist()) if math.isfinite(v)}
    largest = max(abs(v) for v in block)
    element_max = max(table.values())
    exponent = -127
    if largest > 0:
        exponent = math.floor(math.log2(largest)) - math.floor(math.log2(element_max))
    scale = 2.0 ** min(max(exponent, -127), 127)
    result = []
    for v in block:
        # The nearest value; of two equally near the one with the even code.
        code = min(table, key=lambda c, v=v: (abs(table[c] - v / scale), c & 1))
        result.append(table[code] * scale)
    return result


class TestBlocks:
    @staticmethod
    def blocks(fmt: BlockFormat) -> np.ndarray:
        """Blocks of many magnitudes, some with zeros, with ties, with equal elements."""
        rng = np.random.default_rng(3)
        x = rng.standard_normal((60, 32)) * np.exp2(rng.integers(-60, 60, (60, 1)))
        x[:20] *= np.exp2(rng.integers(-8, 1, (20, 32)))
        x[20] = 0.0
        x[21, 5:] = 0.0
        x[22] = 1.0
        x[23] = np.arange(32) / 4
        x[24] = -np.arange(32) * 2.0**-130
        return x

    @pytest.mark.parametrize("name", MX_ORACLES)
    def test_against_the_standard(self, name):
        fmt = parse_format(name)
        x = self.blocks(fmt)
        expected = np.array([mx_block_by_definition(fmt, row) for row in x.tolist()])
        np.testing.assert_array_equal(fmt.round(x), expected)

    @pytest.mark.parametrize("name", MX_ORACLES)
    def test_against_gfloat(self, name):
        fmt = parse_format(name)
        x = self.blocks(fmt)
        expected = np.array([quantize_block(MX_ORACLES[name], row, compute_scale_amax) for row in x])
        np.testing.assert_array_equal(fmt.round(x), expected)

    @pytest.mark.parametrize("name", MX_ORACLES)
    def test_scales_and_codes_are_what_the_oracles_decode(self, name):
        """Scales by ml_dtypes' E8M0, elements by gfloat, their product is what round gives."""
        fmt = parse_format(name)
        assert isinstance(fmt, BlockFormat)
        x = self.blocks(fmt)
        scales, codes = fmt.encode(x)
        assert scales.shape == (60, 1)
        assert codes.shape == x.shape
        factors = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
        elements = gfloat.decode_ndarray(MX_ORACLES[name].etype, codes)
        np.testing.assert_array_equal(factors * elements, fmt.round(x))
        np.testing.assert_array_equal(fmt.decode(scales, codes), fmt.round(x))

    def test_scale_codes(self):
        fmt = parse_format("mxfp4")
        assert isinstance(fmt, BlockFormat)
        # e2m1 reaches 6, exponent 2: a block of ones has scale 2**-2 and elements 4, code 6.
        scales, codes = fmt.encode(np.ones(40))
        assert scales.tolist() == [125, 125]
        assert codes.tolist() == [6] * 40

    def test_nan_makes_its_block_nan(self):
        x = np.ones(70)
        x[33] = np.nan
        for name in MX_ORACLES:
            fmt = parse_format(name)
            assert isinstance(fmt, BlockFormat)
            assert np.isnan(fmt.round(x)).tolist() == [False] * 32 + [True] * 32 + [False] * 6
            scales, codes = fmt.encode(x)
            assert scales[1] == 255
            assert np.isnan(fmt.decode(scales, codes)).tolist() == [False] * 32 + [True] * 32 + [False] * 6

    @pytest.mark.parametrize("name", MX_ORACLES)
    def test_short_last_block(self, name):
        fmt = parse_format(name)
        x = np.random.default_rng(5).standard_normal((3, 45))
        np.testing.assert_array_equal(fmt.round(x)[:, :32], fmt.round(x[:, :32]))
        np.testing.assert_array_equal(fmt.round(x)[:, 32:], fmt.round(x[:, 32:]))

    def test_a_scalar_has_no_blocks(self):
        with pytest.raises(UsageError) as error:
            parse_format("mxfp4").round(1.0)
        assert str(error.value) == "mxfp4 works on blocks along the last axis; a scalar has none"

    def test_scales_of_the_wrong_shape(self):
        fmt = parse_format("mxfp4")
        assert isinstance(fmt, BlockFormat)
        with pytest.raises(UsageError) as error:
            fmt.decode(np.array([127, 127, 127]), np.zeros(64, np.int64))
        assert str(error.value) == "mxfp4 needs scales of shape (2,) for codes of this shape, not (3,)"


FORMATS = st.sampled_from(SCALARS)
NUMBERS = st.floats(-600, 600) | st.floats(-4, 4) | st.floats(allow_nan=False)
checked = settings(derandomize=True, deadline=None, max_examples=300, database=None)


class TestDescription:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("ternary", [0.0, 1.0, "unused", -1.0]),
            ("int3n", [0.0, 1.0, 2.0, 3.0, "unused", -3.0, -2.0, -1.0]),
            ("int2", [0.0, 1.0, -2.0, -1.0]),
        ],
    )
    def test_values_by_code(self, name, values):
        assert describe_format(parse_format(name), table=True)["values"] == values

    def test_codes_of_a_minifloat_that_are_no_numbers(self):
        values = describe_format(parse_format("e5m2ieee"), table=True)["values"]
        assert values[0x7B:0x80] == [57344.0, "inf", "nan", "nan", "nan"]
        assert values[0xFB:] == [-57344.0, "-inf", "nan", "nan", "nan"]

    def test_mxint8_has_an_implicit_scale(self):
        assert describe_format(parse_format("mxint8")) == {
            "name": "mxint8",
            "family": "mx",
            "bits": 8.25,
            "element": "int8",
            "block_size": 32,
            "implicit_scale": "2**-6 (OCP MX v1.0)",
            "signed": True,
            "minimum": -128.0,
            "maximum": 127.0,
            "smallest_step": 1.0,
        }
        assert "implicit_scale" not in describe_format(parse_format("mxfp4"))


class TestProperties:
    @checked
    @given(FORMATS, NUMBERS)
    def test_idempotent(self, fmt, x):
        once = fmt.round([x])
        assert_same(fmt.round(once), once)

    @checked
    @given(FORMATS, NUMBERS, NUMBERS)
    def test_monotone(self, fmt, x, y):
        low, high = fmt.round(sorted([x, y]))
        assert low <= high

    @checked
    @given(st.sampled_from([fmt for fmt in MINIFLOATS if fmt.signed]), NUMBERS)
    def test_odd(self, fmt, x):
        assert_same(fmt.round([-x]), -fmt.round([x]))

    @checked
    @given(FORMATS, NUMBERS)
    def test_rounds_to_a_value_and_no_value_is_nearer(self, fmt, x):
        rounded = float(fmt.round([x])[0])
        values = fmt.values()
        finite = values[np.isfinite(values)]
        assert rounded in finite
        if math.isfinite(x):
            assert abs(rounded - x) == np.min(np.abs(finite - x))

    @checked
    @given(st.sampled_from([f for f in common_formats() if isinstance(f, BlockFormat)]), st.integers(1, 70))
    def test_blocks_are_idempotent(self, fmt, length):
        once = fmt.round(np.random.default_rng(length).standard_normal(length))
        np.testing.assert_array_equal(fmt.round(once), once)
