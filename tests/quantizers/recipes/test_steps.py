from dataclasses import FrozenInstanceError, fields

import pytest

from quantizers.recipes import STEPS, describe_step
from quantizers.recipes.gptq import Gptq
from quantizers.recipes.steps import parse_step


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("gptq", Gptq()),
        ("  gptq ( ) ", Gptq()),
        ("gptq(order='given', damping=0.1)", Gptq(order="given", damping=0.1)),
        ('gptq(order="given",inputs="float")', Gptq(order="given", inputs="float")),
        ("gptq(damping=1)", Gptq(damping=1)),
    ],
)
def test_written_forms(text, step):
    assert parse_step(text, STEPS) == step


@pytest.mark.parametrize("kind", STEPS.values(), ids=STEPS)
def test_defaults_are_written_as_the_name(kind):
    assert str(kind()) == kind.name
    assert parse_step(kind.name, STEPS) == kind()


@pytest.mark.parametrize("kind", STEPS.values(), ids=STEPS)
def test_description(kind):
    described = describe_step(kind)
    assert described["name"] == kind.name
    assert described["what"].endswith(".")
    assert described["source"].startswith("arXiv ")
    assert list(described["parameters"]) == [field.name for field in fields(kind)]
    written = ", ".join(f"{name}={value}" for name, value in described["parameters"].items())
    assert parse_step(f"{kind.name}({written})", STEPS) == kind()


def test_immutable():
    with pytest.raises(FrozenInstanceError):
        Gptq().order = "given"
