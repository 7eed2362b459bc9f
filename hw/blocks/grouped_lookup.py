"""The table-lookup engine with scales and zero points along the columns as a block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Shape

from hw._checks import check_positive
from hw.arith._shapes import shape_range
from hw.arith.addend import MULTIPLIERS
from hw.blocks.block import (
    Block,
    Datasheet,
    Parameter,
    Stimuli,
    check_flag,
    check_optional_positive,
    check_text,
    matrix_speed,
)
from hw.blocks.codes import packed, random_codes, wrapped
from hw.blocks.lut_kernel import LUT_KERNEL
from hw.lut_kernel.grouped import GroupedLookupEngine
from hw.lut_kernel.grouped_streams import activation_words, scale_words, weight_words
from hw.reference.grouped_lookup import grouped_matrix_vector
from quantizers.formats import ScalarFormat


def _stimuli(
    component: GroupedLookupEngine,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    rows: int,
    columns: int,
    **_: Any,
) -> Stimuli:
    """A random matrix with random scales, and as many random vectors as give *count* transfers."""
    folds, lanes, bits = component.row_folds, component.lanes, component.accumulator_bits
    matrix = random_codes(weights, (rows, columns), rng)
    vectors = random_codes(activations, (-(-count // folds), columns), rng)
    scales = rng.integers(0, 1 << component.scale_bits, (rows, component.blocks))
    zeros = _random_zeros(component.zero_shape, scales.shape, rng) if component.has_zeros else None
    results = grouped_matrix_vector(
        matrix,
        vectors,
        scales,
        zeros,
        weights=weights,
        activations=activations,
        block=component.block,
        group=component.engine.encoding.group,
    )
    transfers = np.pad(results, [(0, 0), (0, folds * lanes - rows)]).reshape(-1, lanes)
    outputs = [
        sum(wrapped(total, bits) << bits * lane for lane, total in enumerate(transfer))
        for transfer in transfers.tolist()
    ]
    index_bits = component.engine.encoding.index_bits
    scale_code_bits = component.scale_bits + component.zero_shape.width
    matrix_words = [packed(word, index_bits) for word in weight_words(component, matrix)]
    codes = [packed(word, scale_code_bits) for word in scale_words(component, scales, zeros)]
    inputs = [packed(word, activations.bits) for word in activation_words(component, vectors)]
    return Stimuli(
        {"activations": inputs, "weights": matrix_words * len(vectors), "scales": codes * len(vectors)},
        {"outputs": outputs},
    )


def _random_zeros(zeros: Shape, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    low, high = shape_range(zeros)
    return rng.integers(low, high + 1, shape)


def _datasheet(
    component: GroupedLookupEngine, *, weights: ScalarFormat, activations: ScalarFormat, **arguments: Any
) -> Datasheet:
    inner = LUT_KERNEL.datasheet(component.engine, weights=weights, activations=activations, **arguments)
    zeros = f", and above it {component.zero_shape.width} of a zero point" if component.has_zeros else ""
    return Datasheet(
        component.latency,
        f"{inner.latency_meaning}, if no sums waited",
        f"one vector in {component.interval} cycles",
        {
            "activations": inner.streams["activations"],
            "weights": inner.streams["weights"],
            "scales": f"{component.lanes} rows of a block: {component.scale_bits} bits of a scale{zeros}",
            "outputs": f"{component.lanes} sums of blocks times scales, in units of those of the scales",
        },
    )


def _speed(
    component: GroupedLookupEngine, *, weights: ScalarFormat, rows: int, columns: int, **_: Any
) -> dict[str, float]:
    return matrix_speed(weights, rows * columns, component.interval)


def _check_optional_flag(name: str, value: object) -> None:
    if value is not None:
        check_flag(name, value)


GROUPED_LUT_KERNEL = Block(
    "grouped_lut_kernel",
    GroupedLookupEngine,
    "table-lookup engine with scales and zero points of blocks of columns",
    (
        *(parameter for parameter in LUT_KERNEL.parameters if parameter.name != "accumulator_bits"),
        Parameter("block", 128, "columns that share a scale; all if not set", check_optional_positive),
        Parameter("has_zeros", None, "zero points; if not set, of unsigned weights", _check_optional_flag),
        Parameter("scale_bits", 12, "of a scale, 2 to 16", check_positive),
        Parameter("multipliers", None, "lanes scaled at a time; all if not set", check_optional_positive),
        Parameter("products", "luts", f"of the scales: {', '.join(MULTIPLIERS)}", check_text),
    ),
    _stimuli,
    _datasheet,
    speed=_speed,
)
