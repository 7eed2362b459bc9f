"""Values that are written as a name with parameters: ``gptq(damping=0.1)``, ``rotated(bits=4, sinks=1)``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, get_args, get_origin

from quantizers.errors import UsageError, unknown_choice

_WRITTEN = re.compile(r"\s*([a-z_]+)\s*(?:\((.*)\))?\s*", re.DOTALL)

T = TypeVar("T")


def parse_written(
    text: str, known: Mapping[str, type[T]], *, what: str, kind: str, choices: Iterable[str], example: str
) -> T:
    """The dataclass of *known* written as ``name`` or ``name(parameter=value, ...)``, values as in TOML.

    Args:
        text: as written.
        known: dataclasses by name.
        what: with its article, for messages, such as ``a step``.
        kind: the same as one of a list, such as ``recipe step``.
        choices: names that messages list.
        example: of a parameter, as it is written.

    Raises:
        UsageError: an unknown name or parameter, or a value that it cannot take.
    """
    match = _WRITTEN.fullmatch(text)
    if match is None:
        msg = f"{what} is written name or name(parameter=value, ...), not {text.strip()!r}"
        raise UsageError(msg, given=text.strip(), expected=list(known))
    name, written = match.groups()
    if name not in known:
        raise unknown_choice(kind, name, choices)
    arguments = _arguments(name, written or "", example)
    parameters = [field.name for field in fields(known[name])]  # type: ignore[arg-type]
    for parameter in arguments:
        if parameter not in parameters:
            raise unknown_choice(f"parameter of {name}", parameter, parameters)
    return known[name](**arguments)


def _arguments(name: str, text: str, example: str) -> dict[str, Any]:
    try:
        arguments: dict[str, Any] = tomllib.loads(f"arguments = {{ {text} }}")["arguments"]
    except tomllib.TOMLDecodeError as error:
        msg = f"{name}({text}): parameters must be TOML, such as {example}: {error}"
        raise UsageError(msg, given=text, expected=["parameter=value"]) from None
    return arguments


def toml_value(value: Any) -> str:
    """A value as it is written."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def describe_written(kind: Any) -> dict[str, Any]:
    """Name, source, what it does and the parameters with their defaults, as they are written."""
    summary = (kind.__doc__ or "").strip().partition("\n")[0].replace("``", "")
    defaults = {f.name: toml_value(f.default) for f in fields(kind) if f.default is not MISSING}
    return {"name": kind.name, "what": summary, "source": kind.source, "parameters": defaults}


def check_parameter(owner: str, name: str, value: object, wanted: Any) -> None:
    """Raises :class:`UsageError` unless a parameter's *value* is of the type *wanted*, or of a Literal."""
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise unknown_choice(f"{name} of {owner}", value, get_args(wanted))
        return
    number = wanted is float and isinstance(value, int | float) and not isinstance(value, bool)
    if not (number or type(value) is wanted):
        msg = f"{owner}: {name} must be of type {wanted.__name__}, not {value!r}"
        raise UsageError(msg, given=value, expected=[wanted.__name__])
