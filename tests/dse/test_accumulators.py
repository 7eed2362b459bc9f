"""Accuracy on accumulators of falling width, from Python and from the command line."""

import json
import sys

import numpy as np
import pytest

from dse import accumulators, cli
from dse.accumulators import AccumulatorResult, WidthResult, accuracy_by_width
from dse.metrics import Figure, Provenance
from dse.statistics import accuracy_figure
from quantizers.errors import UsageError
from quantizers.recipes import NAMED, STEPS

RESNET = ("fmnist-resnet", "int4", "int4")
SAFE_BITS = {
    "conv1": 18,
    "blocks.0.conv1": 14,
    "blocks.0.conv2": 14,
    "blocks.0.shortcut.0": 11,
    "blocks.1.conv1": 14,
    "blocks.1.conv2": 14,
    "blocks.2.conv1": 14,
    "blocks.2.conv2": 15,
    "blocks.2.shortcut.0": 11,
    "blocks.3.conv1": 15,
    "blocks.3.conv2": 15,
    "blocks.4.conv1": 15,
    "blocks.4.conv2": 16,
    "blocks.4.shortcut.0": 12,
    "blocks.5.conv1": 16,
    "blocks.5.conv2": 16,
    "fc": 21,
}


@pytest.fixture(scope="module")
def wrapping():
    """16 and 15 bits are asked for too, but never reached."""
    return accuracy_by_width(*RESNET, bits="15-19", evaluation_images=200)


@pytest.fixture
def dse(monkeypatch, capfd):
    """Run the command line in this process; gives (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dse", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


def rows(result):
    return [(w.bits, w.overflowing_layers, w.accuracy.value, w.drop_points.value) for w in result.widths]


class TestAccuracy:
    def test_on_sums_that_wrap(self, wrapping):
        assert wrapping.safe_bits == SAFE_BITS
        assert wrapping.accuracy.value == 0.93
        # Over 20 points are lost at 17 bits, so the rest is left out.
        assert rows(wrapping) == [(19, 1, 0.93, 0.0), (18, 1, 0.92, 1.0), (17, 2, 0.305, 62.5)]
        assert wrapping.not_run_bits == [16, 15]
        assert wrapping.falls_at_bits == 17

    def test_on_sums_that_saturate(self):
        result = accuracy_by_width(*RESNET, overflow="saturate", bits="12-15", evaluation_images=200)
        assert result.safe_bits == SAFE_BITS
        assert rows(result) == [(15, 5, 0.915, 1.5), (14, 9, 0.91, 2.0), (13, 14, 0.7, 23.0)]
        assert result.not_run_bits == [12]
        assert result.falls_at_bits == 13
        assert result.design["overflow"] == "saturate"

    def test_after_a_recipe(self):
        result = accuracy_by_width(
            *RESNET, recipe=" bias_correction ", overflow="saturate", bits="14", evaluation_images=200
        )
        assert result.design["recipe"] == "bias_correction"
        assert result.accuracy.value == 0.93
        assert rows(result) == [(14, 9, 0.875, 5.5)]
        assert result.not_run_bits == []
        # The interval of this drop, 0.75 to 10.14 points, leaves 0 out.
        assert result.falls_at_bits == 14

    def test_begins_one_bit_below_the_safe_width(self, wrapping):
        """By default; every width is offered to *progress*, as far as it goes on."""
        offered = []

        def first_two(widths, total):
            offered.extend(widths)
            assert total == len(offered)
            yield from offered[:2]

        result = accuracy_by_width(*RESNET, evaluation_images=200, progress=first_two)
        assert offered == list(range(20, 1, -1))
        assert rows(result) == [(20, 1, 0.93, 0.0), (19, 1, 0.93, 0.0)]
        assert result.widths[1] == wrapping.widths[0]
        assert result.falls_at_bits is None


class TestDocument:
    def test_of_a_result(self, wrapping):
        document = wrapping.as_json()
        assert list(document) == [
            "design",
            "safe_bits",
            "safe_bits_of_layers",
            "accuracy",
            "falls_at_bits",
            "widths",
            "not_run_bits",
        ]
        assert document["not_run_bits"] == [16, 15]
        assert document["design"] == {
            "workload": "fmnist-resnet",
            "weights": "int4",
            "activations": "int4",
            "recipe": "round",
            "overflow": "wrap",
            "evaluation_images": 200,
        }
        assert document["safe_bits"] == 21
        assert document["safe_bits_of_layers"] == SAFE_BITS
        assert document["falls_at_bits"] == 17
        correct = np.arange(200) < 186
        assert document["accuracy"] == accuracy_figure(correct).as_json()
        assert [width["accumulator_bits"] for width in document["widths"]] == [19, 18, 17]
        last = document["widths"][-1]
        assert list(last) == ["accumulator_bits", "overflowing_layers", "accuracy", "accuracy_drop_points"]
        assert last["overflowing_layers"] == 2
        assert last["accuracy"] == accuracy_figure(np.arange(200) < 61).as_json()
        drop = last["accuracy_drop_points"]
        assert (drop["value"], drop["provenance"]) == (62.5, "measured")
        assert drop["interval"] == pytest.approx((55.11363741456301, 68.64873882306075), rel=1e-12)
        json.dumps(document, allow_nan=False)

    @pytest.mark.parametrize(
        ("drops", "falls_at"),
        [
            ([(20, 0.0, (-1.0, 1.0)), (19, 2.0, (-0.1, 4.1))], None),
            ([(20, 0.0, (-1.0, 1.0)), (19, 2.0, (0.1, 3.9)), (18, 30.0, (25.0, 35.0))], 19),
            # Once beyond chance and then not again, as it can come by chance.
            ([(20, 3.0, (0.1, 5.9)), (19, 2.0, (-0.1, 4.1)), (18, 9.0, (5.0, 13.0))], 20),
            ([(20, 2.0, (0.0, 4.0))], None),
            ([(20, -3.0, (-5.0, -1.0))], None),
            ([(20, 30.0, None), (19, 50.0, (40.0, 60.0))], 19),
            ([], None),
        ],
    )
    def test_falls_at_the_widest_loss_beyond_chance(self, drops, falls_at):
        accuracy = Figure(0.5, Provenance.MEASURED)
        widths = [
            WidthResult(bits, 1, accuracy, Figure(value, Provenance.MEASURED, interval))
            for bits, value, interval in drops
        ]
        result = AccumulatorResult({}, {"a": 21, "b": 23}, accuracy, widths, [])
        assert result.falls_at_bits == falls_at
        document = result.as_json()
        assert (document["falls_at_bits"], document["safe_bits"]) == (falls_at, 23)


class TestErrors:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"overflow": "wrp"}, "unknown overflow 'wrp' (did you mean 'wrap'?); expected one of: wrap, saturate"),
            ({"bits": "1"}, "--bits must be a width or a range within 2-64, such as 3-64, not '1'"),
            ({"bits": "8-65"}, "--bits must be a width or a range within 2-64, such as 3-64, not '8-65'"),
            ({"bits": "20-10"}, "--bits must be a width or a range within 2-64, such as 3-64, not '20-10'"),
            ({"recipe": "gtpq"},
             "unknown recipe step 'gtpq' (did you mean 'gptq'?); expected one of: equalize, smoothquant, gptq, gpfq, "
             "qronos, learned_rounding, coordinate_descent, gain_correction, bias_correction, round"),
            ({"recipe": "round + gptq"}, "round is the recipe without steps, not a step: round + gptq"),
            ({"weights": "int1"}, "no format 'int1': int formats have 2 to 16 bits, not 1"),
            ({"weights": "ue2m2"},
             "weights cannot be ue2m2: give the signed format; inputs never negative lose the sign bit"),
            ({"activations": "ternary"}, "activations cannot be ternary, which is for weights"),
            ({"activations": "mxfp4"},
             "'mxfp4' shares scales between elements; a scalar format is needed here, such as 'e4m3'"),
        ],
        ids=str,
    )  # fmt: skip
    def test_come_before_the_workload_is_loaded(self, monkeypatch, wrong, message):
        monkeypatch.setattr(accumulators, "load_workload", lambda *_, **__: pytest.fail("loaded"))
        arguments = dict(zip(("workload", "weights", "activations"), RESNET, strict=True))
        with pytest.raises(UsageError) as error:
            accuracy_by_width(**{**arguments, **wrong})
        assert str(error.value) == message
        assert error.value.given == next(iter(wrong.values()))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"workload": "fmnist-restnet"},
             "unknown workload 'fmnist-restnet' (did you mean 'fmnist-resnet'?); expected one of: fmnist-resnet, "
             "fmnist-mobilenet, fmnist-vit, efficientnet-lite0, resnet18, mobilenet_v2, vit_b_32, MODULE:FUNCTION"),
            ({"evaluation_images": 0}, "evaluation_images must be between 1 and 4000 (all there are), not 0"),
            ({"evaluation_images": 4001}, "evaluation_images must be between 1 and 4000 (all there are), not 4001"),
        ],
        ids=str,
    )  # fmt: skip
    def test_of_the_workload_come_before_it_is_run(self, monkeypatch, wrong, message):
        monkeypatch.setattr(accumulators, "prepare", lambda *_: pytest.fail("run"))
        arguments = dict(zip(("workload", "weights", "activations"), RESNET, strict=True))
        with pytest.raises(UsageError) as error:
            accuracy_by_width(**{**arguments, **wrong})
        assert str(error.value) == message


class TestCommands:
    def test_accumulator_as_json(self, dse, wrapping):
        code, out, err = dse(
            "accumulator", "fmnist-resnet", "--weights", "int4", "--bits", "15-19", "--images", 200, "--json"
        )
        assert (code, err) == (0, "")
        assert json.loads(out) == json.loads(json.dumps(wrapping.as_json()))

    def test_accumulator_as_a_table(self, dse):
        code, out, err = dse(
            "accumulator", "fmnist-resnet", "--weights", "int4", "--activations", "e2m1",
            "--recipe", "bias_correction", "--overflow", "saturate", "--bits", "18", "--images", 50,
        )  # fmt: skip
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].rstrip() == (
            "fmnist-resnet, int4 x e2m1, bias_correction, accumulators that saturate"
        )
        cells = [
            [cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")
        ]
        assert cells == [["21 or more", "0", "94.00", ""], ["18", "1", "94.00", "0.00 (-3.77 to 3.77)"]]
        assert lines[-1] == "50 images; accuracy falls beyond chance at none of these widths"

    def test_accumulator_says_where_accuracy_falls(self, dse, monkeypatch, wrapping):
        monkeypatch.setattr(accumulators, "accuracy_by_width", lambda *_, **__: wrapping)
        code, out, _ = dse("accumulator", "fmnist-resnet", "--weights", "int4")
        assert code == 0
        assert out.splitlines()[-2:] == [
            "200 images; accuracy falls beyond chance at 17 bits",
            "16 bits and fewer were not run: more than 20 points are lost above",
        ]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--overflow", "clip"], "unknown overflow 'clip'; expected one of: wrap, saturate"),
            (["--bits", "70"], "--bits must be a width or a range within 2-64, such as 3-64, not '70'"),
            (["--images", "0"], "evaluation_images must be between 1 and 4000 (all there are), not 0"),
        ],
    )
    def test_accumulator_used_wrongly(self, dse, wrong, message):
        command = ["accumulator", "fmnist-resnet", "--weights", "int4", *wrong]
        assert dse(*command) == (2, "", f"error: {message}\n")
        code, out, err = dse(*command, "--json")
        assert (code, err) == (2, f"error: {message}\n")
        assert json.loads(out)["error"] == message
        assert json.loads(out)["given"] == wrong[1]

    def test_accumulator_needs_weights(self, dse):
        message = "Missing option '--weights'."
        assert dse("accumulator", "fmnist-resnet") == (
            2,
            "",
            f"error: {message}\ntry 'dse accumulator --help'\n",
        )

    def test_recipes_as_json(self, dse):
        code, out, err = dse("recipes", "--json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert list(document) == ["steps", "named"]
        assert [step["name"] for step in document["steps"]] == list(STEPS)
        (gain,) = (step for step in document["steps"] if step["name"] == "gain_correction")
        assert gain == {
            "name": "gain_correction",
            "what": "Scales each output channel so that it varies as in the float network.",
            "source": "arXiv 2006.10518, section 3.4 (batch-norm tuning), in closed form",
            "parameters": {"limit": "1.5", "inputs": "'quantized'"},
        }
        assert document["named"] == NAMED

    def test_recipes_as_text(self, dse):
        code, out, err = dse("recipes")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert len(lines) == 3 * len(STEPS) + 3 + len(NAMED)
        assert lines[:3] == [
            "equalize(iterations=20)",
            "    Evens out the weight ranges of channels between layers, as far as the function stays the same.",
            "    arXiv 1906.04721, section 4.1, in Brevitas",
        ]
        assert [line.partition("(")[0] for line in lines[: 3 * len(STEPS) : 3]] == list(STEPS)
        assert lines[3 * len(STEPS) :][:3] == [
            "",
            "A recipe joins steps in this order: 'equalize + gptq(damping=0.1) + bias_correction'.",
            "'round' has no step. By name:",
        ]
        assert lines[-len(NAMED) :] == [f"- {name}: {text}" for name, text in NAMED.items()]
