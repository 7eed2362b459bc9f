"""Labelled images, kept in memory as they were stored (bytes stay bytes), and top-1 accuracy on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from quantizers.errors import UsageError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images ``(n, channels, height, width)`` and their classes ``(n,)``, normalised batch by batch.

    Attributes:
        inputs: uint8 or floating point; any ``(n, ...)`` shape is taken where the model is the user's own.
        labels: int64 class indices, or ``None`` where only the inputs are used (calibration).
        mean: subtracted from the inputs, in the units of *inputs*: one value, or one a channel.
        std: divides after that; same rule.

    Raises:
        UsageError: an empty set, a dtype that is neither uint8 nor floating point, labels that are not int64
            or not one for each input, a standard deviation that is not positive, or a number of normalisation
            values that is neither 1 nor the number of channels.
    """

    inputs: Tensor
    labels: Tensor | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        _check_inputs(self.inputs)
        if self.labels is not None:
            _check_labels(self.labels, len(self.inputs))
        channels = self.inputs.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                msg = (
                    f"{name} must have 1 value or one for each of the {channels} channels, not {len(values)}"
                )
                raise UsageError(msg, given=values)
        if min(self.std) <= 0:
            msg = f"std must be positive, not {min(self.std)}"
            raise UsageError(msg, given=self.std)

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        labelled = "labelled" if self.labels is not None else "unlabelled"
        shape = " x ".join(str(side) for side in self.inputs.shape)
        return f"ImageSet({shape}, {self.inputs.dtype}, {labelled})"

    def first(self, count: int | None, what: str = "images") -> ImageSet:
        """The first *count* images (all of them for ``None``); a view, nothing is copied.

        Raises:
            UsageError: *count* is not between 1 and the number of images; *what* names the count in the
                message.
        """
        count = checked_count(what, count, len(self))
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, inputs=self.inputs[:count], labels=labels)

    def drawn(self, count: int | None, seed: int, what: str = "images") -> ImageSet:
        """*count* images drawn without replacement, in their stored order; all of them for ``None``.

        Raises:
            UsageError: see :meth:`first`.
        """
        count = checked_count(what, count, len(self))
        if count == len(self):
            return self
        chosen = (
            torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values
        )
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, inputs=self.inputs[chosen], labels=labels)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Normalised float32 inputs with their labels, in stored order; the last batch may be smaller.

        Raises:
            UsageError: *batch_size* is not positive.
        """
        if batch_size < 1:
            msg = f"batch_size must be a positive integer, not {batch_size}"
            raise UsageError(msg, given=batch_size)
        return self._batches(batch_size)

    def _batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        trailing = (1,) * (self.inputs.dim() - 2)
        mean = torch.tensor(self.mean).view(1, -1, *trailing)
        std = torch.tensor(self.std).view(1, -1, *trailing)
        for start in range(0, len(self), batch_size):
            inputs = self.inputs[start : start + batch_size].to(torch.float32)
            labels = None if self.labels is None else self.labels[start : start + batch_size]
            yield (inputs - mean) / std, labels


def checked_count(what: str, count: int | None, available: int) -> int:
    """*count*, or *available* for ``None``.

    Raises:
        UsageError: *count* is not between 1 and *available*.
    """
    if count is None:
        return available
    if not 1 <= count <= available:
        msg = f"{what} must be between 1 and {available} (all there are), not {count}"
        raise UsageError(msg, given=count)
    return count


def _check_inputs(inputs: Tensor) -> None:
    if inputs.dim() < 2 or len(inputs) == 0:
        shape = tuple(inputs.shape)
        msg = f"inputs must have the shape (images, channels, ...) with at least one image, not {shape}"
        raise UsageError(msg, given=shape)
    if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
        msg = f"inputs must be uint8 or floating point, not {inputs.dtype}"
        raise UsageError(msg, given=inputs.dtype)


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.dtype != torch.int64:
        msg = f"labels must be int64 class indices, not {labels.dtype}"
        raise UsageError(msg, given=labels.dtype)
    if labels.shape != (count,):
        shape = tuple(labels.shape)
        msg = f"labels must have one class for each of the {count} inputs, shape ({count},), not {shape}"
        raise UsageError(msg, given=shape)


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Top-1 accuracy on one image set.

    Attributes:
        correct: ``(n,)`` bool, which images were classified right, in stored order: two such vectors on the
            same set give the error of a difference, which is smaller than that of either accuracy.
    """

    correct: Tensor

    @property
    def images(self) -> int:
        return len(self.correct)

    @property
    def fraction(self) -> float:
        return int(self.correct.sum()) / self.images

    @property
    def percent(self) -> float:
        return 100 * int(self.correct.sum()) / self.images

    @property
    def standard_error(self) -> float:
        """Binomial standard error ``sqrt(p (1 - p) / n)`` of :attr:`percent`, in points."""
        return 100 * math.sqrt(self.fraction * (1 - self.fraction) / self.images)


def top1_accuracy(model: nn.Module, images: ImageSet, batch_size: int = 256) -> Accuracy:
    """Classify *images* and compare with their labels; the model is left in the mode it came in.

    Ties go to the lowest class index, and a NaN logit counts as an error of that image. ``no_grad`` and not
    ``inference_mode``: the latter breaks Brevitas.

    Raises:
        UsageError: the set has no labels, or the model does not return ``(batch, classes)``.
    """
    if images.labels is None:
        msg = "accuracy needs labels, and this image set has none"
        raise UsageError(msg)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            correct = [_correct(model(inputs), labels) for inputs, labels in images.batches(batch_size)]
    finally:
        model.train(training)
    return Accuracy(torch.cat(correct))


def _correct(logits: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None or not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        msg = f"the model must return logits of shape (batch, classes), not {shape}"
        raise UsageError(msg, given=shape)
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)
