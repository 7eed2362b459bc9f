"""What is remembered of a layer's float input, so that a scale for any format can be found later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quantizers.formats import ScalarFormat
from quantizers.recording import tensors
from quantizers.rounding import quantization_error
from quantizers.scales import largest_value_scale, least_error_power_of_two, least_error_scale

# Kept per input: enough of the body for a mean squared error within a percent, and all of the tail
# that a clipping threshold can be about.
_BODY_VALUES = 1 << 16
_TAIL_VALUES = 1 << 12


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """A stratified sample of a tensor's values over the calibration data.

    Attributes:
        tail: the values of largest magnitude, every one of them, by falling magnitude.
        body: a random sample of the rest; empty where the tail holds everything.
        count: how many values the tensor had.
        axes: how many axes a batch of it had; 0 where that is not known.
    """

    tail: npt.NDArray[np.float32]
    body: npt.NDArray[np.float32]
    count: int
    axes: int = 0

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(np.abs(self.tail[0])) if self.tail.size else 0.0

    @property
    def minimum(self) -> float:
        """The smallest value of the sample; 0 where there is none."""
        return float(min((part.min() for part in (self.tail, self.body) if part.size), default=0.0))

    def magnitude_percentile(self, percentile: float) -> float:
        """The magnitude below which *percentile* percent of the values lie.

        Exact as long as it falls into the tail (for 99.999 %, up to 4e8 values), else from the sample.
        """
        rank = int((1 - percentile / 100) * self.count)
        if rank < self.tail.size:
            return float(np.abs(self.tail[rank]))
        above = (rank - self.tail.size) / (self.count - self.tail.size)
        return float(np.quantile(np.abs(self.body), 1 - above)) if self.body.size else 0.0

    def squared_error(self, fmt: ScalarFormat, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The estimated sum of squared errors over all values, for scales ``(1, S)``."""
        error = quantization_error(self.tail[None, :], fmt, scales)
        if self.body.size:
            weight = (self.count - self.tail.size) / self.body.size
            error = error + weight * quantization_error(self.body[None, :], fmt, scales)
        return error

    def mse_scale(self, fmt: ScalarFormat, *, power_of_two: bool = False) -> float:
        """The scale of least squared error, or the power of two of least; 1 for a tensor of zeros."""
        largest = np.array([self.largest], dtype=np.float32)
        search = least_error_power_of_two if power_of_two else least_error_scale
        return float(search(largest, fmt, lambda s: self.squared_error(fmt, s), self.count)[0])

    def percentile_scale(self, fmt: ScalarFormat, percentile: float) -> float:
        """The scale that clips at a percentile of the magnitude; at the largest where that is zero."""
        clip = self.magnitude_percentile(percentile) or self.largest
        return float(largest_value_scale(np.array([clip], dtype=np.float32), fmt)[0])


class _Sampler:
    """Collects the statistics of one tensor, batch by batch."""

    def __init__(self, batches: int, seed: int) -> None:
        self._batches = batches
        self._generator = torch.Generator().manual_seed(seed)
        self._body: list[Tensor] = []
        self._tail = torch.empty(0)
        self._threshold = -1.0
        self._count = 0
        self._axes = 0
        self._rate: float | None = None

    def add(self, x: Tensor) -> None:
        self._axes = x.dim()
        values = x.detach().reshape(-1).float()
        if self._rate is None:
            self._rate = _BODY_VALUES / (self._batches * values.numel())
        chosen = max(1, round(self._rate * values.numel()))
        self._body.append(values[torch.randint(values.numel(), (chosen,), generator=self._generator)])
        self._count += values.numel()
        self._extend_tail(values)

    def _extend_tail(self, values: Tensor) -> None:
        candidates = torch.cat((self._tail, values[values.abs() > self._threshold]))
        if candidates.numel() > _TAIL_VALUES:
            candidates = candidates[candidates.abs().topk(_TAIL_VALUES).indices]
            self._threshold = float(candidates.abs().min())
        self._tail = candidates

    def finish(self) -> TensorStatistics:
        tail = self._tail[self._tail.abs().argsort(descending=True, stable=True)].numpy()
        if self._count == tail.size:
            return TensorStatistics(tail, np.empty(0, np.float32), self._count, self._axes)
        body = torch.cat(self._body)
        body = body[body.abs() <= self._threshold]
        return TensorStatistics(tail, body.numpy(), self._count, self._axes)


def collect_statistics(
    model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor], seed: int, *, pooled: bool = False
) -> dict[str, tuple[TensorStatistics, ...]]:
    """Run *batches* through *model* and sample every tensor that goes into *layers*.

    Every tensor is sampled with the same *seed*, so that layers with one input in common (a shortcut,
    queries and keys) see one sample and get one scale. A layer called several times gets one set of
    statistics over all its calls, and *pooled* one over all its inputs.
    """
    samplers: dict[str, list[_Sampler]] = {name: [] for name in layers}
    modules = dict(model.named_modules())
    handles = []
    for name in layers:

        def observe(_: nn.Module, *inputs: Any, name: str = name) -> None:
            collected = samplers[name]
            for index, tensor in enumerate(tensors(inputs)):
                position = 0 if pooled else index
                if position == len(collected):
                    collected.append(_Sampler(len(batches), seed))
                collected[position].add(tensor)

        handles.append(modules[name].register_forward_pre_hook(observe, with_kwargs=True))
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(sampler.finish() for sampler in collected) for name, collected in samplers.items()}
