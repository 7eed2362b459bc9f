import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.formats import parse_format, parse_scalar_format, signed_formats
from quantizers.rounding import quantization_error
from quantizers.scales import (
    grouped_order,
    largest_value_scale,
    positive,
    scales_of_weights,
    weight_scales,
)

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


class TestPowersOfTwo:
    @pytest.mark.parametrize("fmt", FORMATS, ids=str)
    def test_are_the_best_of_all(self, fmt):
        rng = np.random.default_rng(10)
        weights = np.stack([rng.standard_normal(200), rng.laplace(size=200) * 1e-3]).astype(np.float32)
        powers = np.tile(np.ldexp(np.float32(1), np.arange(-40, 10)), (2, 1))
        errors = quantization_error(weights, fmt, powers)
        best = powers[[0, 1], errors.argmin(axis=1)]
        np.testing.assert_array_equal(weight_scales(weights, fmt, "mse_power_of_two"), best)

    def test_by_hand(self):
        # 6 and 0.5 are values of e2m1 at scale 1; of 3 and 0.25 those at 1/2.
        weights = np.array([[6.0, 0.5], [3.0, 0.25], [0.0, 0.0]], np.float32)
        scales = weight_scales(weights, parse_scalar_format("e2m1"), "mse_power_of_two")
        assert scales.tolist() == [1.0, 0.5, 0.5]

    def test_are_exponent_biases(self):
        """A minifloat of another bias is the same format at another power of two."""
        weights = np.random.default_rng(11).standard_normal((1, 100)).astype(np.float32)
        (scale,) = weight_scales(weights, parse_scalar_format("e3m2"), "mse_power_of_two")
        bias = 3 - int(np.log2(scale))
        shifted = parse_scalar_format(f"e3m2b{bias}")
        np.testing.assert_array_equal(
            parse_scalar_format("e3m2").round(weights / scale) * scale, shifted.round(weights)
        )


class TestGroups:
    @pytest.mark.parametrize("criterion", ["mse", "max", "mse_power_of_two", "mean"])
    @pytest.mark.parametrize("features", [64, 70, 20])
    def test_are_channels_of_their_own(self, criterion, features):
        weights = np.random.default_rng(12).standard_normal((3, features)).astype(np.float32)
        fmt = parse_scalar_format("int4")
        found = weight_scales(weights, fmt, criterion, 32)
        assert found.shape == (3, -(-features // 32))
        for group in range(found.shape[1]):
            part = weights[:, 32 * group : 32 * (group + 1)]
            if criterion == "mse" and part.shape[1] < 32:  # the search looks closer at fewer values
                errors = [error_of(part, fmt, s) for s in (found[:, group], weight_scales(part, fmt, "mse"))]
                assert (errors[0] <= 1.05 * errors[1]).all()
            else:
                np.testing.assert_array_equal(found[:, group], weight_scales(part, fmt, criterion))

    def test_one_group_is_the_channel(self):
        weights = np.random.default_rng(13).standard_normal((4, 48)).astype(np.float32)
        fmt = parse_scalar_format("e2m1")
        np.testing.assert_array_equal(
            weight_scales(weights, fmt, "mse", 48)[:, 0], weight_scales(weights, fmt, "mse")
        )

    def test_mean_of_the_magnitudes(self):
        weights = np.array([[1.0, -3.0, 0.5, 0.5, 7.0], [0.0] * 5], np.float32)
        scales = weight_scales(weights, parse_scalar_format("ternary"), "mean", 2)
        # The last group has one value; groups of zeros get the smallest scale there is.
        assert scales.tolist() == [[2.0, 0.5, 7.0], [0.5, 0.5, 0.5]]

    def test_input_channels_run_fastest(self):
        weight = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
        # Flat: 4 * channel + place. Ordered: the three channels of place 0, then those of place 1, ...
        order = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
        assert grouped_order(weight).tolist() == [order, [12 + i for i in order]]
        assert grouped_order(weight.reshape(2, 12)).tolist() == weight.reshape(2, 12).tolist()

    @pytest.mark.parametrize(("shape", "group"), [((2, 3, 2, 2), 5), ((4, 7), 3), ((6, 1, 3, 3), 4)])
    def test_every_weight_finds_the_scale_of_its_group(self, shape, group):
        features = int(np.prod(shape[1:]))
        scales = np.arange(shape[0] * -(-features // group), dtype=np.float32).reshape(shape[0], -1)
        ordered = grouped_order(scales_of_weights(scales, group, shape))
        expected = [[row[i // group] for i in range(features)] for row in scales]
        assert ordered.tolist() == expected


class TestBlocks:
    @pytest.mark.parametrize(
        "name", ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8"]
    )
    def test_weights_are_rounded_as_by_the_format(self, name):
        rng = np.random.default_rng(14)
        weights = (rng.standard_normal((3, 77)) * np.exp2(rng.uniform(-20, 20, (3, 77)))).astype(np.float32)
        weights[1, 32:64] = 0.0
        fmt = parse_format(name)
        scales = weight_scales(weights, fmt, "mse")
        assert scales.shape == (3, 3)
        spread = scales_of_weights(scales, 32, weights.shape)
        np.testing.assert_array_equal(fmt.element.round(weights / spread) * spread, fmt.round(weights))

    def test_a_format_without_a_rule(self):
        with pytest.raises(UsageError) as error:
            weight_scales(np.ones((1, 1), np.float32), None, "mse")
        assert str(error.value) == "there is no rule for the scales of None"
