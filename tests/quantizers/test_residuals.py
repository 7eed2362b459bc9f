import copy

import numpy as np
import pytest
import torch
from torch import fx, nn

from dse.accuracy import answers, calibration_batches
from dse.workloads import load_workload
from dse.workloads.efficientnet import EfficientNetLite0
from quantizers.errors import UsageError
from quantizers.formats import parse_format, parse_scalar_format
from quantizers.inference import for_inference
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings, layer_summary, quantize
from quantizers.recipes import Recipe, quantize_by, rewritten
from quantizers.residuals import Addition, QuantAddition

ADDS = {
    "fmnist-resnet": [f"blocks.{block}.residual_add_0" for block in range(6)],
    "fmnist-mobilenet": [f"blocks.{block}.residual_add_0" for block in (0, 1, 3, 4, 6)],
    "fmnist-vit": [f"blocks.{block}.residual_add_{k}" for block in range(4) for k in range(2)],
}


def settings(weights="int8", residuals="int8", **options):
    fmt = parse_format(weights)
    residuals = None if residuals is None else parse_scalar_format(residuals)
    return QuantizationSettings(fmt, fmt, residuals=residuals, **options)


@pytest.fixture(scope="module", params=ADDS)
def network(request):
    workload = load_workload(request.param, calibration_images=64, evaluation_images=64)
    return request.param, prepare(workload.model, calibration_batches(workload.calibration)), workload


class Net(nn.Module):
    """``join`` of a layer's input and output; *join* may be a function or a module."""

    def __init__(self, join, width=4):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.constant = nn.Parameter(torch.randn(width))
        self.register_buffer("shift", torch.randn(width))
        self.join = join

    def forward(self, x):
        x = self.first(x)
        return self.join(self, x, self.second(x))


def prepared_net(join, **options):
    torch.manual_seed(7)
    return prepare(nn.Sequential(nn.Linear(4, 4), Net(join, **options)), [torch.randn(32, 4)])


def in_place(_, x, y):
    x += y
    return x


class Join(nn.Module):
    def forward(self, net, x, y):
        return x + y


class TestFound:
    def test_in_the_small_networks(self, network):
        name, prepared, _ = network
        assert [add.name for add in prepared.residuals.adds] == ADDS[name]
        assert not any(add.nonnegative for add in prepared.residuals.adds)

    def test_in_efficientnet(self):
        torch.manual_seed(0)
        prepared = prepare(EfficientNetLite0(), [torch.randn(2, 3, 32, 32)])
        found = [add.name for add in prepared.residuals.adds]
        assert found == [f"blocks.{block}.residual_add_0" for block in (2, 4, 6, 7, 9, 10, 12, 13, 14)]

    @pytest.mark.parametrize(
        "join",
        [
            lambda _, x, y: x + y,
            in_place,
            lambda _, x, y: torch.add(x, y),
            lambda _, x, y: x.add(y),
            lambda _, x, y: x.add_(y),
        ],
        ids=["+", "+=", "torch.add", "add", "add_"],
    )
    def test_in_every_way_to_write_it(self, join):
        prepared = prepared_net(join)
        assert [add.name for add in prepared.residuals.adds] == ["1.residual_add_0"]
        assert isinstance(prepared.residuals.model.get_submodule("1.residual_add_0"), Addition)

    def test_in_a_module_that_only_adds(self):
        assert [add.name for add in prepared_net(Join()).residuals.adds] == ["1.join.residual_add_0"]

    def test_in_every_call_of_a_module(self):
        torch.manual_seed(8)
        net = Net(lambda _, x, y: x + y)
        prepared = prepare(nn.Sequential(net, net), [torch.randn(32, 4)])
        assert [add.name for add in prepared.residuals.adds] == ["0.residual_add_0", "0.residual_add_1"]

    @pytest.mark.parametrize(
        "join",
        [
            lambda net, x, y: y + net.constant,
            lambda net, x, y: y + net.shift,
            lambda net, x, y: y + 1.5,
            lambda net, x, y: y + torch.zeros_like(x),
            lambda net, x, y: y + torch.ones(x.shape[-1] + 0),
            lambda net, x, y: y - x,
        ],
        ids=["parameter", "buffer", "number", "zeros_like", "ones", "difference"],
    )
    def test_nothing_else(self, join):
        prepared = prepared_net(join)
        assert prepared.residuals.adds == ()
        assert prepared.residuals.model is prepared.model

    def test_others_beside_it_stay_in_float(self):
        prepared = prepared_net(lambda net, x, y: (x + net.constant) + (y + 1))
        assert [add.name for add in prepared.residuals.adds] == ["1.residual_add_2"]
        quantized = quantize(prepared, settings())
        kinds = [type(quantized.network.get_submodule(f"1.residual_add_{k}")).__name__ for k in range(3)]
        assert kinds == ["Addition", "Addition", "QuantAddition"]

    def test_no_name_is_taken_twice(self):
        prepared = prepared_net(Join())
        prepared.model[1].join.residual_add_0 = nn.Identity()
        assert [add.name for add in prepared.residuals.adds] == ["1.join.residual_add_1"]

    def test_arguments_that_are_not_given_keep_their_defaults(self):
        class Masked(Net):
            def forward(self, x, mask=None, factor=2.0):
                y = self.second(x)
                y = y if mask is None else y * mask
                return self.first(x + factor * y)

        torch.manual_seed(9)
        prepared = prepare(Masked(None), [torch.randn(32, 4)])
        assert [add.name for add in prepared.residuals.adds] == ["residual_add_0"]


class TestModel:
    def test_computes_the_same_with_the_same_layers(self, network):
        _, prepared, workload = network
        (images, _), *_ = workload.evaluation.batches(16)
        traced = prepared.residuals.model
        with torch.no_grad():
            assert torch.equal(traced(images), prepared.model(images))
        for layer in prepared.layers:
            assert traced.get_submodule(layer.name) is prepared.model.get_submodule(layer.name)

    def test_nothing_is_traced_unless_it_is_asked_for(self, network):
        _, prepared, workload = network
        fresh = prepare(workload.model, prepared.batches)
        quantized = quantize(fresh, settings(residuals=None))
        assert "residuals" not in vars(fresh)
        assert quantized.residual_adds == {}
        assert type(quantized.network) is type(fresh.model)
        assert not any(isinstance(m, Addition | QuantAddition | fx.GraphModule) for m in quantized.modules())

    def test_layers_are_the_same_as_without(self, network):
        name, prepared, _ = network
        quantized = quantize(prepared, settings("int4"))
        assert layer_summary(quantized) == layer_summary(quantize(prepared, settings("int4", None)))
        assert list(quantized.residual_adds) == ADDS[name]
        found = [path for path, m in quantized.network.named_modules() if isinstance(m, QuantAddition)]
        assert sorted(found) == sorted(ADDS[name])

    def test_the_fast_copy_gives_the_same_bits(self, network):
        _, prepared, workload = network
        (images, _), *_ = workload.evaluation.batches(16)
        quantized = quantize(prepared, settings("e2m1", "int4"))
        with torch.no_grad():
            assert torch.equal(for_inference(quantized)(images), quantized(images))

    def test_many_bits_change_nothing(self, network):
        _, prepared, workload = network
        (images, _), *_ = workload.evaluation.batches(16)
        with torch.no_grad():
            exact = quantize(prepared, settings("int8", None))(images)
            fine = quantize(prepared, settings("int8", "int16"))(images)
            coarse = quantize(prepared, settings("int8", "int4"))(images)
        assert float((fine - exact).norm() / exact.norm()) < 0.02
        assert float((coarse - exact).norm() / exact.norm()) > 0.05


class TestArithmetic:
    @pytest.mark.parametrize("fmt", ["int4", "int8", "uint8", "e2m1", "e4m3", "e5m2"])
    def test_is_that_of_the_format_added_exactly(self, fmt):
        fmt = parse_scalar_format(fmt)
        scale = np.float32(0.0371)
        rng = np.random.default_rng(11)
        left, right = (rng.normal(0, 40, 4000).astype(np.float32) * scale for _ in range(2))
        on_grid = fmt.round(left / scale).astype(np.float64) + fmt.round(right / scale).astype(np.float64)
        expected = (on_grid * np.float64(scale)).astype(np.float32)
        result = QuantAddition(fmt, float(scale))(torch.from_numpy(left), torch.from_numpy(right))
        np.testing.assert_array_equal(result.numpy(), expected)

    def test_operands_broadcast(self):
        add = QuantAddition(parse_scalar_format("int4"), 0.5)
        result = add(torch.tensor([[0.3], [9.0]]), torch.tensor([[-0.2, 1.1]]))
        assert result.tolist() == [[0.5, 1.5], [3.5, 4.5]]


class TestScale:
    @pytest.mark.parametrize("fmt", ["int4", "e2m1"])
    def test_is_the_best_for_both_operands(self, fmt):
        prepared = prepared_net(lambda _, x, y: x + 6 * y)
        quantized = quantize(prepared, settings(residuals=fmt))
        (batch,) = prepared.batches
        with torch.no_grad():
            x = prepared.model[1].first(prepared.model[0](batch))
            both = torch.cat((x, 6 * prepared.model[1].second(x))).numpy().flatten()
        (add,) = prepared.residuals.adds
        np.testing.assert_array_equal(np.sort(add.statistics.tail), np.sort(both))
        module = quantized.network.get_submodule(add.name)
        fmt = parse_scalar_format(fmt)

        def error(scale):
            return float(np.square(fmt.round(both / scale) * scale - both).sum())

        largest = np.abs(both).max() / fmt.maximum
        candidates = np.linspace(0.3 * largest, 1.3 * largest, 2000).astype(np.float32)
        assert error(module.scale.numpy()) <= 1.01 * min(error(scale) for scale in candidates)

    def test_follows_the_choice_for_activations(self):
        prepared = prepared_net(lambda _, x, y: x + y)
        (add,) = prepared.residuals.adds
        scales = {}
        for choice in ("mse", "mse_power_of_two", "percentile"):
            quantized = quantize(prepared, settings(activation_scale=choice, percentile=100.0))
            scales[choice] = float(quantized.network.get_submodule(add.name).scale)
        assert np.log2(scales["mse_power_of_two"]) % 1 == 0
        assert scales["percentile"] == np.float32(add.statistics.largest / 127)
        assert len(set(scales.values())) == 3


class TestSign:
    @pytest.mark.parametrize(
        ("join", "name"),
        [
            (lambda _, x, y: x.relu() + y.relu(), "uint8"),
            (lambda _, x, y: x + y.relu(), "int8"),
            (lambda _, x, y: x.relu() + y, "int8"),
        ],
        ids=["both", "right", "left"],
    )
    def test_is_left_out_where_neither_operand_has_one(self, join, name):
        prepared = prepared_net(join)
        quantized = quantize(prepared, settings())
        assert {add: fmt.name for add, fmt in quantized.residual_adds.items()} == {"1.residual_add_0": name}
        signed = quantize(prepared, settings(unsigned_activations=False))
        assert signed.residual_adds["1.residual_add_0"].name == "int8"


class TestRecipes:
    @pytest.mark.parametrize(
        ("name", "recipe"),
        [
            ("fmnist-resnet", "equalize + gptq"),
            ("fmnist-resnet", "qronos + bias_correction"),
            ("fmnist-vit", "smoothquant + gptq"),
        ],
    )
    def test_keep_it(self, name, recipe):
        workload = load_workload(name, calibration_images=64, evaluation_images=64)
        recipe = Recipe.parse(recipe)
        prepared = rewritten(prepare(workload.model, calibration_batches(workload.calibration)), recipe)
        solved = quantize_by(prepared, settings("int4"), recipe)
        assert list(solved.residual_adds) == ADDS[name]
        rounded = quantize(prepared, settings("int4"))
        (images, _), *_ = workload.evaluation.batches(64)
        with torch.no_grad():
            exact = prepared.model(images)
            error = [float((model(images) - exact).norm()) for model in (solved, rounded)]
        assert error[0] < error[1]


@pytest.mark.parametrize(
    ("residuals", "percent"), [(None, 89.0), ("int8", 88.6), ("int4", 87.4), ("int3", 86.2)]
)
def test_accuracy_of_the_vision_transformer(residuals, percent):
    """Measured on these 500 images; another processor may round a few of them the other way."""
    workload = load_workload("fmnist-vit", calibration_images=64, evaluation_images=500)
    prepared = prepare(workload.model, calibration_batches(workload.calibration))
    chosen = QuantizationSettings(
        parse_format("int4"),
        parse_format("int8"),
        residuals=None if residuals is None else parse_scalar_format(residuals),
    )
    found = 100 * answers(quantize(prepared, chosen), workload.evaluation).mean()
    assert found == pytest.approx(percent, abs=0.6)


def undecided(_, x, y):
    return x + y if y.sum() > -1e9 else x


def aliased(_, x, y):
    before = x
    x += y
    return 2 * before


def twice(_, x, y):
    return torch.add(x, y, alpha=2) + y


PREFIX = "residual adds cannot be quantized: "


class TestRefused:
    @pytest.mark.parametrize(
        ("join", "message"),
        [
            (
                undecided,
                "layer '1' (Net) cannot be traced: symbolically traced variables cannot be used as inputs to "
                "control flow",
            ),
            (
                aliased,
                "traced, the model computes something else; it changes tensors in place that are used elsewhere, "
                "or depends on the input's values",
            ),
            (
                twice,
                "layer '1' (Net) adds activations 2 times, 1 of them as x + y, x += y or add without alpha",
            ),
        ],
        ids=["control flow", "alias", "alpha"],
    )
    def test_models_say_where_and_why(self, join, message):
        prepared = prepared_net(join)
        with pytest.raises(UsageError) as error:
            quantize(prepared, settings())
        assert str(error.value) == PREFIX + message
        assert quantize(prepared, settings(residuals=None)).residual_adds == {}

    def test_the_outermost_module_has_no_name(self):
        torch.manual_seed(7)
        prepared = prepare(Net(undecided), [torch.randn(32, 4)])
        with pytest.raises(UsageError) as error:
            quantize(prepared, settings())
        assert str(error.value) == (
            PREFIX
            + "the model (Net) cannot be traced: symbolically traced variables cannot be used as inputs "
            "to control flow"
        )
        assert error.value.expected == ["residuals in float"]

    def test_what_cannot_be_traced_elsewhere_does_not_matter(self):
        class Undecided(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else 2 * x

        torch.manual_seed(12)
        model = nn.Sequential(nn.Linear(4, 4), Undecided(), Net(lambda _, x, y: x + y))
        prepared = prepare(copy.deepcopy(model), [torch.randn(32, 4)])
        assert [add.name for add in prepared.residuals.adds] == ["2.residual_add_0"]
