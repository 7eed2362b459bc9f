"""What a workload is, and what each kind of workload has to offer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import nn

from dse.workloads.images import ImageSet


@dataclass(frozen=True, eq=False)
class Workload:
    """A trained float network with the data to calibrate and to measure its quantized versions.

    Attributes:
        name: what :func:`load_workload` was given.
        description: the network in a few words.
        source: where the weights come from.
        dataset: the data that figures measured here are about; quote it with the accuracy.
        model: float32, in eval mode, no parameter requires gradients.
        calibration: images that quantizers may look at; never part of the evaluation.
        evaluation: labelled images that accuracy is measured on.
        fingerprint: hash of what was loaded, where that is not a file (the user's own model).
    """

    name: str
    description: str
    source: str
    dataset: str
    model: nn.Module = field(repr=False)
    calibration: ImageSet
    evaluation: ImageSet
    fingerprint: str | None = None


@dataclass(frozen=True)
class Counts:
    """How many images of each set are wanted; ``None`` is all of them."""

    calibration: int | None = None
    evaluation: int | None = None


class WorkloadSource(Protocol):
    """One named workload that can be checked, identified and loaded."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def needs(self) -> str:
        """What has to be installed or given; empty where nothing has to be."""

    def check(self, data: Path | None, counts: Counts) -> None:
        """Raise the error that :meth:`load` would, as far as it is found without loading the model."""

    def fingerprint(self, data: Path | None) -> str:
        """Hex hash of weights and data."""

    def load(self, data: Path | None, counts: Counts) -> Workload: ...


def frozen(model: nn.Module) -> nn.Module:
    """The same model in eval mode, with no parameter requiring gradients."""
    return model.eval().requires_grad_(False)
