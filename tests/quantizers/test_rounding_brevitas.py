"""The kernel gives what Brevitas' own arithmetic gives, which is why it may replace it.

Three differences, each pinned by a test: ties of formats without mantissa bits, zeros that have no
sign in the format, and infinities.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.bit_width.float import ComputeMaxMantissa, StaticExponentBias
from brevitas.core.function_wrapper import FloatClamp, Identity, TensorClamp
from brevitas.core.quant import IntQuant
from brevitas.core.quant.float import FloatQuant
from brevitas.core.scaling import ConstScaling

from quantizers.formats import IntegerFormat, MinifloatFormat, ScalarFormat, parse_format, parse_scalar_format
from quantizers.rounding import round_scaled
from tests.quantizers.format_samples import INTEGERS, MINIFLOATS, assert_same, critical_points, random_floats

SCALE = 0.0137


def brevitas_round(x: np.ndarray, fmt: ScalarFormat, scale: float = SCALE) -> np.ndarray:
    tensor = torch.from_numpy(x)
    if isinstance(fmt, IntegerFormat):
        quant = IntQuant(narrow_range=False, signed=fmt.signed, input_view_impl=Identity())
        result = quant(torch.tensor(scale), torch.tensor(0.0), torch.tensor(float(fmt.bits)), tensor)
    else:
        assert isinstance(fmt, MinifloatFormat)
        result = FloatQuant(
            signed=fmt.signed,
            exponent_bit_width_impl=BitWidthConst(fmt.exponent_bits),
            mantissa_bit_width_impl=BitWidthConst(fmt.mantissa_bits),
            exponent_bias_impl=StaticExponentBias(fmt.exponent_bias),
            float_clamp_impl=FloatClamp(TensorClamp(), fmt.signed, max_available_float=fmt.maximum),
            input_view_impl=Identity(),
            compute_max_mantissa=ComputeMaxMantissa(),
            scaling_impl=ConstScaling(scale),
        )(tensor)[0]
    return np.asarray(result.numpy())


def finite_inputs(fmt: ScalarFormat, count: int) -> np.ndarray:
    """Numbers whose quotient by the scale is finite."""
    x = np.concatenate([critical_points(fmt, SCALE, dtype=np.float32, limit=2048), random_floats(count)])
    return x[np.abs(x) < 1e36]


def ours(x: np.ndarray, fmt: ScalarFormat) -> np.ndarray:
    return round_scaled(x, fmt, SCALE)


def ids(fmt: ScalarFormat) -> str:
    return fmt.name


@pytest.mark.parametrize("fmt", [f for f in MINIFLOATS if f.signed and f.mantissa_bits > 0], ids=ids)
def test_signed_minifloats_are_identical(fmt):
    x = finite_inputs(fmt, 2000)
    assert_same(ours(x, fmt), brevitas_round(x, fmt))


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e3m2", "e5m2", "e4m3fn", "e5m2ieee"])
def test_identical_on_a_million_floats(name):
    fmt = parse_scalar_format(name)
    x = finite_inputs(fmt, 1_000_000)
    assert_same(ours(x, fmt), brevitas_round(x, fmt))


@pytest.mark.parametrize(
    "fmt", [*INTEGERS, *(f for f in MINIFLOATS if not f.signed and f.mantissa_bits > 0)], ids=ids
)
def test_without_a_negative_zero_only_the_sign_of_zeros_differs(fmt):
    """Brevitas leaves -0 where a small negative number was rounded to 0; these formats have no -0."""
    x = finite_inputs(fmt, 2000)
    theirs = brevitas_round(x, fmt)
    assert_same(ours(x, fmt), theirs + np.float32(0))
    assert np.signbit(theirs[theirs == 0]).any()


@pytest.mark.parametrize("name", ["int8", "int4", "uint8", "ue3m2"])
def test_equal_on_a_million_floats(name):
    fmt = parse_scalar_format(name)
    x = finite_inputs(fmt, 1_000_000)
    assert_same(ours(x, fmt), brevitas_round(x, fmt) + np.float32(0))


@pytest.mark.parametrize("fmt", [f for f in MINIFLOATS if f.mantissa_bits == 0], ids=ids)
def test_without_mantissa_bits_only_ties_differ(fmt):
    """Brevitas looks for an even multiple of the step and always goes up from 1.5; the even code may
    be below (IEEE 754 rounds to the even code)."""
    x = finite_inputs(fmt, 2000)
    mine, theirs = ours(x, fmt), brevitas_round(x, fmt)
    quotient = np.abs(x / np.float32(SCALE))
    tie = np.frexp(quotient)[0] == 0.75
    assert (mine[~tie] == theirs[~tie]).all()
    assert (np.abs(mine[tie]) <= np.abs(theirs[tie])).all()


def test_a_tie_without_mantissa_bits():
    fmt = parse_format("e3m0")
    assert isinstance(fmt, MinifloatFormat)
    x = np.array([0.375, 0.75, 1.5, 3.0], np.float32)
    assert round_scaled(x, fmt).tolist() == [0.5, 0.5, 2.0, 2.0]
    assert brevitas_round(x, fmt, 1.0).tolist() == [0.5, 1.0, 2.0, 4.0]


def test_infinity_saturates_here_and_is_nan_there():
    x = np.array([np.inf, -np.inf], np.float32)
    assert round_scaled(x, parse_scalar_format("e2m1")).tolist() == [6, -6]
    assert np.isnan(brevitas_round(x, parse_scalar_format("e2m1"))).all()
