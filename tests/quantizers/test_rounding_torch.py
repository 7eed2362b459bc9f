"""fake_quantize: equal to the kernel and the definition in every path, gradients to the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantizers import rounding
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat, parse_format, parse_scalar_format
from quantizers.torch_rounding import fake_quantize, round_blocks_torch, round_scaled_torch, row_scales
from tests.quantizers.format_samples import SCALARS, assert_same, critical_points, definition, random_floats

E4M3 = parse_scalar_format("e4m3")


def inputs(fmt: ScalarFormat, scale: float, dtype: type[np.floating] = np.float32) -> torch.Tensor:
    points = critical_points(fmt, scale, dtype=dtype, limit=256)
    return torch.from_numpy(np.concatenate([points, random_floats(300).astype(dtype)]))


def expected(x: torch.Tensor, fmt: ScalarFormat, scale: torch.Tensor | float) -> torch.Tensor:
    factor = torch.as_tensor(scale, dtype=x.dtype).numpy()
    return torch.from_numpy(definition(x.detach().numpy(), fmt, factor))


def assert_same_tensor(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    assert actual.dtype == wanted.dtype
    assert_same(actual.detach().float().numpy(), wanted.float().numpy())


class TestForward:
    @pytest.mark.parametrize("fmt", SCALARS, ids=lambda fmt: fmt.name)
    def test_every_format_in_both_paths(self, fmt):
        for scale in (1.0, 0.0137):
            x = inputs(fmt, scale)
            wanted = expected(x, fmt, scale)
            assert_same_tensor(fake_quantize(x, fmt, scale), wanted)
            assert_same_tensor(round_scaled_torch(x, fmt, torch.tensor(scale)), wanted)

    @pytest.mark.parametrize("name", ["int8", "uint16", "e2m1", "ue3m0", "e5m2ieee", "ternary"])
    def test_float64(self, name):
        fmt = parse_scalar_format(name)
        x = inputs(fmt, 0.1, np.float64)
        assert_same_tensor(fake_quantize(x, fmt, 0.1), expected(x, fmt, 0.1))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_narrow_types_are_computed_in_float32(self, dtype):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
        wanted = expected(x.float(), E4M3, 0.3).to(dtype)
        assert_same_tensor(fake_quantize(x, E4M3, 0.3), wanted)

    @pytest.mark.parametrize("shape", [(4,), (4, 1, 1, 1)])
    @pytest.mark.parametrize("kernels", [True, False])
    def test_per_channel(self, monkeypatch, shape, kernels):
        monkeypatch.setattr(rounding, "HAVE_KERNELS", kernels)
        x = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(1))
        scale = torch.tensor([0.1, 0.02, 1.0, 3.0])
        wanted = expected(x, E4M3, scale.reshape(4, 1, 1, 1))
        assert_same_tensor(fake_quantize(x, E4M3, scale.reshape(shape)), wanted)

    @pytest.mark.parametrize("kernels", [True, False])
    def test_channels_last_is_kept(self, monkeypatch, kernels):
        monkeypatch.setattr(rounding, "HAVE_KERNELS", kernels)
        x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
        x = x.to(memory_format=torch.channels_last)
        result = fake_quantize(x, E4M3, 0.3)
        assert result.stride() == x.stride()
        assert_same_tensor(result, expected(x, E4M3, 0.3))

    @pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0)])
    @pytest.mark.parametrize("kernels", [True, False])
    def test_odd_shapes(self, monkeypatch, shape, kernels):
        monkeypatch.setattr(rounding, "HAVE_KERNELS", kernels)
        x = torch.full(shape, 3.3)
        assert_same_tensor(fake_quantize(x, E4M3, 1.0), torch.full(shape, 3.25))

    def test_views_that_are_not_dense(self):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
        for view in (x[:, ::2], x.t()[1:], x[:1].expand(4, 8)):
            assert_same_tensor(fake_quantize(view, E4M3, 0.3), expected(view, E4M3, 0.3))

    def test_the_result_is_no_view_of_the_input(self):
        x = torch.ones(4)
        fake_quantize(x, E4M3, 1.0).add_(1)
        assert torch.equal(x, torch.ones(4))

    def test_scale_that_does_not_fit(self):
        with pytest.raises(UsageError) as error:
            fake_quantize(torch.ones(4, 3), E4M3, torch.ones(3))
        assert str(error.value) == (
            "a scale of shape (3,) does not fit x of shape (4, 3); "
            "expected one value or (4,) or (4, 1) or (4, 3)"
        )

    @pytest.mark.parametrize("kernels", [True, False])
    def test_per_row_and_per_element(self, monkeypatch, kernels):
        monkeypatch.setattr(rounding, "HAVE_KERNELS", kernels)
        x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(6))
        for scale in (torch.rand(2, 3, 1) + 0.01, torch.rand(2, 3, 5) + 0.01):
            expected = torch.from_numpy(E4M3.round((x / scale).numpy())) * scale
            assert torch.equal(fake_quantize(x, E4M3, scale), expected)

    def test_integers_cannot_be_quantized(self):
        with pytest.raises(UsageError) as error:
            fake_quantize(torch.ones(4, dtype=torch.int32), E4M3, 1.0)
        assert str(error.value) == "only floating-point tensors can be quantized, not torch.int32"


class TestGradients:
    def test_to_the_input(self):
        x = torch.tensor([-0.61, -0.6, -0.2, 0.0, 0.6, 0.61, torch.inf, torch.nan], requires_grad=True)
        fake_quantize(x, parse_scalar_format("e2m1"), 0.1).backward(torch.arange(1.0, 9.0))
        assert x.grad is not None
        assert x.grad.tolist() == [0, 2, 3, 4, 5, 0, 0, 0]

    @pytest.mark.parametrize(
        ("name", "x", "slopes"),
        [
            # round(u) - u inside, the end of the range outside.
            ("e2m1", [-7.0, -2.25, 0.0, 1.125, 5.5, 7.0], [-6.0, 0.25, 0.0, -0.125, 0.5, 6.0]),
            ("int4", [-9.0, -8.0, -0.25, 2.75, 7.0, 7.25], [-8.0, 0.0, 0.25, 0.25, 0.0, 7.0]),
            ("ue2m1", [-3.0, 0.0, 1.125, 5.5, 7.0], [0.0, 0.0, -0.125, 0.5, 6.0]),
        ],
    )
    def test_to_the_scale(self, name, x, slopes):
        for value, slope in zip(x, slopes, strict=True):
            scale = torch.tensor(2.0, requires_grad=True)
            (gradient,) = torch.autograd.grad(
                fake_quantize(torch.tensor([2 * value]), parse_scalar_format(name), scale), scale
            )
            assert gradient.item() == slope

    @pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1)])
    @pytest.mark.parametrize("kernels", [True, False])
    def test_against_autograd_of_the_straight_through_formula(self, monkeypatch, shape, kernels):
        monkeypatch.setattr(rounding, "HAVE_KERNELS", kernels)
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(3, 4, 5, generator=generator)
        scale = torch.rand(shape, generator=generator) * 0.3 + 0.05
        upstream = torch.randn(3, 4, 5, generator=generator)
        fmt = parse_scalar_format("e2m1")

        def straight_through(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            u = (x / scale.reshape(-1, 1, 1)).clamp(fmt.minimum, fmt.maximum)
            rounded = torch.from_numpy(fmt.round(u.detach().numpy()))
            return (u + (rounded - u).detach()) * scale.reshape(-1, 1, 1)

        results = []
        for function in (lambda x, s: fake_quantize(x, fmt, s), straight_through):
            leaves = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
            results.append(torch.autograd.grad(function(*leaves), leaves, upstream))
        (x_grad, scale_grad), (expected_x, expected_scale) = results
        torch.testing.assert_close(x_grad, expected_x)
        torch.testing.assert_close(scale_grad, expected_scale, rtol=1e-5, atol=1e-5)
        assert scale_grad.shape == shape

    def test_only_what_is_asked_for(self):
        x, scale = torch.ones(3, requires_grad=True), torch.tensor(0.5)
        fake_quantize(x, E4M3, scale).sum().backward()
        assert x.grad is not None
        assert scale.grad is None

    def test_none_under_no_grad(self):
        x = torch.ones(3, requires_grad=True)
        with torch.no_grad():
            result = fake_quantize(x, E4M3, 0.3)
        assert not result.requires_grad
        assert_same_tensor(result, expected(x, E4M3, 0.3))
        assert fake_quantize(x, E4M3, 0.3).requires_grad
        assert not fake_quantize(x.detach(), E4M3, 0.3).requires_grad

    def test_narrow_types_keep_theirs(self):
        x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
        scale = torch.tensor(0.3, requires_grad=True)
        fake_quantize(x, E4M3, scale).sum().backward()
        assert x.grad is not None
        assert scale.grad is not None
        assert (x.grad.dtype, scale.grad.dtype) == (torch.bfloat16, torch.float32)


class TestRows:
    def test_the_largest_magnitude_becomes_the_largest_value(self):
        x = torch.tensor([[[1.0, -3.5, 0.2], [0.0, 0.0, 0.0]], [[1e-40, 0.0, 0.0], [7.0, 14.0, -1.0]]])
        scales = row_scales(x, parse_scalar_format("int4"))
        assert scales.tolist() == [[[0.5], [1.0]], [[1.0], [2.0]]]
        rounded = fake_quantize(x, parse_scalar_format("int4"), scales)
        assert rounded.tolist() == [[[1.0, -3.5, 0.0], [0.0] * 3], [[0.0] * 3, [8.0, 14.0, 0.0]]]

    def test_nan_stays_in_its_row(self):
        x = torch.tensor([[1.0, float("nan")], [1.0, 3.0]])
        fmt = parse_scalar_format("e2m1")
        assert fake_quantize(x, fmt, row_scales(x, fmt)).isnan().tolist() == [[True, True], [False, False]]


class TestBlocks:
    @pytest.mark.parametrize("axis", [1, -1, -2])
    def test_is_that_of_the_format(self, axis):
        x = torch.randn(2, 40, 36, generator=torch.Generator().manual_seed(7))
        fmt = parse_format("mxfp4")
        expected = torch.from_numpy(fmt.round(x.movedim(axis, -1).numpy())).movedim(-1, axis)
        assert torch.equal(round_blocks_torch(x, fmt, axis), expected)

    def test_gradients_pass(self):
        x = torch.randn(3, 40, generator=torch.Generator().manual_seed(8), requires_grad=True)
        rounded = round_blocks_torch(x, parse_format("mxfp4"), -1)
        rounded.backward(torch.arange(120.0).reshape(3, 40))
        assert x.grad.flatten().tolist() == list(range(120))
        assert torch.equal(
            rounded.detach(), torch.from_numpy(parse_format("mxfp4").round(x.detach().numpy()))
        )
