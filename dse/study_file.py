"""Study files as such: reading, overrides, and one message for all that is wrong in one."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from costmodel import PARTS
from dse.metrics import METRICS
from quantizers.errors import UsageError, unknown_choice


def known(kind: str, choices: Iterable[str]) -> BeforeValidator:
    """Of a field that takes one of *choices*."""
    names = list(choices)

    def check(name: Any) -> Any:
        if name not in names:
            raise unknown_choice(kind, name, names)
        return name

    return BeforeValidator(check)


def listed(value: Any) -> Any:
    """A single value stands for a list of one, so that a study may sweep any choice."""
    return value if isinstance(value, list) else [value]


def combinations(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Every choice of one value of each parameter; a value that is no list is the only one."""
    values = [listed(value) for value in parameters.values()]
    return [dict(zip(parameters, combination, strict=True)) for combination in itertools.product(*values)]


def names_once(kind: str, names: list[str]) -> None:
    """Raise :class:`UsageError` for a name that is listed twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"{kind} {twice[0]!r} is listed twice"
        raise UsageError(msg, given=twice[0], expected=[f"each {kind} once"])


MetricName = Annotated[str, known("metric", METRICS)]
PartName = Annotated[str, known("part", PARTS)]


class Section(BaseModel):
    """A table of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FrontChoice(Section):
    """Two metrics to draw a Pareto front for."""

    x: MetricName
    y: MetricName

    @model_validator(mode="after")
    def _two_metrics(self) -> FrontChoice:
        if self.x == self.y:
            msg = f"a front needs two different metrics, not {self.x!r} twice"
            raise UsageError(msg, given=self.x)
        return self


class StudyFile(Section):
    """What all kinds of studies have."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    fronts: Annotated[list[FrontChoice], Field(min_length=1)]
    point_timeout_s: float = Field(1800, gt=0)

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """The study of a TOML (or resolved JSON) file, with ``key=value`` overrides.

        Raises:
            UsageError: the file cannot be read, is not TOML, or does not describe a study.
        """
        document = read_document(path)
        for override in overrides:
            _apply(document, override, cls)
        return cls.parse(document, source=str(path))

    @classmethod
    def parse(cls, document: dict[str, Any], *, source: str = "study") -> Self:
        """The study of a parsed document; every problem of it is told in one message."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise _explain(error, source, cls) from None


def read_document(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML (or resolved JSON) file.

    Raises:
        UsageError: the file cannot be read or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        listing = f"; study files there: {', '.join(near)}" if near else ""
        msg = f"no study file {str(path)!r}{listing}"
        raise UsageError(msg, given=path, expected=near or ["a path to a TOML file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read study file {str(path)!r}: {error}"
        raise UsageError(msg, given=path, expected=["a readable TOML file"]) from None
    try:
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        msg = f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}"
        raise UsageError(msg, given=path, expected=["a TOML file"]) from None


def _apply(document: dict[str, Any], override: str, study: type[StudyFile]) -> None:
    """Set ``a.b.0.c=value`` in *document*; the value is TOML where it parses, else text."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        msg = f"--set needs key=value, such as hardware.dot_length=1024, not {override!r}"
        raise UsageError(msg, given=override, expected=["key=value"])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    node: Any = document
    *parents, last = key.strip().split(".")
    try:
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        msg = f"--set {override!r}: the study has no place {key!r}"
        raise UsageError(msg, given=key, expected=list(study.model_fields)) from None


# What pydantic says of its own types, by its error types, in the words of a study file.
_EXPECTED = {
    "string_type": "text in quotes",
    "list_type": "a list",
    "model_type": "a table of keys and values",
    "too_short": "a list of at least one entry",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "greater_than": "more than {gt:g}",
}


def _explain(error: ValidationError, source: str, study: type[StudyFile]) -> UsageError:
    """One message for all problems of a study, each with its place, what was given and expected."""
    # A pair that lacks both formats is one problem, not two.
    found = [_problem(entry, study) for entry in error.errors()]
    problems = list({str(problem): problem for problem in found}.values())
    first = problems[0]
    if len(problems) == 1:
        return UsageError(f"{source}: {first}", given=first.given, expected=first.expected)
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return UsageError(
        f"{source} has {len(problems)} problems:{lines}", given=first.given, expected=first.expected
    )


def _problem(entry: Any, study: type[StudyFile]) -> UsageError:
    place = ".".join(str(part) for part in entry["loc"]) or "study"
    given = entry.get("input")
    context = entry.get("ctx", {})
    match entry["type"]:
        case "value_error" if isinstance(context.get("error"), UsageError):
            cause = context["error"]
            for name in cause.expected:
                if isinstance(given, dict) and given.get(name) == []:  # there, so not missing
                    return _wrong(f"{place}.{name}", [], _EXPECTED["too_short"])
            return UsageError(f"{place}: {cause}", given=cause.given, expected=cause.expected)
        case "extra_forbidden":
            choices = _fields_at(entry["loc"][:-1], study)
            unknown = unknown_choice("key", entry["loc"][-1], choices)
            where = ".".join(str(part) for part in entry["loc"][:-1]) or "study"
            return UsageError(f"{where}: {unknown}", given=unknown.given, expected=unknown.expected)
        case "missing" | "too_short" | "too_long" | "tuple_type" if "pairs" in entry["loc"]:
            pair = ".".join(str(part) for part in entry["loc"][:3])
            return _wrong(pair, given, "a pair of format names, [weights, activations]")
        case "missing":
            return UsageError(f"{place}: is missing", given="", expected=[place])
        case "literal_error":
            choices = [part.strip(" '") for part in context["expected"].replace(" or ", ",").split(",")]
            key = next(part for part in reversed(entry["loc"]) if isinstance(part, str))
            unknown = unknown_choice(key, given, choices)
            return UsageError(f"{place}: {unknown}", given=given, expected=unknown.expected)
        case "string_pattern_mismatch":
            near = "-".join(re.findall(r"[A-Za-z0-9._-]+", given)).lstrip("._-")
            hint = f" (did you mean {near!r}?)" if near else ""
            msg = (
                f"{place}: must be letters, digits, '.', '_' and '-', the first a letter or a digit, "
                f"not {given!r}{hint}"
            )
            return UsageError(msg, given=given, expected=[near] if near else [])
        case "list_type" if entry["loc"][-1] in ("bits", "families"):
            return _wrong(place, given, f"a list, such as [{given!r}]")
        case kind if kind in _EXPECTED:
            return _wrong(place, given, _EXPECTED[kind].format(**context))
        case _:
            return UsageError(f"{place}: {entry['msg']}, not {given!r}", given=given, expected=[entry["msg"]])


def _wrong(place: str, given: object, expected: str) -> UsageError:
    return UsageError(f"{place}: must be {expected}, not {given!r}", given=given, expected=[expected])


def _fields_at(location: tuple[int | str, ...], study: type[StudyFile]) -> list[str]:
    """The keys that the table at a place of the file may have."""
    if not location:
        return list(study.model_fields)
    kind = study.model_fields[str(location[0])].annotation
    section = next((part for part in (kind, *get_args(kind)) if _is_section(part)), study)
    return list(section.model_fields)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
