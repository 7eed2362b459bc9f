import json
import sys

import pytest

from dse import cli
from dse.accumulators import accuracy_by_width
from quantizers.errors import UsageError


@pytest.fixture(scope="module")
def saturated():
    return accuracy_by_width(
        "fmnist-resnet", "int4", "int4", overflow="saturate", bits="11-15", evaluation_images=200
    )


def test_accuracy_falls_with_the_width(saturated):
    assert saturated.design == {
        "workload": "fmnist-resnet",
        "weights": "int4",
        "activations": "int4",
        "recipe": "round",
        "overflow": "saturate",
        "evaluation_images": 200,
    }
    assert max(saturated.safe_bits.values()) == 21
    assert saturated.accuracy.value == pytest.approx(0.93, abs=0.02)
    assert [(width.bits, width.overflowing_layers) for width in saturated.widths] == [
        (15, 5),
        (14, 9),
        (13, 14),
    ]
    assert saturated.widths[0].drop_points.value == pytest.approx(1.5, abs=2)
    assert saturated.widths[-1].drop_points.value > 20
    assert saturated.not_run_bits == [12, 11]
    assert saturated.falls_at_bits in (13, 14)


def test_document(saturated):
    document = json.loads(json.dumps(saturated.as_json()))
    assert list(document) == [
        "design",
        "safe_bits",
        "safe_bits_of_layers",
        "accuracy",
        "falls_at_bits",
        "widths",
        "not_run_bits",
    ]
    assert document["safe_bits"] == 21
    assert list(document["widths"][0]) == [
        "accumulator_bits",
        "overflowing_layers",
        "accuracy",
        "accuracy_drop_points",
    ]


def test_wrapping_starts_below_the_safe_width():
    wrapped = accuracy_by_width("fmnist-resnet", "int4", "int4", evaluation_images=64)
    assert [width.bits for width in wrapped.widths] == [20, 19, 18, 17]
    assert wrapped.widths[-1].drop_points.value > 20


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"overflow": "clip"}, "unknown overflow 'clip'; expected one of: wrap, saturate"),
        ({"bits": "70"}, "--bits must be a width or a range within 2-64, such as 3-64, not '70'"),
        ({"bits": "9-7"}, "--bits must be a width or a range within 2-64, such as 3-64, not '9-7'"),
    ],
)
def test_wrong_use_is_answered_before_any_work(choices, message, monkeypatch):
    monkeypatch.setattr("dse.accumulators.load_workload", None)
    with pytest.raises(UsageError) as error:
        accuracy_by_width("fmnist-resnet", "int4", "int4", **choices)
    assert str(error.value) == message


def test_command(monkeypatch, capfd):
    arguments = "accumulator fmnist-resnet --weights int4 --overflow saturate --bits 13-14 --images 64"
    monkeypatch.setattr(sys, "argv", ["dse", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capfd.readouterr().out
    assert ended.value.code == 0
    assert out.startswith("fmnist-resnet, int4 x int4, round, accumulators that saturate")
    assert "64 images; accuracy falls beyond chance at" in out


def test_recipes_are_listed(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["dse", "recipes", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    document = json.loads(capfd.readouterr().out)
    assert [step["name"] for step in document["steps"]] == [
        "equalize",
        "smoothquant",
        "gptq",
        "gpfq",
        "qronos",
        "learned_rounding",
        "coordinate_descent",
        "gain_correction",
        "bias_correction",
    ]
    assert document["steps"][2]["parameters"]["damping"] == "0.01"
    assert set(document["named"]) == {
        "gptq-restored",
        "learned-restored",
        "anchor-bias",
        "anchor-gptq",
        "anchor-learned",
    }
