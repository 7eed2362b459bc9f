"""Studies of hardware alone: blocks, each with lists of formats, if any, and parameters, and cost fronts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from dse.costing import block_formats, build_block
from dse.design import HardwarePoint, setting_text
from dse.study_file import (
    PartName,
    Section,
    StudyFile,
    combinations,
    known,
    listed,
    names_once,
)
from hw.blocks import BLOCKS, find_block
from quantizers.errors import UsageError

_Names = Annotated[list[str], BeforeValidator(listed), Field(min_length=1)]


class Alternative(Section):
    """A block with what is varied of it: every combination of formats and parameters is a point.

    A parameter that is given a list takes each of its values. Blocks that take no formats have neither
    ``weights`` nor ``activations``.
    """

    name: Annotated[str, Field(min_length=1)]
    block: Annotated[str, known("block", BLOCKS)]
    weights: _Names | None = None
    activations: _Names | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_the_block(self) -> Alternative:
        block = find_block(self.block)
        if self.weights is None and block.formats:
            msg = f"block {self.block!r} needs weights: the name of a format, or a list of names"
            raise UsageError(msg, expected=["weights"])
        self._formats()
        for choice in combinations(self.parameters):
            block.parameters_with(choice)
        return self

    def points(self, study: str, part: str) -> Iterator[HardwarePoint]:
        """Every combination; without ``activations`` they are as the weights."""
        block = find_block(self.block)
        varied = [name for name, values in self.parameters.items() if isinstance(values, list)]
        for formats in self._formats():
            for choice in combinations(self.parameters):
                yield HardwarePoint(
                    workload=study,
                    **formats,
                    design=self.name,
                    variant=" ".join(f"{name}={setting_text(choice[name])}" for name in varied),
                    block=self.block,
                    parameters=json.dumps(block.parameters_with(choice)),
                    part=part,
                )

    def _formats(self) -> list[dict[str, str]]:
        """Every choice of formats, by role; where there is none to make, one that is empty.

        Raises:
            UsageError: an unknown format, or any for a block that takes none.
        """
        weights: list[str | None] = [*dict.fromkeys(self.weights or ())] or [None]
        activations: list[str | None] = [*dict.fromkeys(self.activations or ())] or [None]
        return [block_formats(self.block, w, a) for w in weights for a in activations]


class HardwareStudy(StudyFile):
    """A whole study of hardware, resolved: what ``study.json`` in a run folder holds."""

    designs: Annotated[list[Alternative], Field(min_length=1)]
    part: PartName = "xc7z020"

    @model_validator(mode="after")
    def _designs_once(self) -> HardwareStudy:
        names_once("design", [design.name for design in self.designs])
        return self

    def check(self) -> None:
        """Build every point once.

        Raises:
            UsageError: formats or parameters that a block cannot do.
        """
        for point in self.points():
            try:
                build_block(point.block, point.formats, json.loads(point.parameters))
            except UsageError as error:
                msg = f"{point.design}, {point.label}: {error}"
                raise UsageError(msg, given=error.given, expected=error.expected) from None

    def points(self) -> list[HardwarePoint]:
        """Every point, in the order in which they run."""
        return [point for design in self.designs for point in design.points(self.name, self.part)]
