"""Studies of hardware alone: blocks, each with lists of formats and parameters, and fronts of their cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from dse.costing import build_block
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

    A parameter that is given a list takes each of its values.
    """

    name: Annotated[str, Field(min_length=1)]
    block: Annotated[str, known("block", BLOCKS)]
    weights: _Names
    activations: _Names | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_the_block(self) -> Alternative:
        block = find_block(self.block)
        for name in (*self.weights, *(self.activations or ())):
            block.parse_format(name)
        for choice in combinations(self.parameters):
            block.parameters_with(choice)
        return self

    def points(self, study: str, part: str) -> Iterator[HardwarePoint]:
        """Every combination; without ``activations`` they are as the weights."""
        block = find_block(self.block)
        varied = [name for name, values in self.parameters.items() if isinstance(values, list)]
        for weights in dict.fromkeys(self.weights):
            for activations in dict.fromkeys(self.activations or [weights]):
                for choice in combinations(self.parameters):
                    yield HardwarePoint(
                        workload=study,
                        weights=block.parse_format(weights).name,
                        activations=block.parse_format(activations).name,
                        design=self.name,
                        variant=" ".join(f"{name}={setting_text(choice[name])}" for name in varied),
                        block=self.block,
                        parameters=json.dumps(block.parameters_with(choice)),
                        part=part,
                    )


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
                build_block(point.block, point.weights, point.activations, json.loads(point.parameters))
            except UsageError as error:
                msg = f"{point.design}, {point.label}: {error}"
                raise UsageError(msg, given=error.given, expected=error.expected) from None

    def points(self) -> list[HardwarePoint]:
        """Every point, in the order in which they run."""
        return [point for design in self.designs for point in design.points(self.name, self.part)]
