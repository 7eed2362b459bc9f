"""Study files: what to sweep, read from TOML and checked before any work starts."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from costmodel import PARTS
from dse.accuracy import settings_of
from dse.design import DesignPoint
from dse.evaluation import BEST_MAC, MAC_CHOICES, check_point
from dse.metrics import METRICS
from dse.workloads import check_workload
from hw.blocks import ANCHOR_DOT_LENGTH
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import (
    BlockFormat,
    IntegerFormat,
    ScalarFormat,
    minifloat_splits,
    parse_format,
    parse_scalar_format,
)
from quantizers.recipes import ROUND, Recipe

# The anchor study's choice (arXiv 2311.12359).
DEFAULT_PERCENTILE = 99.999

# What only the datapath of a point has.
_DATAPATH_METRICS = frozenset(
    {"luts", "lut_cells", "carries", "carry_positions", "ffs", "dsps", "brams", "lutrams"}
    | {"logic_delay_ns", "accumulator_bits", "activation_product_luts"}
    | {"cycles_per_product", "lut_cycles_per_product"}
)
_CHANNEL = "channel"
_FLOAT = "float"

Family = Literal["integer", "minifloat"]


def _listed(value: Any) -> Any:
    """A single value stands for a list of one, so that a study may sweep any choice."""
    return value if isinstance(value, list) else [value]


def _known_format(name: Any) -> str:
    return parse_scalar_format(_format_text(name)).name


def _known_any_format(name: Any) -> str:
    return parse_format(_format_text(name)).name


def _known_format_or_float(name: Any) -> str:
    return _FLOAT if name == _FLOAT else _known_format(name)


def _format_text(name: Any) -> str:
    if isinstance(name, str):
        return name
    msg = f"a format is a name in quotes, such as 'int8' or 'e4m3', not {name!r}"
    raise UsageError(msg, given=name, expected=["'int8'", "'e4m3'"])


def _known_group(group: Any) -> Any:
    if group == _CHANNEL or (type(group) is int and group > 0):
        return group
    msg = f"weight_group must be {_CHANNEL!r} or a positive number of features, not {group!r}"
    raise UsageError(msg, given=group, expected=[_CHANNEL, "32", "64", "128"])


def _known(kind: str, choices: Iterable[str]) -> BeforeValidator:
    names = list(choices)

    def check(name: Any) -> Any:
        if name not in names:
            raise unknown_choice(kind, name, names)
        return name

    return BeforeValidator(check)


def _known_recipe(text: Any) -> Any:
    return str(Recipe.parse(text)) if isinstance(text, str) else text


_NOT_EMPTY = Field(min_length=1)
RecipeText = Annotated[str, BeforeValidator(_known_recipe)]
FormatName = Annotated[str, BeforeValidator(_known_format)]
ResidualFormat = Annotated[str, BeforeValidator(_known_format_or_float)]
AnyFormatName = Annotated[str, BeforeValidator(_known_any_format)]
WeightGroup = Annotated[int | Literal["channel"], BeforeValidator(_known_group)]
WeightScale = Literal["mse", "max", "mse_power_of_two", "mean"]
ActivationScale = Literal["mse", "percentile", "mse_power_of_two"]
MetricName = Annotated[str, _known("metric", METRICS)]
PartName = Annotated[str, _known("part", PARTS)]
BlockName = Annotated[str, _known("block", MAC_CHOICES)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkloadChoice(_Section):
    """A network with its data; counts default to all images there are."""

    name: str
    data: str | None = None
    calibration_images: int | None = Field(None, ge=1)
    evaluation_images: int | None = Field(None, ge=1)

    @property
    def path(self) -> Path | None:
        """The data folder, relative to the working folder of the sweep."""
        return None if self.data is None else Path(self.data)


class FormatChoice(_Section):
    """Which (weight, activation) pairs to sweep.

    Either ``pairs`` as they stand, or every combination of ``families`` x ``bits``: with
    ``pairing = "equal"`` weights and activations share the format, with
    ``"activations_at_least_weights"`` they share the family and activations have no fewer bits.
    """

    families: list[Family] = Field(default_factory=list)
    bits: list[Annotated[int, Field(ge=2, le=8)]] = Field(default_factory=list)
    pairing: Literal["equal", "activations_at_least_weights"] = "equal"
    pairs: list[tuple[AnyFormatName, AnyFormatName]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_way_of_choosing(self) -> FormatChoice:
        grid = bool(self.families) or bool(self.bits)
        if grid == bool(self.pairs):
            msg = "give either 'pairs' or both 'families' and 'bits', not both and not neither"
            raise UsageError(msg, expected=["pairs", "families and bits"])
        if grid and not (self.families and self.bits):
            missing = "bits" if self.families else "families"
            msg = f"'families' and 'bits' belong together; {missing!r} is missing"
            raise UsageError(msg, expected=[missing])
        return self

    def resolve(self) -> list[tuple[str, str]]:
        """The pairs, in order, each once."""
        if self.pairs:
            return list(dict.fromkeys(self.pairs))
        pairs = itertools.chain.from_iterable(self._family_pairs(family) for family in self.families)
        return list(dict.fromkeys(pairs))

    def _family_pairs(self, family: Family) -> Iterator[tuple[str, str]]:
        bits = sorted(set(self.bits))
        for weight_bits in bits:
            weights = _formats(family, weight_bits)
            if self.pairing == "equal":
                yield from ((w.name, w.name) for w in weights)
                continue
            for activation_bits in bits:
                if activation_bits >= weight_bits:
                    activations = _formats(family, activation_bits)
                    yield from ((w.name, a.name) for w in weights for a in activations)


def _formats(family: Family, bits: int) -> list[ScalarFormat]:
    return [IntegerFormat(bits)] if family == "integer" else list(minifloat_splits(bits))


class QuantizationChoice(_Section):
    """How formats are put on the network; a list sweeps the choice.

    ``weight_group`` is ``"channel"`` (one weight scale per output channel) or how many features share a
    scale; ``residual_format`` is ``"float"`` or the format in which two activations are added. See
    :class:`quantizers.quantize.QuantizationSettings` for the rest.
    """

    edge_format: FormatName = "int8"
    residual_format: ResidualFormat = _FLOAT
    integer_weights: Annotated[list[Literal["narrow", "full"]], BeforeValidator(_listed), _NOT_EMPTY] = [
        "narrow"
    ]
    weight_scale: Annotated[list[WeightScale], BeforeValidator(_listed), _NOT_EMPTY] = ["mse"]
    weight_group: Annotated[list[WeightGroup], BeforeValidator(_listed), _NOT_EMPTY] = ["channel"]
    activation_scale: Annotated[list[ActivationScale], BeforeValidator(_listed), _NOT_EMPTY] = ["mse"]
    percentile: Annotated[float, Field(gt=0, le=100)] | None = None
    activation_granularity: Annotated[
        list[Literal["tensor", "token"]], BeforeValidator(_listed), _NOT_EMPTY
    ] = ["tensor"]
    bias: Annotated[list[Literal["fixed", "float"]], BeforeValidator(_listed), _NOT_EMPTY] = ["fixed"]
    unsigned_activations: bool = True
    recipe: Annotated[list[RecipeText], BeforeValidator(_listed), _NOT_EMPTY] = [ROUND]

    @model_validator(mode="after")
    def _percentile_is_used(self) -> QuantizationChoice:
        if self.percentile is not None and "percentile" not in self.activation_scale:
            msg = "'percentile' is given but activation_scale is not 'percentile'; it would have no effect"
            raise UsageError(msg, given=self.percentile, expected=['activation_scale = "percentile"'])
        return self


class HardwareChoice(_Section):
    """The datapath that is costed for each pair of formats."""

    block: BlockName = BEST_MAC
    dot_length: Annotated[int, Field(ge=1)] = ANCHOR_DOT_LENGTH
    part: PartName = "xc7z020"


class FrontChoice(_Section):
    """Two metrics to draw a Pareto front for."""

    x: MetricName
    y: MetricName

    @model_validator(mode="after")
    def _two_metrics(self) -> FrontChoice:
        if self.x == self.y:
            msg = f"a front needs two different metrics, not {self.x!r} twice"
            raise UsageError(msg, given=self.x)
        return self


class Study(_Section):
    """A whole study, resolved: what ``study.json`` in a run folder holds."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    seed: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed), Field(min_length=1)] = [0]
    workloads: Annotated[list[WorkloadChoice], Field(min_length=1)]
    formats: FormatChoice
    quantization: QuantizationChoice = QuantizationChoice()
    hardware: HardwareChoice = HardwareChoice()
    fronts: Annotated[list[FrontChoice], Field(min_length=1)] = [FrontChoice(x="luts", y="accuracy")]
    point_timeout_s: float = Field(1800, gt=0)

    @model_validator(mode="after")
    def _workloads_once(self) -> Study:
        names = [workload.name for workload in self.workloads]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"workload {twice[0]!r} is listed twice"
            raise UsageError(msg, given=twice[0], expected=["each workload once"])
        return self

    @model_validator(mode="after")
    def _choices_go_together(self) -> Study:
        points = self.points()
        for point in points:
            _check_choices(point)
        wanted = [name for front in self.fronts for name in (front.x, front.y) if name in _DATAPATH_METRICS]
        if wanted and not any(point.has_integer_sums for point in points):
            msg = (
                f"no point has {wanted[0]!r} for the front: all have several scales within a sum (weight "
                "groups or block formats), and such a datapath is not costed"
            )
            raise UsageError(msg, given=wanted[0], expected=["weight_memory_kib", "weight_bits"])
        return self

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Study:
        """The study of a TOML (or resolved JSON) file, with ``key=value`` overrides.

        Raises:
            UsageError: the file cannot be read, is not TOML, or does not describe a study.
        """
        document = _read(path)
        for override in overrides:
            _apply(document, override)
        return cls.parse(document, source=str(path))

    @classmethod
    def parse(cls, document: dict[str, Any], *, source: str = "study") -> Study:
        """The study of a parsed document; every problem of it is told in one message."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise _explain(error, source) from None

    def check(self) -> None:
        """Check what lies outside the file: packages, data and checkpoints, and that every pair of
        formats can be quantized and built.

        Raises:
            UsageError: before anything is computed or written.
            MissingExtraError: an optional package is not installed.
        """
        for workload in self.workloads:
            check_workload(
                workload.name,
                workload.path,
                calibration_images=workload.calibration_images,
                evaluation_images=workload.evaluation_images,
            )
        # The settings of all points were checked when the study was read; what is left is the datapath.
        for point in {(p.weights, p.activations): p for p in self.points() if p.has_integer_sums}.values():
            check_point(point)

    def points(self) -> list[DesignPoint]:
        """Every design point, in the order in which they run: all of one workload, seed and recipe
        together, since they share what the recipe makes of the float network."""
        q, h = self.quantization, self.hardware
        recipes = dict.fromkeys(q.recipe)
        variants = list(
            itertools.product(
                q.integer_weights,
                q.weight_scale,
                q.weight_group,
                q.activation_scale,
                q.activation_granularity,
                q.bias,
            )
        )
        return [
            DesignPoint(
                workload=workload.name,
                weights=weights,
                activations=activations,
                edge_format=q.edge_format,
                integer_weights=integer_weights,
                weight_scale=weight_scale,
                activation_scale=activation_scale,
                percentile=(q.percentile or DEFAULT_PERCENTILE) if activation_scale == "percentile" else None,
                bias=bias,
                unsigned_activations=q.unsigned_activations,
                recipe=recipe,
                calibration_images=workload.calibration_images,
                evaluation_images=workload.evaluation_images,
                block=h.block,
                dot_length=h.dot_length,
                part=h.part,
                seed=seed,
                weight_group=group if isinstance(group, int) else None,
                activation_granularity=granularity,
                residual_format=None if q.residual_format == _FLOAT else q.residual_format,
            )
            for workload in self.workloads
            for seed, recipe in itertools.product(dict.fromkeys(self.seed), recipes)
            for weights, activations in self.formats.resolve()
            for integer_weights, weight_scale, group, activation_scale, granularity, bias in variants
        ]


def _check_choices(point: DesignPoint) -> None:
    """Raises :class:`UsageError` for choices that cannot go together."""
    settings_of(point)
    steps = [step.name for step in Recipe.parse(point.recipe).steps]
    if "gain_correction" not in steps:
        return
    if point.weight_group is not None or isinstance(point.weight_format, BlockFormat):
        unfit = f"weights {point.weights}" + (
            f" in groups of {point.weight_group}" if point.weight_group else ""
        )
    elif point.weight_scale == "mse_power_of_two":
        unfit = "weight_scale 'mse_power_of_two'"
    else:
        return
    msg = f"gain_correction gives each channel's one scale a factor of its own; it does not go with {unfit}"
    raise UsageError(msg, given=unfit, expected=["a recipe without gain_correction"])


def _read(path: Path) -> dict[str, Any]:
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


def _apply(document: dict[str, Any], override: str) -> None:
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
        raise UsageError(msg, given=key, expected=list(Study.model_fields)) from None


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


def _explain(error: ValidationError, source: str) -> UsageError:
    """One message for all problems of a study, each with its place, what was given and expected."""
    # A pair that lacks both formats is one problem, not two.
    problems = list({str(problem): problem for problem in map(_problem, error.errors())}.values())
    first = problems[0]
    if len(problems) == 1:
        return UsageError(f"{source}: {first}", given=first.given, expected=first.expected)
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return UsageError(
        f"{source} has {len(problems)} problems:{lines}", given=first.given, expected=first.expected
    )


def _problem(entry: Any) -> UsageError:
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
            choices = _fields_at(entry["loc"][:-1])
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


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "workloads": WorkloadChoice,
        "formats": FormatChoice,
        "quantization": QuantizationChoice,
        "hardware": HardwareChoice,
        "fronts": FrontChoice,
    }
    section = sections.get(str(location[0])) if location else Study
    return list((section or Study).model_fields)
