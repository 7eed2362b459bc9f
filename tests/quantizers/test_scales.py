import numpy as np
import pytest

from quantizers.formats import parse_scalar_format, signed_formats
from quantizers.rounding import quantization_error
from quantizers.scales import largest_value_scale, positive, weight_scales

FORMATS = [fmt for bits in range(3, 9) for fmt in signed_formats(bits)]


def error_of(weights, fmt, scales):
    return quantization_error(weights, fmt, np.asarray(scales, np.float32)[:, None])[:, 0]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_no_scale_of_a_fine_grid_is_much_better(fmt):
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((3, 300)).astype(np.float32)
    weights[1] = rng.laplace(size=300)
    weights[2] = rng.standard_t(3, size=300)
    found = error_of(weights, fmt, weight_scales(weights, fmt, "mse"))
    largest = np.abs(weights).max(axis=1) / fmt.maximum
    grid = (largest[:, None] * np.exp2(np.linspace(-8, 2, 5001))).astype(np.float32)
    best = quantization_error(weights, fmt, grid).min(axis=1)
    # Minima are narrow where steps are many and values few; what is missed there is noise on noise.
    assert (found <= (1.01 if fmt.bits <= 5 else 1.25) * best).all()


@pytest.mark.parametrize("name", ["int4", "e2m1", "e4m3", "e3m0", "ternary"])
def test_weights_on_a_grid_are_kept(name):
    fmt = parse_scalar_format(name)
    values = fmt.values()
    values = values[np.isfinite(values) & (values >= -fmt.maximum)]
    weights = (np.float32(0.37) * values.astype(np.float32))[None, :]
    scales = weight_scales(weights, fmt, "mse")
    assert error_of(weights, fmt, scales)[0] <= 1e-13 * np.square(weights).sum()


def test_channels_are_independent():
    rng = np.random.default_rng(8)
    weights = (rng.standard_normal((5, 64)) * [[1], [1e-3], [7], [1e4], [0.1]]).astype(np.float32)
    fmt = parse_scalar_format("e2m1")
    together = weight_scales(weights, fmt, "mse")
    alone = np.concatenate([weight_scales(row[None, :], fmt, "mse") for row in weights])
    np.testing.assert_array_equal(together, alone)


def test_outliers_are_clipped_where_that_is_better():
    weights = np.random.default_rng(9).standard_normal((1, 10_000)).astype(np.float32)
    weights[0, 0] = 20.0
    fmt = parse_scalar_format("int4")
    clip = weight_scales(weights, fmt, "mse")[0] * fmt.maximum
    assert 2 < clip < 4
    assert weight_scales(weights, fmt, "max")[0] == np.float32(20 / 7)


def test_largest_weight_scale_maps_to_the_largest_value():
    weights = np.array([[0.5, -14.0], [0.25, 0.1]], np.float32)
    np.testing.assert_array_equal(
        weight_scales(weights, parse_scalar_format("int4"), "max"), np.array([2.0, 0.25 / 7], np.float32)
    )


def test_zero_channels_get_the_smallest_scale():
    weights = np.zeros((3, 4), np.float32)
    weights[0, 0], weights[2, 1] = 7.0, 14.0
    for criterion in ("mse", "max"):
        scales = weight_scales(weights, parse_scalar_format("int4"), criterion)
        assert scales[1] == min(scales[0], scales[2])


def test_only_zeros_give_one():
    for criterion in ("mse", "max"):
        scales = weight_scales(np.zeros((2, 4), np.float32), parse_scalar_format("e4m3"), criterion)
        np.testing.assert_array_equal(scales, np.ones(2, np.float32))


def test_subnormal_scales_are_raised():
    scales = positive(np.array([1e-42, 1e-3, 0.0], np.float32))
    np.testing.assert_array_equal(scales, np.float32(1e-3) * np.ones(3, np.float32))
    assert largest_value_scale(np.float32([1e-40]), parse_scalar_format("int8"))[0] == 1.0
