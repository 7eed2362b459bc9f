import numpy as np
import pytest
import torch
from torch import nn

from quantizers.calibration import TensorStatistics, collect_statistics
from quantizers.formats import parse_scalar_format
from quantizers.rounding import quantization_error


class Net(nn.Module):
    """The layer sees ``scale * x``, as often as there are scales."""

    def __init__(self, scales=(1.0,)):
        super().__init__()
        self.layer = nn.Identity()
        self.scales = scales

    def forward(self, x):
        return sum(self.layer(input=scale * x) for scale in self.scales)


def collect(batches, scales=(1.0,)):
    (statistics,) = collect_statistics(Net(scales), ["layer"], batches, seed=0)["layer"]
    return statistics


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(10)
    # The batches differ in range, so what is kept must be found again and again.
    return [spread * torch.randn(32, 5000, generator=generator) ** 3 for spread in (1.0, 2.0, 0.5, 3.0)]


@pytest.fixture(scope="module")
def values(batches):
    return torch.cat([batch.flatten() for batch in batches]).numpy()


def test_tail_is_exact(batches, values):
    statistics = collect(batches)
    expected = np.sort(np.abs(values))[::-1][: statistics.tail.size]
    np.testing.assert_array_equal(np.abs(statistics.tail), expected)
    assert statistics.tail.size == 4096
    assert (statistics.tail < 0).any()
    assert statistics.largest == np.abs(values).max()
    assert statistics.count == values.size


@pytest.mark.parametrize("percentile", [99.5, 99.9, 99.99, 99.999])
def test_high_percentiles_are_exact(batches, values, percentile):
    magnitudes = np.sort(np.abs(values))[::-1]
    expected = magnitudes[int((1 - percentile / 100) * values.size)]
    assert collect(batches).magnitude_percentile(percentile) == expected


@pytest.mark.parametrize("percentile", [30.0, 50.0, 90.0, 99.0])
def test_low_percentiles_are_estimated(batches, values, percentile):
    estimate = collect(batches).magnitude_percentile(percentile)
    assert 100 * (np.abs(values) <= estimate).mean() == pytest.approx(percentile, abs=0.6)


def test_hundredth_percentile_is_the_largest(batches, values):
    assert collect(batches).magnitude_percentile(100) == np.abs(values).max()


@pytest.mark.parametrize("name", ["int8", "int4", "e4m3", "e2m1", "e3m0"])
def test_squared_error_is_that_of_all_values(batches, values, name):
    fmt = parse_scalar_format(name)
    scales = np.float32([[0.001, 0.03, 1.0]]) * np.abs(values).max() / np.float32(fmt.maximum)
    exact = quantization_error(values[None, :], fmt, scales)
    np.testing.assert_allclose(collect(batches).squared_error(fmt, scales), exact, rtol=0.05)


@pytest.mark.parametrize("name", ["int8", "int4", "e4m3", "e2m1", "ue2m2"])
def test_mse_scale_is_nearly_the_best_for_all_values(batches, values, name):
    fmt = parse_scalar_format(name)
    data = np.abs(values) if not fmt.signed else values
    statistics = collect([batch.abs() for batch in batches] if not fmt.signed else batches)
    largest = np.float32(np.abs(data).max() / fmt.maximum)
    grid = largest * np.exp2(np.linspace(-8, 1, 150, dtype=np.float32))[None, :]
    best = quantization_error(data[None, :], fmt, grid).min()
    found = quantization_error(data[None, :], fmt, np.float32([[statistics.mse_scale(fmt)]]))[0, 0]
    assert found <= 1.01 * best


def test_percentile_scale_clips_at_the_percentile(batches):
    statistics = collect(batches)
    fmt = parse_scalar_format("e4m3")
    expected = np.float32(statistics.magnitude_percentile(99.99) / 480)
    assert statistics.percentile_scale(fmt, 99.99) == pytest.approx(expected, rel=1e-6)


def test_percentile_of_zero_falls_back_to_the_largest():
    x = torch.zeros(1, 100_000)
    x[0, 5] = 3.5
    assert collect([x]).percentile_scale(parse_scalar_format("int4"), 99.0) == 0.5


def test_small_tensors_are_kept_whole():
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(11))
    statistics = collect([x[:2], x[2:]])
    assert statistics.body.size == 0
    np.testing.assert_array_equal(np.sort(statistics.tail), np.sort(x.flatten().numpy()))


def test_many_equal_values_at_the_top():
    x = (6 * torch.rand(8, 20_000, generator=torch.Generator().manual_seed(12)) + 1).clamp(max=6)
    statistics = collect([x, x])
    assert statistics.tail.size == 4096
    assert set(statistics.tail) == {6.0}
    fmt = parse_scalar_format("uint8")
    scales = np.float32([[6 / 255]])
    exact = quantization_error(torch.cat([x, x]).reshape(1, -1).numpy(), fmt, scales)
    np.testing.assert_allclose(statistics.squared_error(fmt, scales), exact, rtol=0.03)


def test_all_calls_of_a_layer_count(values, batches):
    statistics = collect(batches, scales=(1.0, 10.0))
    assert statistics.count == 2 * values.size
    assert statistics.largest == pytest.approx(10 * np.abs(values).max())


def test_zeros_give_scale_one():
    statistics = collect([torch.zeros(2, 10)])
    assert statistics.mse_scale(parse_scalar_format("int8")) == 1.0
    assert statistics.percentile_scale(parse_scalar_format("int8"), 99.9) == 1.0


def test_same_sample_every_time_and_global_random_state_untouched(batches):
    torch.manual_seed(13)
    before = torch.get_rng_state()
    first, second = collect(batches), collect(batches)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.body, second.body)


def test_empty_body_and_low_percentile():
    statistics = TensorStatistics(np.float32([3.0, -2.0, 1.0, 0.0]), np.empty(0, np.float32), 4)
    assert statistics.magnitude_percentile(50) == 1.0
