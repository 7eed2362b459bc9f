"""Everything about quantizing a model that does not depend on a number format, done once per model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quantizers.attention import MatMul, unfold_attention
from quantizers.calibration import TensorStatistics, collect_statistics
from quantizers.errors import BitfrontError, UsageError
from quantizers.folding import (
    fold_batch_norms,
    is_plain,
    overwrite_own_inputs,
    use_plain_convolutions,
)
from quantizers.formats import BlockFormat, Format
from quantizers.moments import Moments, float_moments
from quantizers.nonnegative import Signs
from quantizers.recording import Entry, Exit, Operation, Recording, record
from quantizers.residuals import Residuals, extract_residuals
from quantizers.scales import grouped_order, weight_scales

# Recording keeps every intermediate tensor; two images show all there is to see.
_RECORDED_IMAGES = 2
_FEWEST_WITH_EDGES = 2
# Of the largest output. Folding and unfolding reorder float32 arithmetic: 1e-6 a layer was seen.
_OUTPUT_TOLERANCE = 1e-4
# fmt: off
_PRODUCTS = frozenset({
    "convolution", "mm", "addmm", "bmm", "baddbmm", "dot", "mv", "addmv",
    "_scaled_dot_product_flash_attention_for_cpu", "_transformer_encoder_layer_fwd",
})
# fmt: on
_KINDS: list[tuple[type[nn.Module], str]] = [
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
    (nn.Linear, "linear"),
    (MatMul, "matmul"),
]


class PreparationError(BitfrontError):
    """Folding or unfolding changed what the model computes."""


@dataclass(frozen=True)
class ComputeLayer:
    """A layer whose products the hardware has to compute.

    Attributes:
        name: where it is in the prepared model.
        kind: ``conv1d``, ``conv2d``, ``conv3d``, ``linear`` or ``matmul`` (two activations).
        edge: whether it is the first or the last layer with weights, of three or more.
        nonnegative: per input, whether it cannot be negative whatever the data.
        weights: number of weights; 0 for a matmul.
        has_bias: whether a bias is added.
        dot_length: products summed for one output.
        macs: multiply-accumulates per input image.
    """

    name: str
    kind: str
    edge: bool
    nonnegative: tuple[bool, ...]
    weights: int
    has_bias: bool
    dot_length: int
    macs: int


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A float model ready to be quantized in any format.

    Attributes:
        model: the model with batch norms folded and attention unfolded; do not change it.
        layers: the compute layers, in the order in which they run.
        statistics: per layer, one sample for each input.
        float_products: modules whose convolutions or matrix products stay in float, because they
            are not computed by a layer that can be replaced.
        batches: the calibration data.
        seed: of what is sampled from it.
    """

    model: nn.Module
    layers: tuple[ComputeLayer, ...]
    statistics: dict[str, tuple[TensorStatistics, ...]]
    float_products: tuple[str, ...]
    batches: tuple[Tensor, ...]
    seed: int
    _weight_scales: dict[tuple[str, str, str, int | None], npt.NDArray[np.float32]] = field(
        default_factory=dict
    )

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """The second moments of the inputs of every layer with weights, in the float network."""
        weighted = [layer.name for layer in self.layers if layer.weights]
        return float_moments(self.model, weighted, self.batches, self.seed)

    @cached_property
    def residuals(self) -> Residuals:
        """The additions of two activations, in a traced model that shares this one's layers.

        Raises:
            UsageError: see :func:`quantizers.residuals.extract_residuals`.
        """
        return extract_residuals(self.model, self.batches[0][:_RECORDED_IMAGES], self.batches, self.seed)

    def weight_scales(
        self, layer: str, fmt: Format, criterion: str, group: int | None = None
    ) -> npt.NDArray[np.float32]:
        """The scales of a layer's weights; searched once, then remembered.

        One per output channel, ``(channels,)``; for a *group* or a block format one per group of its
        features, ``(channels, groups)``, in the order of :func:`quantizers.scales.grouped_order`.
        """
        key = (layer, fmt.name, criterion, group)
        if key not in self._weight_scales:
            weight: Tensor = self.model.get_submodule(layer).weight.detach()  # type: ignore[operator]
            in_groups = group is not None or isinstance(fmt, BlockFormat)
            flat = grouped_order(weight.numpy()) if in_groups else weight.flatten(1).numpy()
            self._weight_scales[key] = weight_scales(flat, fmt, criterion, group)
        return self._weight_scales[key]


def prepare(model: nn.Module, calibration_batches: Iterable[Tensor], *, seed: int = 0) -> PreparedModel:
    """Fold, unfold, analyse and calibrate a copy of *model*.

    Batch norms are folded into the layers before them, ``nn.MultiheadAttention`` becomes four
    linear layers and two matrix products, and the inputs of all compute layers are sampled. ReLU6
    stays ReLU6. A layer that runs several times per image keeps one quantizer for all its calls.

    Args:
        model: takes one tensor, image (or token sequence) first, and returns one tensor.
        calibration_batches: float tensors ``(batch, ...)``.
        seed: of the sample that activation scales are searched on.

    Raises:
        UsageError: no calibration data, no compute layer, unsupported attention options, an output
            that is not a tensor, or numbers that are not finite.
        PreparationError: the rewritten model's outputs differ from the original's.
    """
    batches = list(calibration_batches)
    _check_batches(batches)
    inputs = batches[0][:_RECORDED_IMAGES]
    prepared = copy.deepcopy(model).eval()
    _check_weights(prepared)
    expected = _output(prepared, inputs)
    unfold_attention(prepared)
    use_plain_convolutions(prepared, inputs)
    fold_batch_norms(prepared, inputs)
    overwrite_own_inputs(prepared, inputs)
    prepared.requires_grad_(False)
    _check_outputs(_output(prepared, inputs), expected)
    recording = record(prepared, inputs)
    layers = _compute_layers(prepared, recording, images=inputs.shape[0])
    statistics = collect_statistics(prepared, [layer.name for layer in layers], batches, seed)
    _check_inputs(statistics)
    _check_signs(layers, statistics)
    return PreparedModel(
        prepared, layers, statistics, _float_products(prepared, recording), tuple(batches), seed
    )


def _check_batches(batches: list[Tensor]) -> None:
    for batch in batches:
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            given = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            msg = f"calibration batches must be floating-point tensors, not {given}"
            raise UsageError(msg, given=given, expected=["torch.float32"])
        if not bool(batch.isfinite().all()):
            msg = "calibration batches hold numbers that are not finite"
            raise UsageError(msg, given="NaN or infinity", expected=["finite numbers"])
    if not batches or not all(batch.shape[0] for batch in batches):
        msg = "calibration needs at least one batch, and at least one image in each"
        raise UsageError(msg, given=f"{len(batches)} batches", expected=["at least one image"])


def _check_signs(
    layers: Sequence[ComputeLayer], statistics: Mapping[str, Sequence[TensorStatistics]]
) -> None:
    """The signs that were proven must agree with every value that was seen."""
    for layer in layers:
        for proven, seen in zip(layer.nonnegative, statistics[layer.name], strict=True):
            if proven and seen.minimum < 0:
                msg = f"an input of {layer.name} was taken for non-negative but holds {seen.minimum:.3g}"
                raise PreparationError(msg)


def _output(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(inputs)
    if not isinstance(output, Tensor):
        msg = f"the model must return one tensor, not {type(output).__name__}"
        raise UsageError(msg, given=type(output).__name__, expected=["Tensor"])
    return output


def _check_outputs(actual: Tensor, expected: Tensor) -> None:
    difference = float((actual - expected).abs().max())
    limit = _OUTPUT_TOLERANCE * float(expected.abs().max())
    if not difference <= limit:
        msg = f"folding changed the model's outputs by {difference:.3g}, more than {limit:.3g}"
        raise PreparationError(msg)


def _check_weights(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            msg = f"the model's {name!r} holds numbers that are not finite"
            raise UsageError(msg, given=name, expected=["finite numbers"])


def _check_inputs(statistics: dict[str, tuple[TensorStatistics, ...]]) -> None:
    for name, samples in statistics.items():
        if not all(math.isfinite(sample.largest) for sample in samples):
            msg = f"calibration inputs of layer {name!r} are not finite"
            raise UsageError(msg, given=name, expected=["finite numbers"])


def _kind(module: nn.Module) -> str | None:
    if not (is_plain(module) or isinstance(module, MatMul)):
        return None
    return next(kind for base, kind in _KINDS if isinstance(module, base))


def _compute_layers(model: nn.Module, recording: Recording, images: int) -> tuple[ComputeLayer, ...]:
    modules = dict(model.named_modules())
    names = [event.module for event in recording.events if isinstance(event, Entry)]
    names = [name for name in dict.fromkeys(names) if _kind(modules[name])]
    weighted = [name for name in names if not isinstance(modules[name], MatMul)]
    if not names:
        msg = "the model has no convolution, linear layer or attention to quantize"
        raise UsageError(msg, given=type(model).__name__, expected=["a model with weights"])
    # Of two layers or one nothing would be left for the formats that are asked for.
    edges = {weighted[0], weighted[-1]} if len(weighted) > _FEWEST_WITH_EDGES else set()
    signs = _input_signs(recording, set(names))
    return tuple(
        _describe(name, modules[name], recording, images, name in edges, signs[name]) for name in names
    )


def _describe(
    name: str, module: nn.Module, recording: Recording, images: int, edge: bool, nonnegative: tuple[bool, ...]
) -> ComputeLayer:
    weight = getattr(module, "weight", None)
    calls = recording.calls(name)
    dot_length = calls[0].inputs[0].shape[-1] if weight is None else weight[0].numel()
    outputs = sum(
        event.outputs[0].numel()
        for event in recording.events
        if isinstance(event, Exit) and event.module == name
    )
    return ComputeLayer(
        name=name,
        kind=_kind(module) or "",
        edge=edge,
        nonnegative=nonnegative,
        weights=0 if weight is None else weight.numel(),
        has_bias=getattr(module, "bias", None) is not None,
        dot_length=dot_length,
        macs=outputs * dot_length // images,
    )


def _input_signs(recording: Recording, layers: set[str]) -> dict[str, tuple[bool, ...]]:
    signs = Signs()
    found: dict[str, tuple[bool, ...]] = {}
    for event in recording.events:
        if isinstance(event, Operation):
            signs.apply(event)
        elif isinstance(event, Entry) and event.module in layers:
            now = tuple(tensor in signs for tensor in event.inputs)
            before = found.get(event.module, now)
            found[event.module] = tuple(a and b for a, b in zip(before, now, strict=True))
    return found


def _float_products(model: nn.Module, recording: Recording) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    places = [o.module for o in recording.operations if o.name in _PRODUCTS and not _kind(modules[o.module])]
    return tuple(dict.fromkeys(places))
