"""A layer of a quantized network through the simulated hardware: every integer must be the software's."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dse.accuracy import calibration_batches
from dse.workloads import load_workload
from hw.arith.requantizer import Requantization
from hw.mvu import MatrixVectorUnit, input_words, load_words, output_count, vector_results
from hw.reference.requantizer import Scaling, find_scaling, requantize
from hw.verilator import VerilatedStream
from quantizers.accumulator import AccumulatorLayer, with_accumulator
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import ScalarFormat, parse_scalar_format
from quantizers.moments import group_count, input_rows, output_places
from quantizers.prepare import prepare
from quantizers.quantize import LayerSummary, QuantizationSettings, QuantizedModel
from quantizers.recipes import Recipe, quantize_by, rewritten

_MULTIPLIER_BITS = 16
# Enough for stable scales; the arithmetic that is checked does not depend on them.
_CALIBRATION_IMAGES = 64
_PE, _SIMD = 4, 8


@dataclass(frozen=True)
class Verification:
    """What a comparison of hardware and software found.

    Attributes:
        workload, layer, kind, weights, activations: what was run; the formats are those that the layer
            uses, unsigned where its inputs cannot be negative.
        rows, columns, groups: the layer as matrices: *groups* of them, of *rows* by *columns*.
        pe, simd, accumulator_bits: of the matrix-vector unit.
        checked: outputs compared, each as a sum and as a code.
        mismatches: sums and codes that are not the software's.
        rounding_differences: codes in which the integer multiplier of the requantizer, in place of the real
            scale, made a difference, in software and hardware alike.
        largest_scale_error: relative error of these multipliers.
        cycles: simulated, of both units and all groups.
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
    pe: int
    simd: int
    accumulator_bits: int
    checked: int
    mismatches: int
    rounding_differences: int
    largest_scale_error: float
    cycles: int
    cycles_per_second: float

    def as_json(self) -> dict[str, Any]:
        """All attributes."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _LayerData:
    """A layer as matrices, groups first; integers and codes.

    Attributes:
        matrices: weight codes ``(groups, rows, columns)``.
        vectors: activation codes ``(groups, vectors, columns)``.
        starts: integers at which sums start, ``(groups, rows)``.
        sums: the software's, ``(groups, vectors, rows)``.
        scales: what one unit of a sum is worth, ``(groups, rows)``.
    """

    matrices: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    sums: npt.NDArray[Any]
    scales: npt.NDArray[np.float64]


def verify_layer(
    workload: str,
    layer: str,
    *,
    weights: str,
    activations: str,
    recipe: str = "round",
    data: Path | None = None,
    vectors: int = 64,
    pe: int = _PE,
    simd: int = _SIMD,
    seed: int = 0,
) -> Verification:
    """Quantize the workload and run real inputs of one layer through a simulated matrix-vector unit.

    Convolutions are matrix products of their windows, a group after the other. Sums are compared as the
    exact integers that they are (the bias is the integer that they start from), and then, from a unit
    with a requantizer, the codes that the layer's output has in the format of the activations.

    Args:
        layer: name of a layer with weights.
        vectors: positions of the output that are drawn, at most.
        pe, simd: of the unit; taken smaller where the layer has fewer rows or columns.
        seed: of the positions.

    Raises:
        UsageError: an unknown workload, layer or format, a layer without weights, or one whose sums have no
            scale known in advance.
        MissingExtraError, SimulationError: no Verilator or no compiler.
    """
    settings = QuantizationSettings(
        weights=parse_scalar_format(weights), activations=parse_scalar_format(activations)
    )
    steps = Recipe.parse(recipe)
    loaded = load_workload(workload, data=data, calibration_images=_CALIBRATION_IMAGES, evaluation_images=2)
    prepared = rewritten(prepare(loaded.model, calibration_batches(loaded.calibration)), steps)
    _check_layer(layer, [(known.name, known.weights) for known in prepared.layers])
    quantized = quantize_by(prepared, settings, steps)
    summary = next(known for known in quantized.layers if known.name == layer)
    (images, _) = next(iter(loaded.evaluation.batches(2)))
    found = _layer_data(quantized, summary, images, vectors, seed)

    groups, rows, columns = found.matrices.shape
    pe, simd = min(pe, rows), min(simd, columns)
    shape: dict[str, Any] = {"rows": rows, "columns": columns, "pe": pe, "simd": simd}
    formats: dict[str, Any] = {"weights": summary.weight_format, "activations": summary.activation_format}
    unit = MatrixVectorUnit(**formats, **shape, has_bias=True)
    bits = unit.accumulator_bits
    sums, sum_cycles, sum_seconds = _simulated(unit, found, {})
    output, scaling, wanted = _codes(found, parse_scalar_format(activations))
    requantization = Requantization(
        format=output,
        multiplier_bits=_MULTIPLIER_BITS,
        shifts=range(int(scaling.shifts.min()), int(scaling.shifts.max()) + 1),
    )
    with_codes = MatrixVectorUnit(**formats, **shape, has_bias=True, output=requantization)
    parameters = {"multiplier": scaling.multipliers, "shift": scaling.shifts}
    codes, code_cycles, code_seconds = _simulated(with_codes, found, parameters)

    expected = requantize(found.sums, scaling.multipliers[:, None], scaling.shifts[:, None], output=output)
    return Verification(
        workload=workload,
        layer=layer,
        kind=summary.kind,
        weights=summary.weight_format.name,
        activations=summary.activation_format.name,
        groups=groups,
        **shape,
        accumulator_bits=bits,
        checked=2 * found.sums.size,
        mismatches=int((sums != found.sums).sum() + (codes != expected).sum()),
        rounding_differences=int((expected != wanted).sum()),
        largest_scale_error=scaling.largest_relative_error,
        cycles=sum_cycles + code_cycles,
        cycles_per_second=(sum_cycles + code_cycles) / (sum_seconds + code_seconds),
    )


def _check_layer(name: str, layers: list[tuple[str, int]]) -> None:
    known = dict(layers)
    if name not in known:
        raise unknown_choice("layer", name, known)
    if not known[name]:
        msg = f"layer {name!r} multiplies two activations; the matrix-vector unit holds weights"
        raise UsageError(msg, given=name, expected=[layer for layer, weights in layers if weights])


def _layer_data(
    quantized: QuantizedModel, summary: LayerSummary, images: Tensor, vectors: int, seed: int
) -> _LayerData:
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
    return _LayerData(
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


def _codes(found: _LayerData, output: ScalarFormat) -> tuple[ScalarFormat, Scaling, npt.NDArray[np.int64]]:
    """The format and scaling of the output, and its codes with the real scales.

    One scale for the whole output, its largest value for the largest of the format: what is checked is the
    arithmetic, not the choice.
    """
    values = found.sums * found.scales[:, None]
    scale = float(np.abs(values).max()) / output.maximum or 1.0
    ratios = found.scales / scale
    # The shift that brings each multiplier into the upper half of its range.
    shifts = np.floor(np.log2(((1 << _MULTIPLIER_BITS) - 1) / ratios)).astype(int)
    reach = range(min(int(shifts.min()), 0), int(shifts.max()) + 1)
    scaling = find_scaling(ratios, multiplier_bits=_MULTIPLIER_BITS, shifts=reach)
    return output, scaling, output.encode(values / scale)


def _simulated(
    unit: MatrixVectorUnit, found: _LayerData, parameters: dict[str, npt.NDArray[np.int64]]
) -> tuple[npt.NDArray[Any], int, float]:
    """The results ``(groups, vectors, rows)``, each group's matrix loaded in turn; cycles, and seconds."""
    loads = [
        load_words(unit, matrix, bias=start, **{name: values[group] for name, values in parameters.items()})
        for group, (matrix, start) in enumerate(zip(found.matrices, found.starts, strict=True))
    ]
    inputs = [input_words(unit, vectors) for vectors in found.vectors]
    count = output_count(unit, found.vectors.shape[1])
    # Elaborated once, it can only be simulated from here on.
    model = VerilatedStream(unit)
    results, cycles = [], 0
    start = time.perf_counter()
    for load, words in zip(loads, inputs, strict=True):
        trace = model.run({"load": load, "inputs": words}, output_count=count, first=["load"])
        results.append(vector_results(unit, trace.outputs))
        cycles += trace.cycles
    return np.stack(results), cycles, time.perf_counter() - start
