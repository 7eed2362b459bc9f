import pytest
import torch
from torch import nn

from dse.accuracy import calibration_batches
from dse.workloads import load_workload
from dse.workloads.efficientnet import Block
from quantizers.accumulator import AccumulatorLayer, with_accumulator
from quantizers.folding import PaddedConvolution
from quantizers.formats import parse_format
from quantizers.inference import for_inference
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings, quantize
from quantizers.recipes import Recipe, quantize_by


@pytest.fixture(scope="module", params=["fmnist-resnet", "fmnist-mobilenet", "fmnist-vit"])
def network(request):
    workload = load_workload(request.param, calibration_images=64, evaluation_images=64)
    prepared = prepare(workload.model, calibration_batches(workload.calibration))
    return prepared, next(iter(workload.evaluation.batches(64)))[0]


@pytest.mark.parametrize(
    "choices",
    [
        {"weights": "int4", "activations": "int8"},
        {"weights": "e2m1", "activations": "e2m1", "bias": "float"},
        {"weights": "ternary", "activations": "int8", "weight_group": 32},
        {"weights": "mxfp4", "activations": "mxfp4"},
        {"weights": "int4", "activations": "int4", "activation_granularity": "token"},
    ],
    ids=str,
)
def test_same_bits(network, choices):
    prepared, images = network
    formats = {role: parse_format(choices[role]) for role in ("weights", "activations")}
    quantized = quantize(prepared, QuantizationSettings(**{**choices, **formats}))
    fast = for_inference(quantized)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), quantized(images), rtol=0, atol=0)
    replaced = [layer for layer in fast.layers if "_RoundedLayer" in str(_module(fast, layer))]
    wanted = [layer for layer in fast.layers if layer.weights and layer.input_scales == "tensor"]
    assert replaced == wanted


def test_same_bits_after_a_recipe(network):
    prepared, images = network
    settings = QuantizationSettings(parse_format("int4"), parse_format("int4"))
    quantized = quantize_by(prepared, settings, Recipe.parse("gptq-restored"))
    with torch.no_grad():
        torch.testing.assert_close(for_inference(quantized)(images), quantized(images), rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["int4", "e2m1", "int8"])
def test_same_bits_with_uneven_padding(name, memory_format):
    torch.manual_seed(3)
    model = nn.Sequential(
        Block(3, 8, kernel=3, stride=2, expansion=1),
        Block(8, 8, kernel=5, stride=2, expansion=4),
        Block(8, 12, kernel=3, stride=1, expansion=4),
    ).eval()
    images = torch.randn(5, 3, 24, 20)
    prepared = prepare(model.to(memory_format=memory_format), [images])
    assert sum(isinstance(module, PaddedConvolution) for module in prepared.model.modules()) == 2
    quantized = quantize(prepared, QuantizationSettings(parse_format(name), parse_format(name)))
    fast = for_inference(quantized)
    with torch.no_grad():
        for batch in (images, images[:2], images[2:4], torch.randn(2, 3, 32, 32)):
            torch.testing.assert_close(fast(batch), quantized(batch), rtol=0, atol=0)
    assert sum(isinstance(module, nn.ConstantPad2d) for module in fast.modules()) == 0


def test_the_quantized_network_stays(network):
    prepared, _ = network
    quantized = quantize(prepared, QuantizationSettings(parse_format("int4"), parse_format("int4")))
    kinds = [type(module) for module in quantized.modules()]
    for_inference(quantized)
    assert [type(module) for module in quantized.modules()] == kinds


def test_accumulators_stay(network):
    prepared, images = network
    settings = QuantizationSettings(parse_format("int8"), parse_format("int8"))
    narrow = with_accumulator(quantize(prepared, settings), 12, overflow="saturate")
    fast = for_inference(narrow)
    assert [layer.name for layer in fast.layers if isinstance(_module(fast, layer), AccumulatorLayer)] == [
        layer.name for layer in narrow.layers if isinstance(_module(narrow, layer), AccumulatorLayer)
    ]
    with torch.no_grad():
        torch.testing.assert_close(fast(images[:4]), narrow(images[:4]), rtol=0, atol=0)


def test_a_layer_can_be_asked_what_the_quantized_one_can(network):
    prepared, _ = network
    quantized = quantize(prepared, QuantizationSettings(parse_format("int4"), parse_format("int4")))
    layer = quantized.layers[1]
    fast, slow = _module(for_inference(quantized), layer), _module(quantized, layer)
    assert torch.equal(fast.weight, slow.weight)
    assert torch.equal(fast.quant_weight().value, slow.quant_weight().value)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = fast.nothing_of_this_name


def _module(quantized, layer):
    return quantized.network.get_submodule(layer.name)
