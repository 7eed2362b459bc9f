"""A layer of a quantized network through the simulated hardware: every integer must be the software's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dse.accuracy import calibration_batches
from dse.verified_units import LayerData, find_unit
from dse.workloads import load_workload
from dse.workloads.language import (
    capture_linear,
    is_language_model,
    load_language_model,
    load_text,
    windows_of,
)
from quantizers.accumulator import AccumulatorLayer, with_accumulator
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import ScalarFormat, parse_scalar_format
from quantizers.moments import group_count, input_rows, output_places
from quantizers.prepare import prepare
from quantizers.quantize import LayerSummary, QuantizationSettings, QuantizedModel
from quantizers.recipes import Recipe, quantize_by, rewritten

# Enough for stable scales; the arithmetic that is checked does not depend on them.
_CALIBRATION_IMAGES = 64
_WINDOWS, _WINDOW_TOKENS = 5, 64


@dataclass(frozen=True)
class Verification:
    """What a comparison of hardware and software found.

    Attributes:
        workload, layer, kind, weights, activations: what was run; the formats are those that the layer
            uses, unsigned where its inputs cannot be negative.
        rows, columns, groups: the layer as matrices: *groups* of them, of *rows* by *columns*.
        block, parameters: the hardware, and what was set of it.
        accumulator_bits: of its sums.
        checked: outputs compared; of the matrix-vector unit each as a sum and as a code.
        mismatches: sums and codes that are not the software's.
        rounding_differences: codes in which the integer multiplier of the requantizer, in place of the real
            scale, made a difference, in software and hardware alike; ``None`` where there are only sums.
        largest_scale_error: relative error of these multipliers, likewise.
        cycles: simulated, of all units and all groups.
        cycles_per_second: of the simulation, without building the models.
    """

    workload: str
    layer: str
    kind: str
    weights: str
    activations: str
    rows: int
    columns: int
    groups: int
    block: str
    parameters: dict[str, Any]
    accumulator_bits: int
    checked: int
    mismatches: int
    rounding_differences: int | None
    largest_scale_error: float | None
    cycles: int
    cycles_per_second: float

    def as_json(self) -> dict[str, Any]:
        """All attributes; those that there are none of are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def verify_layer(
    workload: str,
    layer: str,
    *,
    weights: str,
    activations: str,
    recipe: str = "round",
    data: Path | None = None,
    vectors: int = 64,
    block: str = "mvu",
    parameters: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Verification:
    """Quantize the workload and run real inputs of one layer through simulated hardware.

    Convolutions are matrix products of their windows, a group after the other. Sums are compared as the
    exact integers that they are, see :mod:`dse.verified_units`.

    Args:
        workload: of images or of language.
        layer: name of a layer with weights.
        vectors: positions of the output that are drawn, at most.
        block: one of :data:`dse.verified_units.UNITS`.
        parameters: sizes of the unit; taken smaller where the layer is.
        seed: of the positions.

    Raises:
        UsageError: an unknown workload, layer, format, block or parameter, a layer without weights, or one
            whose sums have no scale known in advance, or formats that the block cannot do.
        MissingExtraError, SimulationError: no Verilator or no compiler.
    """
    unit = find_unit(block, parameters or {})
    formats = parse_scalar_format(weights), parse_scalar_format(activations)
    steps = Recipe.parse(recipe)
    quantize = _language_layer if is_language_model(workload) else _image_layer
    quantized, name, inputs = quantize(workload, layer, *formats, steps, data)
    summary = next(known for known in quantized.layers if known.name == name)
    found = _layer_data(quantized, summary, inputs, vectors, seed)
    check = unit(found, summary.weight_format, summary.activation_format, formats[1])
    groups, rows, columns = found.matrices.shape
    return Verification(
        workload=workload,
        layer=layer,
        kind=summary.kind,
        weights=summary.weight_format.name,
        activations=summary.activation_format.name,
        groups=groups,
        rows=rows,
        columns=columns,
        block=block,
        **vars(check),
    )


def _image_layer(
    workload: str,
    layer: str,
    weights: ScalarFormat,
    activations: ScalarFormat,
    steps: Recipe,
    data: Path | None,
) -> tuple[QuantizedModel, str, Tensor]:
    """The quantized network, the layer's name in it, and two images."""
    loaded = load_workload(workload, data=data, calibration_images=_CALIBRATION_IMAGES, evaluation_images=2)
    prepared = rewritten(prepare(loaded.model, calibration_batches(loaded.calibration)), steps)
    _check_layer(layer, [(known.name, known.weights) for known in prepared.layers])
    settings = QuantizationSettings(weights=weights, activations=activations)
    (images, _) = next(iter(loaded.evaluation.batches(2)))
    return quantize_by(prepared, settings, steps), layer, images


def _language_layer(
    workload: str,
    layer: str,
    weights: ScalarFormat,
    activations: ScalarFormat,
    steps: Recipe,
    data: Path | None,
) -> tuple[QuantizedModel, str, Tensor]:
    """A network of that layer alone, and what the language model feeds it on the last of several windows
    of its default text, the others being for calibration."""
    model = load_language_model(workload, data)
    windows = windows_of(model, load_text(None), length=_WINDOW_TOKENS, count=_WINDOWS)
    captured = capture_linear(model, windows.tokens, layer)
    rows, columns = captured.weight.shape
    alone = nn.Linear(columns, rows, bias=captured.bias is not None)
    alone.weight = nn.Parameter(captured.weight)
    if captured.bias is not None:
        alone.bias = nn.Parameter(captured.bias)
    *calibration, last = captured.inputs.split(_WINDOW_TOKENS)
    prepared = rewritten(prepare(nn.Sequential(alone), calibration), steps)
    settings = QuantizationSettings(
        weights=weights, activations=activations, edge_weights=weights, edge_activations=activations
    )
    return quantize_by(prepared, settings, steps), prepared.layers[0].name, last


def _check_layer(name: str, layers: list[tuple[str, int]]) -> None:
    known = dict(layers)
    if name not in known:
        raise unknown_choice("layer", name, known)
    if not known[name]:
        msg = f"layer {name!r} multiplies two activations; this hardware multiplies by weights"
        raise UsageError(msg, given=name, expected=[layer for layer, weights in layers if weights])


def _layer_data(
    quantized: QuantizedModel, summary: LayerSummary, images: Tensor, vectors: int, seed: int
) -> LayerData:
    narrow = with_accumulator(quantized, None, layers=[summary.name])
    layer = narrow.network.get_submodule(summary.name)
    if not isinstance(layer, AccumulatorLayer):
        msg = f"layer {summary.name!r} has no sums of integers"
        raise UsageError(msg, given=summary.name)
    inputs = _inputs_of(quantized, summary.name, images)
    plain: nn.Module = layer.layer
    groups = group_count(plain)
    total = output_places(plain, inputs)
    places = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:vectors].sort().values
    rounded = input_rows(plain, inputs, places).numpy() / float(layer.input_scale)
    sums = layer.sums(inputs)
    sums = sums if isinstance(plain, nn.Linear) else sums.movedim(1, -1)
    sums = sums.reshape(total, groups, -1)[places].transpose(0, 1)
    weights = layer.weight_codes.double().mT.numpy() * 2.0**summary.weight_format.grid.lsb_exponent
    return LayerData(
        matrices=summary.weight_format.encode(weights),
        vectors=summary.activation_format.encode(rounded.astype(np.float32)),
        starts=layer.start[:, 0].long().numpy(),
        sums=sums.long().numpy(),
        scales=layer.output_scale.reshape(groups, -1).numpy(),
    )


def _inputs_of(quantized: QuantizedModel, name: str, images: Tensor) -> Tensor:
    """What the layer sees the first time it is called."""
    seen: list[Tensor] = []
    handle = quantized.network.get_submodule(name).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    try:
        with torch.no_grad():
            quantized(images)
    finally:
        handle.remove()
    return seen[0]
