"""Second moments of what goes into a layer: all that choosing its weights needs to know of the data.

A convolution's features are the elements of its kernel; a layer of several groups has moments for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Array = npt.NDArray[np.float64]

# Inputs that the moments are taken of, over all batches: enough for full rank, and for the noise of
# an entry to stay near a percent. Depthwise kernels have few features, and as many problems as channels.
_SAMPLES = 8192
_SAMPLES_PER_FEATURE = 4
_SAMPLES_OF_MANY_GROUPS = 1024


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a layer's inputs, per group.

    Attributes:
        gram: ``(groups, features, features)``.
        cross: likewise, with the float network's inputs.
        mean: ``(groups, features)``, of the inputs.
        float_mean: likewise, of the float network's inputs.
    """

    gram: Array
    cross: Array
    mean: Array
    float_mean: Array

    def centred(self) -> Moments:
        """The moments about the means: what is left to the weights where a bias takes care of the means."""
        gram = self.gram - self.mean[:, :, None] * self.mean[:, None, :]
        if self.cross is self.gram:
            return replace(self, gram=gram, cross=gram)
        return replace(
            self, gram=gram, cross=self.cross - self.mean[:, :, None] * self.float_mean[:, None, :]
        )


class MomentSums:
    """Adds up the moments of one layer, batch by batch, on a random sample of its inputs.

    Args:
        layer: a convolution or linear layer.
        batches: how many batches will come.
        seed: of the sample.
    """

    def __init__(self, layer: nn.Module, batches: int, seed: int) -> None:
        self._layer = layer
        self._generator = torch.Generator().manual_seed(seed)
        features = layer.weight[0].numel()  # type: ignore[index]
        groups = group_count(layer)
        samples = max(_SAMPLES, _SAMPLES_PER_FEATURE * features) if groups == 1 else _SAMPLES_OF_MANY_GROUPS
        self._samples = math.ceil(samples / batches)
        self._count = 0
        self._gram = torch.zeros(groups, features, features, dtype=torch.float64)
        self._cross = torch.zeros_like(self._gram)
        self._mean = torch.zeros(groups, features, dtype=torch.float64)
        self._float_mean = torch.zeros_like(self._mean)

    def add(self, inputs: Tensor, float_inputs: Tensor | None = None) -> None:
        """One batch of inputs, with the same batch's inputs in the float network where they differ."""
        places = self._places(inputs)
        # In float64, so that the sums do not depend on how many images a batch has.
        rows = input_rows(self._layer, inputs, places).double()
        self._count += rows.shape[1]
        self._gram += rows.mT @ rows
        self._mean += rows.sum(1)
        if float_inputs is not None:
            others = input_rows(self._layer, float_inputs, places).double()
            self._cross += rows.mT @ others
            self._float_mean += others.sum(1)

    def finish(self, *, paired: bool) -> Moments:
        """The moments; *paired* tells whether float inputs came too."""
        gram, mean = (self._gram / self._count).numpy(), (self._mean / self._count).numpy()
        if not paired:
            return Moments(gram, gram, mean, mean)
        cross, float_mean = (self._cross / self._count).numpy(), (self._float_mean / self._count).numpy()
        return Moments(gram, cross, mean, float_mean)

    def _places(self, inputs: Tensor) -> Tensor:
        total = output_places(self._layer, inputs)
        if total <= self._samples:
            return torch.arange(total)
        return torch.randint(total, (self._samples,), generator=self._generator)


def group_count(layer: nn.Module) -> int:
    """The number of groups of a layer."""
    return int(getattr(layer, "groups", 1))


def output_places(layer: nn.Module, inputs: Tensor) -> int:
    """How many vectors of features *inputs* gives: images times output positions."""
    if isinstance(layer, nn.Linear):
        return inputs.numel() // inputs.shape[-1]
    windows = _windows(layer, inputs)
    return windows.shape[0] * math.prod(windows.shape[2 : inputs.dim()])


def input_rows(layer: nn.Module, inputs: Tensor, places: Tensor) -> Tensor:
    """The vectors that the weights are multiplied with at *places*: ``(groups, places, features)``."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])[places][None]
    windows = _windows(layer, inputs)
    positions = [windows.shape[0], *windows.shape[2 : inputs.dim()]]
    image, *where = torch.unravel_index(places, positions)
    # Indices on both sides of a slice: the indexed axis comes first.
    chosen: Any = (image, slice(None), *where)
    rows = windows[chosen]
    return rows.reshape(len(places), group_count(layer), -1).transpose(0, 1).contiguous()


def _windows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """A view of the padded *inputs* ``(n, channels, *positions, *kernel)``."""
    padding: Any = layer._reversed_padding_repeated_twice
    # Padding by nothing would copy.
    windows = functional.pad(inputs, padding) if any(padding) else inputs
    geometry = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)  # type: ignore[arg-type]
    for axis, (kernel, stride, dilation) in enumerate(geometry, start=2):
        windows = windows.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return windows


def float_moments(
    model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor], seed: int
) -> dict[str, Moments]:
    """The moments of *layers* with the float network's inputs, in one pass over *batches*."""
    sums = {name: MomentSums(model.get_submodule(name), len(batches), seed) for name in layers}

    def observe(name: str) -> object:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[name].add(inputs[0])

        return add

    handles = [model.get_submodule(n).register_forward_pre_hook(observe(n)) for n in layers]  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: collected.finish(paired=False) for name, collected in sums.items()}
