"""Study files: what to sweep, read from TOML and checked before any work starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dse.accuracy import settings_of
from dse.design import DesignPoint
from dse.evaluation import BEST_MAC, MAC_CHOICES, check_point
from dse.study_file import FrontChoice, PartName, Section, StudyFile, known, listed, names_once
from dse.workloads import check_workload
from hw.blocks import ANCHOR_DOT_LENGTH
from quantizers.errors import UsageError
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
BlockName = Annotated[str, known("block", MAC_CHOICES)]


class WorkloadChoice(Section):
    """A network with its data; counts default to all images there are."""

    name: str
    data: str | None = None
    calibration_images: int | None = Field(None, ge=1)
    evaluation_images: int | None = Field(None, ge=1)

    @property
    def path(self) -> Path | None:
        """The data folder, relative to the working folder of the sweep."""
        return None if self.data is None else Path(self.data)


class FormatChoice(Section):
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


class QuantizationChoice(Section):
    """How formats are put on the network; a list sweeps the choice.

    ``weight_group`` is ``"channel"`` (one weight scale per output channel) or how many features share a
    scale; ``residual_format`` is ``"float"`` or the format in which two activations are added. See
    :class:`quantizers.quantize.QuantizationSettings` for the rest.
    """

    edge_format: FormatName = "int8"
    residual_format: ResidualFormat = _FLOAT
    integer_weights: Annotated[list[Literal["narrow", "full"]], BeforeValidator(listed), _NOT_EMPTY] = [
        "narrow"
    ]
    weight_scale: Annotated[list[WeightScale], BeforeValidator(listed), _NOT_EMPTY] = ["mse"]
    weight_group: Annotated[list[WeightGroup], BeforeValidator(listed), _NOT_EMPTY] = ["channel"]
    activation_scale: Annotated[list[ActivationScale], BeforeValidator(listed), _NOT_EMPTY] = ["mse"]
    percentile: Annotated[float, Field(gt=0, le=100)] | None = None
    activation_granularity: Annotated[
        list[Literal["tensor", "token"]], BeforeValidator(listed), _NOT_EMPTY
    ] = ["tensor"]
    bias: Annotated[list[Literal["fixed", "float"]], BeforeValidator(listed), _NOT_EMPTY] = ["fixed"]
    unsigned_activations: bool = True
    recipe: Annotated[list[RecipeText], BeforeValidator(listed), _NOT_EMPTY] = [ROUND]

    @model_validator(mode="after")
    def _percentile_is_used(self) -> QuantizationChoice:
        if self.percentile is not None and "percentile" not in self.activation_scale:
            msg = "'percentile' is given but activation_scale is not 'percentile'; it would have no effect"
            raise UsageError(msg, given=self.percentile, expected=['activation_scale = "percentile"'])
        return self


class HardwareChoice(Section):
    """The datapath that is costed for each pair of formats."""

    block: BlockName = BEST_MAC
    dot_length: Annotated[int, Field(ge=1)] = ANCHOR_DOT_LENGTH
    part: PartName = "xc7z020"


class Study(StudyFile):
    """A whole study of networks, resolved: what ``study.json`` in a run folder holds."""

    seed: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(listed), Field(min_length=1)] = [0]
    workloads: Annotated[list[WorkloadChoice], Field(min_length=1)]
    formats: FormatChoice
    quantization: QuantizationChoice = QuantizationChoice()
    hardware: HardwareChoice = HardwareChoice()
    fronts: Annotated[list[FrontChoice], Field(min_length=1)] = [FrontChoice(x="luts", y="accuracy")]

    @model_validator(mode="after")
    def _workloads_once(self) -> Study:
        names_once("workload", [workload.name for workload in self.workloads])
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
