import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from quantizers.prepare import PreparationError, prepare


class Mixed(nn.Module):
    """Convolution, batch norm, ReLU, depthwise, ReLU6, residual, attention and a head; 6 x 6 images."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)  # first in the module tree, last to run
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + F.relu6(self.norm(self.depthwise(x)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.mean(1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(16)


def images(count=4, channels=2):
    return torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(17))


def test_layers_in_the_order_they_run():
    prepared = prepare(Mixed(), [images()])
    shown = [(layer.name, layer.kind, layer.edge, layer.nonnegative) for layer in prepared.layers]
    assert shown == [
        ("stem", "conv2d", True, (False,)),
        ("depthwise", "conv2d", False, (True,)),
        ("attention.query", "linear", False, (True,)),
        ("attention.key", "linear", False, (True,)),
        ("attention.value", "linear", False, (True,)),
        ("attention.scores", "matmul", False, (False, False)),
        ("attention.mix", "matmul", False, (True, False)),
        ("attention.out_proj", "linear", False, (False,)),
        ("head", "linear", True, (False,)),
    ]
    assert prepared.float_products == ()


def test_sizes():
    prepared = prepare(Mixed(), [images()])
    sizes = {layer.name: (layer.weights, layer.dot_length, layer.macs) for layer in prepared.layers}
    assert sizes["stem"] == (144, 18, 9 * 144)
    assert sizes["depthwise"] == (72, 9, 9 * 72)
    assert sizes["attention.query"] == (64, 8, 9 * 64)
    assert sizes["attention.scores"] == (0, 4, 2 * 9 * 9 * 4)
    assert sizes["attention.mix"] == (0, 9, 2 * 9 * 4 * 9)
    assert sizes["head"] == (24, 8, 24)
    assert {layer.name for layer in prepared.layers if layer.has_bias} >= {"stem", "depthwise", "head"}


def test_outputs_stay_and_the_original_is_untouched():
    model = Mixed()
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(model, [images()])
    assert model.training
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(images()), model.eval()(images()), rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in prepared.model.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d | nn.MultiheadAttention) for m in prepared.model.modules())


def test_relu6_stays():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3), nn.Flatten())
    prepared = prepare(model, [images()])
    assert isinstance(prepared.model[1], nn.ReLU6)


def test_statistics_cover_all_batches_and_inputs():
    prepared = prepare(Mixed(), iter([images(4), images(3)]))
    assert prepared.statistics["stem"][0].count == 7 * 2 * 36
    assert [s.count for s in prepared.statistics["attention.mix"]] == [7 * 2 * 81, 7 * 72]
    assert prepared.statistics["stem"][0].largest == float(torch.cat([images(4), images(3)]).max())


def test_a_shared_layer_is_one_layer():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), shared, shared)
    prepared = prepare(model, [images()])
    assert [(layer.name, layer.nonnegative, layer.macs) for layer in prepared.layers] == [
        ("1", (False,), 432),
        ("3", (False,), 72),
    ]
    assert prepared.statistics["3"][0].count == 2 * 4 * 6


def test_products_outside_layers_are_named():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(72, 5)
            self.weight = nn.Parameter(torch.randn(5, 5))
            self.up = nn.ConvTranspose1d(1, 1, 2)

        def forward(self, x):
            x = self.layer(x.flatten(1)) @ self.weight
            return self.up(x[:, None])

    assert prepare(Raw(), [images()]).float_products == ("", "up")


def test_weight_scales_are_searched_once():
    prepared = prepare(Mixed(), [images()])
    fmt = parse_scalar_format("e2m1")
    first = prepared.weight_scales("stem", fmt, "mse")
    assert first.shape == (8,)
    assert prepared.weight_scales("stem", fmt, "mse") is first
    assert prepared.weight_scales("stem", fmt, "max") is not first


def test_global_random_state_is_untouched():
    model = Mixed()
    before = torch.get_rng_state()
    prepare(model, [images()])
    assert torch.equal(torch.get_rng_state(), before)


class Logarithm(nn.Module):
    def forward(self, x):
        return x.flatten(1).log()


class Restless(nn.Module):
    """Answers differently every time, as a model does whose rewriting went wrong."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(72, 2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1)) * self.calls


def test_changed_outputs_are_an_error():
    message = r"^folding changed the model's outputs by \S+, more than \S+$"
    with pytest.raises(PreparationError, match=message):
        prepare(Restless(), [images()])


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (nn.Flatten(), [images()], "the model has no convolution, linear layer or attention to quantize"),
        (Mixed(), [], "calibration needs at least one batch, and at least one image in each"),
        (Mixed(), [images(0)], "calibration needs at least one batch, and at least one image in each"),
        (Mixed(), [(images(), None)], "calibration batches must be floating-point tensors, not tuple"),
        (Mixed(), [images().byte()], "calibration batches must be floating-point tensors, not torch.uint8"),
        (nn.RNN(6, 3), [images(1, 1)[0]], "the model must return one tensor, not tuple"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(72, 2)),
            [images(), images() / 0],
            "calibration batches hold numbers that are not finite",
        ),
        (
            nn.Sequential(Logarithm(), nn.Linear(72, 2)),
            [images(), 0 * images()],
            "calibration inputs of layer '1' are not finite",
        ),
    ],
)
def test_bad_input(model, batches, message):
    with pytest.raises(UsageError) as error:
        prepare(model, batches)
    assert str(error.value) == message


def test_weights_that_are_not_finite():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 2), nn.Linear(2, 2))
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(UsageError) as error:
        prepare(model, [images()])
    assert str(error.value) == "the model's '2.weight' holds numbers that are not finite"


def test_a_network_of_two_layers_has_no_edges():
    """Else no layer would take the formats that are asked for."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [layer.edge for layer in prepare(model, [torch.randn(8, 4)]).layers] == [False, False]
    deeper = nn.Sequential(*model, nn.Linear(2, 2))
    assert [layer.edge for layer in prepare(deeper, [torch.randn(8, 4)]).layers] == [True, False, True]
