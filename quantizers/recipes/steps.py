"""What every step of a recipe is, and how recipes are written.

A recipe is its steps in order, joined by ``+``: ``"equalize + gptq(order='activation') + bias_correction"``.
Parameters in parentheses are TOML values. ``"round"`` is the recipe without steps: rounding to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_type_hints

from quantizers.errors import UsageError
from quantizers.prepare import PreparedModel
from quantizers.recipes.problem import LayerProblem
from quantizers.written import check_parameter, describe_written, parse_written, toml_value

Inputs = Literal["quantized", "float"]

ROUND = "round"

# Stages, in the order in which a recipe takes them.
REWRITING, ROUNDING, IMPROVING, CORRECTING = range(4)


@dataclass(frozen=True)
class Step:
    """One technique with its parameters; immutable.

    Attributes:
        name: as in a recipe.
        source: paper.
        stage: rewrites the float network, rounds weights, improves rounded weights, or corrects biases;
            in a recipe steps come in this order.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    stage: ClassVar[int]

    def __str__(self) -> str:
        changed = [
            f"{field.name}={toml_value(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            check_parameter(self.name, field.name, getattr(self, field.name), hints[field.name])

    def rewrite(self, prepared: PreparedModel) -> PreparedModel:
        """A float network that computes the same but is easier to quantize."""
        return prepared

    def solve(self, problem: LayerProblem) -> None:
        """Change ``rounded`` or ``bias_shift`` of one layer's problem."""

    @property
    def solves(self) -> bool:
        """Whether it works layer by layer, on moments of the inputs."""
        return self.stage > REWRITING

    @property
    def needs_quantized_inputs(self) -> bool:
        """Whether the moments have to be those of the network quantized so far."""
        return getattr(self, "inputs", None) == "quantized"

    @property
    def needs_paired_inputs(self) -> bool:
        """Whether it asks for the moments between those inputs and the float network's."""
        corrects = self.stage == CORRECTING  # by means and variances alone
        return self.needs_quantized_inputs and not corrects and getattr(self, "target", "float") == "float"


def check_range(step: str, name: str, value: float, low: float, high: float) -> None:
    """Raises :class:`UsageError` unless ``low <= value <= high``."""
    if not low <= value <= high:
        msg = f"{step}: {name} must lie in {low:g}..{high:g}, not {value!r}"
        raise UsageError(msg, given=value, expected=[f"{low:g}..{high:g}"])


def parse_step(text: str, known: dict[str, type[Step]]) -> Step:
    """The step written as ``name`` or ``name(parameter=value, ...)``.

    Raises:
        UsageError: an unknown step or parameter, or a value that it cannot take.
    """
    return parse_written(
        text,
        known,
        what="a step",
        kind="recipe step",
        choices=[*known, ROUND],
        example="order='activation'",
    )


def describe_step(kind: type[Step]) -> dict[str, Any]:
    """Name, source, what it does and the parameters with their defaults, as they are written."""
    return describe_written(kind)
