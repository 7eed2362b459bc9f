import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantizers.folding import fold_batch_norms, overwrite_own_inputs, use_plain_convolutions


def trained_norm(norm, seed=5):
    """Statistics and parameters far from the defaults, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
    norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.1)
    if norm.affine:
        norm.weight.data.copy_(torch.randn(norm.num_features, generator=generator))
        norm.bias.data.copy_(torch.randn(norm.num_features, generator=generator))
    return norm


def folded(model, x):
    """Folds in place; checks that the outputs stay; returns the number of folded norms."""
    model.eval().requires_grad_(False)
    expected = model(x)
    count = fold_batch_norms(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    return count, norms


class Model(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(6)


class TestFolded:
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    def test_convolution(self, bias, affine):
        norm = trained_norm(nn.BatchNorm2d(6, affine=affine))
        model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=bias), norm, nn.ReLU())
        assert folded(model, torch.randn(2, 4, 8, 8)) == (1, 0)

    def test_one_dimension(self):
        model = nn.Sequential(nn.Conv1d(4, 6, 3), trained_norm(nn.BatchNorm1d(6)))
        assert folded(model, torch.randn(2, 4, 8)) == (1, 0)

    def test_linear(self):
        model = nn.Sequential(nn.Linear(4, 6), trained_norm(nn.BatchNorm1d(6)), nn.ReLU())
        assert folded(model, torch.randn(3, 4)) == (1, 0)

    def test_layers_that_are_far_apart_in_the_module_tree(self):
        def forward(m, x):
            return m.norms[0](m.convolutions[0](x)) + m.norms[1](m.convolutions[1](x))

        model = Model(
            forward,
            convolutions=nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)]),
            norms=nn.ModuleList([trained_norm(nn.BatchNorm2d(3), 1), trained_norm(nn.BatchNorm2d(3), 2)]),
        )
        assert folded(model, torch.randn(2, 3, 4, 4)) == (2, 0)


class TestKept:
    @pytest.mark.parametrize(
        "forward",
        [
            lambda m, x: m.norm(m.conv(x).relu()),
            lambda m, x: m.conv(m.norm(x)),
            lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)),
            lambda m, x: m.norm(m.conv(x)) + m.norm(x),
            lambda m, x: m.norm(m.conv(m.conv(x))),
            lambda m, x: (lambda y: m.norm(y[:, :, :2]) + y[:, :, 2:])(m.conv(x)),
            lambda m, x: (lambda y: m.norm(y) + y.view(2, 3, 4, 4))(m.conv(x)),
            lambda m, x: m.norm(m.conv(x).relu_()),
        ],
        ids=["relu between", "norm first", "residual", "twice", "conv twice", "slice", "view", "in place"],
    )
    def test_input_used_elsewhere_or_not_from_one_layer(self, forward):
        model = Model(forward, conv=nn.Conv2d(3, 3, 1), norm=trained_norm(nn.BatchNorm2d(3)))
        assert folded(model, torch.randn(2, 3, 4, 4)) == (0, 1)

    def test_convolution_output_is_returned_too(self):
        model = Model(lambda m, x: (m.norm(m.conv(x)), m.conv_output), conv=nn.Conv2d(3, 3, 1))
        model.norm = trained_norm(nn.BatchNorm2d(3))

        def forward(m, x):
            y = m.conv(x)
            return m.norm(y), y

        model.function = forward
        model.eval().requires_grad_(False)
        assert fold_batch_norms(model, torch.randn(2, 3, 4, 4)) == 0

    def test_norm_over_tokens_of_a_linear_layer(self):
        model = nn.Sequential(nn.Linear(6, 5), trained_norm(nn.BatchNorm1d(5)))
        assert folded(model, torch.randn(2, 5, 6)) == (0, 1)

    def test_norm_without_running_statistics(self):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
        assert folded(model, torch.randn(2, 3, 4, 4)) == (0, 1)

    def test_transposed_convolution(self):
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), trained_norm(nn.BatchNorm2d(4)))
        assert folded(model, torch.randn(2, 3, 4, 4)) == (0, 1)


class SamePadding(nn.Conv2d):
    """As in TensorFlow: the odd pixel goes right and below."""

    def forward(self, x):
        total = [
            max((-(-size // s) - 1) * s + k - size, 0)
            for size, s, k in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        pad = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        x = F.pad(x, pad) if any(pad) else x
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.norm(), self.bias)


class TestPlainConvolutions:
    @pytest.mark.parametrize(
        ("kernel", "stride", "kinds"),
        [
            (1, 1, [nn.Conv2d]),
            (3, 1, [nn.Conv2d]),
            (3, 2, [nn.ConstantPad2d, nn.Conv2d]),
            ((1, 5), (1, 2), [nn.ConstantPad2d, nn.Conv2d]),
        ],
    )
    def test_same_padding(self, kernel, stride, kinds):
        model = nn.Sequential(SamePadding(4, 6, kernel, stride, groups=2)).eval().requires_grad_(False)
        x = torch.randn(2, 4, 9 if stride == 1 else 8, 8)
        expected = model(x)
        use_plain_convolutions(model, x)
        assert [type(m) for m in model.modules() if not list(m.children())] == kinds
        assert torch.equal(model(x), expected)

    def test_norm_behind_same_padding_is_folded(self):
        model = nn.Sequential(SamePadding(4, 6, 3, 2), trained_norm(nn.BatchNorm2d(6)))
        model.eval().requires_grad_(False)
        x = torch.randn(2, 4, 8, 8)
        expected = model(x)
        use_plain_convolutions(model, x)
        assert fold_batch_norms(model, x) == 1
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)

    def test_other_arithmetic_is_left_alone(self):
        model = nn.Sequential(Standardised(4, 6, 3), trained_norm(nn.BatchNorm2d(6)))
        model.eval().requires_grad_(False)
        x = torch.randn(2, 4, 8, 8)
        use_plain_convolutions(model, x)
        assert type(model[0]) is Standardised
        assert folded(model, x) == (0, 1)


class TestOverwriting:
    @pytest.mark.parametrize(
        ("forward", "overwritten"),
        [
            (lambda m, x: m.act(m.conv(x)), 1),
            (lambda m, x: m.act(m.identity(m.conv(x))) + 1, 1),
            (lambda m, x: (lambda y: m.act(y) * y)(m.conv(x)), 0),
            (lambda m, x: (lambda y: torch.cat([m.act(y), y[:, :1]], 1))(m.conv(x)), 0),
            (lambda m, x: m.act(m.act(m.conv(x))), 0),
            (lambda m, x: m.act(m.conv(m.conv(x))), 0),
            (lambda m, x: m.act(x) + m.conv(x), 0),
            (lambda m, x: m.act(x + m.conv(x)), 0),
        ],
        ids=["chain", "identity", "read again", "part read again", "twice", "layer twice", "input", "sum"],
    )
    def test_only_what_nothing_else_reads(self, forward, overwritten):
        model = Model(forward, conv=nn.Conv2d(3, 3, 1), identity=nn.Identity(), act=nn.Hardswish()).eval()
        x = torch.randn(2, 3, 4, 4)
        model.requires_grad_(False)
        expected, before = model(x), x.clone()
        assert overwrite_own_inputs(model, x) == overwritten
        assert model.act.inplace == bool(overwritten)
        assert torch.equal(model(x), expected)
        assert torch.equal(x, before)

    def test_what_the_model_returns_stays(self):
        model = Model(
            lambda m, x: (lambda y: (m.act(y), y))(m.conv(x)), conv=nn.Conv2d(3, 3, 1), act=nn.ReLU()
        )
        assert overwrite_own_inputs(model.eval(), torch.randn(2, 3, 4, 4)) == 0
