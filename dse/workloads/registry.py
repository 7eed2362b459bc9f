"""Finding workloads by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dse.workloads.anchor_trio import TORCHVISION_WORKLOADS
from dse.workloads.efficientnet import EfficientNetWorkload
from dse.workloads.own import OwnWorkload
from dse.workloads.small import SMALL_NETWORKS
from dse.workloads.workload import Counts, Workload, WorkloadSource
from quantizers.errors import BitfrontError, UsageError, unknown_choice

_SOURCES: dict[str, WorkloadSource] = {
    source.name: source for source in (*SMALL_NETWORKS, EfficientNetWorkload(), *TORCHVISION_WORKLOADS)
}
OWN_FORM = "MODULE:FUNCTION"


@dataclass(frozen=True)
class WorkloadInfo:
    """One line of ``dse workloads``.

    Attributes:
        needs: what has to be installed or given; empty where nothing has to be.
        available: whether :func:`load_workload` would find everything.
        reason: why not; empty where it is available.
    """

    name: str
    description: str
    needs: str
    available: bool
    reason: str


def load_workload(
    name: str,
    *,
    data: Path | None = None,
    calibration_images: int | None = None,
    evaluation_images: int | None = None,
) -> Workload:
    """The float network with its calibration and evaluation sets.

    Args:
        name: one of :func:`list_workloads`, or ``module:function`` for a model of your own.
        data: folder of images with ``labels.csv``; networks that bring their own data do not look at it.
        calibration_images: take the first so many; the sets are stored shuffled, so this is a fair sample.
        evaluation_images: the same for the evaluation set.

    Raises:
        UsageError: the name is unknown, a file is missing or damaged, or there are fewer images than asked
            for.
        MissingExtraError: an optional package is not installed; the message names it.
    """
    return _source(name).load(data, Counts(calibration_images, evaluation_images))


def check_workload(
    name: str,
    data: Path | None = None,
    *,
    calibration_images: int | None = None,
    evaluation_images: int | None = None,
) -> None:
    """Raise the error that :func:`load_workload` would, as far as it shows without loading the model."""
    _source(name).check(data, Counts(calibration_images, evaluation_images))


def workload_fingerprint(name: str, data: Path | None = None) -> str:
    """Hex sha256 of the weights and the data, for cache keys; raises as :func:`check_workload` does.

    A model of the user's is loaded for it, see :class:`~dse.workloads.own.OwnWorkload`.
    """
    return _source(name).fingerprint(data)


def list_workloads(data: Path | None = None) -> list[WorkloadInfo]:
    """All named workloads, and whether each can be loaded here with *data*."""
    return [_info(source, data) for source in _SOURCES.values()]


def _source(name: str) -> WorkloadSource:
    if name in _SOURCES:
        return _SOURCES[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise unknown_choice("workload", name, [*_SOURCES, OWN_FORM])
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        msg = f"workload {name!r} is not of the form {OWN_FORM}, as in my_package.models:small_network"
        raise UsageError(msg, given=name, expected=[OWN_FORM])
    return OwnWorkload(name)


def _info(source: WorkloadSource, data: Path | None) -> WorkloadInfo:
    reason = ""
    try:
        source.check(data, Counts())
    except BitfrontError as error:
        reason = str(error)
    return WorkloadInfo(source.name, source.description, source.needs, not reason, reason)
