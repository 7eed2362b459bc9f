"""Signs follow from operations, never from values."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quantizers.nonnegative import Signs
from quantizers.recording import Operation, record


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def is_nonnegative(function, inputs=None):
    inputs = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)) if inputs is None else inputs
    recording = record(Function(function), inputs)
    signs = Signs()
    for event in recording.events:
        if isinstance(event, Operation):
            signs.apply(event)
    return recording.output in signs


def in_place(x):
    y = x.clone()
    y.relu_()
    return y


def half_in_place(x):
    y = x.clone()
    y[:1].relu_()
    return y


def overwritten(x):
    y = x.relu()
    y.view(-1).sub_(1)
    return y


def filled(x):
    y = x.relu()
    y[0].copy_(x[0])
    return y


def filled_with_relu(x):
    y = x.relu()
    y[0].copy_(x[1].relu())
    return y


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.relu(),
        F.relu6,
        nn.ReLU6(),
        nn.ReLU(inplace=True),
        lambda x: F.hardtanh(x, 0.0, 3.0),
        lambda x: x.clamp(min=0),
        lambda x: x.clamp(0, 6),
        lambda x: x.clamp_min(0.5),
        lambda x: F.threshold(x, 0.0, 0.0),
        lambda x: x.sigmoid(),
        F.hardsigmoid,
        F.softplus,
        lambda x: x.softmax(-1),
        lambda x: x.exp(),
        lambda x: x.abs(),
        lambda x: x.square(),
        lambda x: x**2,
        lambda x: x * x,
        lambda x: x.relu().flatten(1),
        lambda x: x.relu().permute(0, 2, 3, 1).contiguous(),
        lambda x: x.relu().permute(0, 2, 3, 1).reshape(2, -1),
        lambda x: x.relu()[:, 1:3],
        lambda x: F.max_pool2d(x.relu(), 2, padding=1),
        lambda x: F.avg_pool2d(x.relu(), 2),
        lambda x: F.adaptive_avg_pool2d(x.relu(), 1),
        lambda x: F.adaptive_avg_pool2d(x.relu(), 3),
        lambda x: x.relu().mean((2, 3)),
        lambda x: torch.cat((x.relu(), x.sigmoid()), dim=1),
        lambda x: torch.stack((x.relu(), x.sigmoid())),
        lambda x: x.relu() + x.sigmoid(),
        lambda x: x.relu() * x.sigmoid(),
        lambda x: x.relu() * 2 + 1,
        lambda x: x.relu() / 6,
        lambda x: F.dropout(x.relu(), training=False),
        lambda x: F.pad(x.relu(), (0, 1, 0, 1)),
        lambda x: F.interpolate(x.relu(), scale_factor=2),
        lambda x: x.relu().double(),
        in_place,
        filled_with_relu,
    ],
)
def test_cannot_be_negative(function):
    assert is_nonnegative(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        lambda x: x + 0,
        lambda x: x.flatten(1),
        lambda x: x.relu() + x,
        lambda x: torch.add(x.relu(), x.relu(), alpha=-1),
        lambda x: x.relu() - x.sigmoid(),
        lambda x: x.relu() * x,
        lambda x: x.relu() * -1,
        lambda x: x.relu() + -0.5,
        lambda x: x.relu() / -2.0,
        lambda x: x * x.clone(),
        lambda x: x**3,
        lambda x: x**1.5,
        lambda x: -x.relu(),
        lambda x: torch._neg_view(x.relu()),
        lambda x: torch.cat((x.relu(), x), dim=1),
        lambda x: F.pad(x.relu(), (0, 1), value=-1.0),
        lambda x: x.clamp(max=6),
        lambda x: x.clamp(min=0, max=-1),
        lambda x: x.clamp(-1, 6),
        lambda x: x.clamp_min(-0.1),
        F.hardtanh,
        lambda x: F.threshold(x, 0.0, -1.0),
        lambda x: F.threshold(x, -1.0, 0.0),
        F.gelu,
        F.silu,
        F.hardswish,
        F.leaky_relu,
        lambda x: x.tanh(),
        lambda x: x.log_softmax(-1),
        lambda x: F.layer_norm(x.relu(), (6,)),
        lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bicubic"),
        lambda x: x.relu() @ x,
        half_in_place,
        overwritten,
        filled,
    ],
)
def test_may_be_negative(function):
    assert not is_nonnegative(function)


def test_inputs_that_happen_to_be_nonnegative_do_not_count():
    assert not is_nonnegative(lambda x: x + x, torch.ones(1, 2))


def test_a_marked_tensor_overwritten_through_a_view_of_itself():
    def function(x):
        y = x.relu()
        z = y.flatten()
        z.mul_(-1.0)
        return y.reshape(-1)

    assert not is_nonnegative(function)
