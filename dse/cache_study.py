"""Studies of a language model's cache: codecs with lists of parameters, and fronts of worth and cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dse.caches import CALIBRATION_WINDOWS, CacheText, check_cache_text
from dse.design import CachePoint
from dse.study_file import PartName, Section, StudyFile, combinations, listed, names_once
from dse.workloads.language import check_language_model, language_layers
from quantizers.errors import UsageError
from quantizers.kv_cache.registry import parse_cache_scheme
from quantizers.written import toml_value

Evaluation = Literal["streaming", "window"]
_Evaluations = Annotated[list[Evaluation], BeforeValidator(listed), Field(min_length=1)]


class LanguageChoice(Section):
    """The model, and the text that it is measured on.

    ``text`` and ``calibration_text`` are files; without them the text is the Python language reference, and
    the calibration windows are those of the text after the measured ones. ``skip``: windows before these.
    ``rope``: keys are coded after they
    have been rotated by their position, so that they need not be rotated when they are read.
    """

    model: str
    data: Path | None = None
    text: Path | None = None
    windows: int = Field(6, ge=1)
    length: int = Field(512, ge=16)
    skip: int = Field(0, ge=0)
    calibration_text: Path | None = None
    calibration_windows: int = Field(CALIBRATION_WINDOWS, ge=1)
    rope: bool = False

    def source(self) -> CacheText:
        """The same for workers, which may run in another folder."""
        return CacheText.of(**dict(self))


class CodecAlternative(Section):
    """A codec with what is varied of it: a parameter that is given a list takes each of its values."""

    name: Annotated[str, Field(min_length=1)]
    codec: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    evaluation: _Evaluations = Field(default=["streaming"])

    @model_validator(mode="after")
    def _of_the_codec(self) -> CodecAlternative:
        for choice in combinations(self.parameters):
            _ = _codec_text(self.codec, choice)
        return self

    def points(self, language: LanguageChoice, part: str) -> Iterator[CachePoint]:
        """Every combination."""
        for choice in combinations(self.parameters):
            for evaluation in dict.fromkeys(self.evaluation):
                yield CachePoint(
                    workload=language.model,
                    design=self.name,
                    codec=_codec_text(self.codec, choice),
                    evaluation=evaluation,
                    windows=language.windows,
                    length=language.length,
                    skip=language.skip,
                    calibration_windows=language.calibration_windows,
                    rope=language.rope,
                    part=part,
                )


class CacheStudy(StudyFile):
    """A whole study of a cache, resolved: what ``study.json`` in a run folder holds."""

    language: LanguageChoice
    codecs: Annotated[list[CodecAlternative], Field(min_length=1)]
    part: PartName = "xc7z020"

    @model_validator(mode="after")
    def _codecs_once(self) -> CacheStudy:
        names_once("codec", [codec.name for codec in self.codecs])
        return self

    def check(self) -> None:
        """The model and the texts are there.

        Raises:
            UsageError: a file is missing, a text is too short, or a codec does not fit the model's layers or
            the windows.
            MissingExtraError: an optional package is not installed; the message names the extra.
        """
        check_language_model(self.language.model, self.language.data)
        check_cache_text(self.language.source())
        layers = language_layers(self.language.model, self.language.data)
        for point in self.points():
            parse_cache_scheme(point.codec).check_run(
                layers=layers, length=point.length, whole_window=point.evaluation == "window"
            )

    def points(self) -> list[CachePoint]:
        """Every point, in the order in which they run."""
        return [point for codec in self.codecs for point in codec.points(self.language, self.part)]


def _codec_text(name: str, parameters: dict[str, Any]) -> str:
    """The codec as its registry writes it, all parameters in their order.

    Raises:
        UsageError: an unknown codec or parameter, or a value that it cannot take.
    """
    if "(" in name:
        msg = f"a codec's parameters go into a table of their own, not into its name: {name!r}"
        raise UsageError(msg, given=name, expected=[name.partition("(")[0]])
    arguments = ", ".join(f"{key}={toml_value(value)}" for key, value in parameters.items())
    return str(parse_cache_scheme(f"{name}({arguments})"))
