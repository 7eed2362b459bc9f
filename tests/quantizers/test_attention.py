import pytest
import torch
from torch import nn

from quantizers.attention import ExplicitAttention, MatMul, unfold_attention
from quantizers.errors import UsageError


def attention(**options):
    torch.manual_seed(3)
    module = nn.MultiheadAttention(24, 3, **options).eval()
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
        nn.init.normal_(module.out_proj.bias)
    return module


@pytest.mark.parametrize("need", [{}, {"need_weights": False}, {"average_attn_weights": False}])
@pytest.mark.parametrize("options", [{"batch_first": True}, {"batch_first": False}, {"bias": False}])
def test_same_outputs(options, need):
    original = attention(**options)
    explicit = ExplicitAttention(original)
    x, y = torch.randn(4, 7, 24), torch.randn(4, 7, 24)
    with torch.no_grad():
        expected, expected_weights = original(x, y, y, **need)
        actual, weights = explicit(x, y, y, **need)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6)


def test_keys_and_values_of_other_sizes():
    original = attention(batch_first=True, kdim=10, vdim=14)
    x, k, v = torch.randn(2, 5, 24), torch.randn(2, 6, 10), torch.randn(2, 6, 14)
    with torch.no_grad():
        torch.testing.assert_close(ExplicitAttention(original)(x, k, v)[0], original(x, k, v)[0])


def test_every_product_is_a_module():
    explicit = ExplicitAttention(attention(batch_first=True))
    products = {name: type(m) for name, m in explicit.named_children() if isinstance(m, nn.Linear | MatMul)}
    linear = dict.fromkeys(("query", "key", "value", "out_proj"), nn.Linear)
    assert products == {**linear, "scores": MatMul, "mix": MatMul}


def test_original_is_not_shared():
    original = attention(batch_first=True)
    before = original.in_proj_weight.clone()
    ExplicitAttention(original).key.weight.data.zero_()
    assert torch.equal(original.in_proj_weight, before)


def test_inside_a_transformer_encoder():
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        expected = model(x)
        unfold_attention(model)
        assert sum(isinstance(m, ExplicitAttention) for m in model.modules()) == 2
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "mask",
    [
        {"attn_mask": torch.zeros(5, 5)},
        {"key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)},
        {"is_causal": True},
    ],
)
def test_masks_are_refused(mask):
    x = torch.randn(2, 5, 24)
    with pytest.raises(UsageError) as error:
        ExplicitAttention(attention(batch_first=True))(x, x, x, **mask)
    assert str(error.value) == "attention masks are not supported in a quantized model"


def test_inputs_without_a_batch_are_refused():
    x = torch.randn(5, 24)
    with pytest.raises(UsageError) as error:
        ExplicitAttention(attention())(x, x, x)
    assert str(error.value) == "attention needs (batch, token, feature) inputs, not 2 axes"


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_extra_keys_are_refused(option):
    with pytest.raises(UsageError) as error:
        ExplicitAttention(attention(**{option: True}))
    assert str(error.value) == "attention with add_bias_kv or add_zero_attn cannot be quantized"
