"""What every step of a recipe is, and how recipes are written.

A recipe is its steps in order, joined by ``+``: ``"equalize + gptq(order='activation') + bias_correction"``.
Parameters in parentheses are TOML values. ``"round"`` is the recipe without steps: rounding to nearest.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from quantizers.errors import UsageError, unknown_choice
from quantizers.prepare import PreparedModel
from quantizers.recipes.problem import LayerProblem

Inputs = Literal["quantized", "float"]

ROUND = "round"

# Stages, in the order in which a recipe takes them.
REWRITING, ROUNDING, IMPROVING, CORRECTING = range(4)

_STEP = re.compile(r"\s*([a-z_]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


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
            f"{field.name}={_toml(getattr(self, field.name))}"
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


def check_parameter(step: str, name: str, value: object, wanted: Any) -> None:
    """Raises :class:`UsageError` unless *value* is of the type *wanted* (a type or a Literal)."""
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise unknown_choice(f"{name} of {step}", value, get_args(wanted))
        return
    number = wanted is float and isinstance(value, int | float) and not isinstance(value, bool)
    if not (number or type(value) is wanted):
        msg = f"{step}: {name} must be of type {wanted.__name__}, not {value!r}"
        raise UsageError(msg, given=value, expected=[wanted.__name__])


def check_range(step: str, name: str, value: float, low: float, high: float) -> None:
    """Raises :class:`UsageError` unless ``low <= value <= high``."""
    if not low <= value <= high:
        msg = f"{step}: {name} must lie in {low:g}..{high:g}, not {value!r}"
        raise UsageError(msg, given=value, expected=[f"{low:g}..{high:g}"])


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def parse_step(text: str, known: dict[str, type[Step]]) -> Step:
    """The step written as ``name`` or ``name(parameter=value, ...)``.

    Raises:
        UsageError: an unknown step or parameter, or a value that it cannot take.
    """
    match = _STEP.fullmatch(text)
    if match is None:
        msg = f"a step is written name or name(parameter=value, ...), not {text.strip()!r}"
        raise UsageError(msg, given=text.strip(), expected=list(known))
    name, arguments = match.groups()
    if name not in known:
        raise unknown_choice("recipe step", name, [*known, ROUND])
    kind = known[name]
    given = _arguments(name, arguments or "")
    parameters = [field.name for field in fields(kind)]
    for parameter in given:
        if parameter not in parameters:
            raise unknown_choice(f"parameter of {name}", parameter, parameters)
    return kind(**given)


def _arguments(step: str, text: str) -> dict[str, Any]:
    try:
        arguments: dict[str, Any] = tomllib.loads(f"arguments = {{ {text} }}")["arguments"]
        return arguments
    except tomllib.TOMLDecodeError as error:
        msg = f"{step}({text}): parameters must be TOML, such as order='activation': {error}"
        raise UsageError(msg, given=text, expected=["parameter=value"]) from None


def describe_step(kind: type[Step]) -> dict[str, Any]:
    """Name, source, what it does and the parameters with their defaults, as they are written."""
    summary = (kind.__doc__ or "").strip().partition("\n")[0].replace("``", "")
    defaults = {f.name: _toml(f.default) for f in fields(kind) if f.default is not MISSING}
    return {"name": kind.name, "what": summary, "source": kind.source, "parameters": defaults}
