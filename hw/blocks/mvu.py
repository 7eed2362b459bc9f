"""The matrix-vector unit as a block."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hw._checks import check_natural, check_positive
from hw.arith.addend import MULTIPLIERS
from hw.arith.requantizer import Requantization
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_flag, check_text, matrix_speed
from hw.blocks.codes import packed, random_codes, sum_meaning, wrapped
from hw.blocks.mac import ACCUMULATOR_BITS
from hw.mvu import MEMORIES, OVERFLOWS, MatrixVectorUnit, input_words, load_words
from hw.reference.mac import Sums
from hw.reference.mvu import matrix_vector
from hw.reference.requantizer import requantize
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat, parse_scalar_format


def _unit(
    *, output: str | None, multiplier_bits: int, max_shift: int, relu: bool, **arguments: Any
) -> MatrixVectorUnit:
    settings = _requantization(output, multiplier_bits, max_shift, relu)
    return MatrixVectorUnit(**arguments, output=settings)


def _requantization(
    output: str | None, multiplier_bits: int, max_shift: int, relu: bool
) -> Requantization | None:
    if output is not None:
        return Requantization(
            format=parse_scalar_format(output),
            multiplier_bits=multiplier_bits,
            shifts=range(max_shift + 1),
            relu=relu,
        )
    if relu:
        msg = "relu is a part of the requantizer, and without an output format there is none"
        raise UsageError(msg, given="relu=true", expected=["output=int8"])
    return None


def _stimuli(
    component: MatrixVectorUnit,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    rows: int,
    columns: int,
    accumulator_bits: int | None,
    has_bias: bool,
    output: str | None,
    multiplier_bits: int,
    max_shift: int,
    relu: bool,
    **_: Any,
) -> Stimuli:
    """A random matrix, and as many random vectors as give at least *count* transfers of results."""
    folds = component.folding.row_folds
    matrix = random_codes(weights, (rows, columns), rng)
    vectors = random_codes(activations, (-(-count // folds), columns), rng)
    sums = partial(matrix_vector, matrix, vectors, weights=weights, activations=activations)
    parameters: dict[str, npt.NDArray[Any]] = {}
    if has_bias:
        largest = max(1, min(int(np.abs(sums()).max()) // 4, (1 << (component.accumulator_bits - 1)) - 1))
        parameters["bias"] = rng.integers(-largest, largest, rows)
    results = sums(biases=parameters.get("bias"), accumulator_bits=accumulator_bits)
    bits = component.accumulator_bits
    settings = _requantization(output, multiplier_bits, max_shift, relu)
    if settings:
        multipliers, shifts = _scales(settings, results, rng)
        results = requantize(results, multipliers, shifts, output=settings.format, relu=relu)
        bits = settings.format.bits
        of_channel = {"multiplier": multipliers, "shift": shifts}
        parameters |= {
            name: of_channel[name] for name in component.parameter_layout.members if name != "bias"
        }
    pe = component.folding.pe
    lanes = np.pad(results, [(0, 0), (0, folds * pe - rows)]).reshape(-1, pe)
    outputs = [
        sum(wrapped(int(result), bits) << bits * place for place, result in enumerate(transfer))
        for transfer in lanes.tolist()
    ]
    words = load_words(component, matrix, **parameters)
    inputs = [packed(word, activations.bits) for word in input_words(component, vectors)]
    return Stimuli({"load": words, "inputs": inputs}, {"outputs": outputs}, first=("load",))


def _scales(
    settings: Requantization, sums: Sums, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Multipliers and shifts, one a row, that spread the sums over the format, and beyond it."""
    rows, bits = sums.shape[1], settings.multiplier_bits
    multipliers = np.asarray(
        rng.integers(1 << bits >> 1, 1 << bits, rows) if bits else np.ones(rows, np.int64)
    )
    largest = np.maximum(np.abs(sums).max(axis=0).astype(np.float64), 1)
    wanted = np.log2(largest * multipliers / settings.format.maximum) + rng.integers(-1, 3, rows)
    shifts = np.clip(np.round(wanted), settings.shifts.start, settings.shifts.stop - 1)
    return multipliers, shifts.astype(np.int64)


def _datasheet(
    component: MatrixVectorUnit,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    output: str | None,
    **_: Any,
) -> Datasheet:
    folding = component.folding
    parameters = ", ".join(component.parameter_layout.members)
    behind = f"; behind each row its {parameters}" if parameters else ""
    sums = f"{folding.pe} sums; each the {sum_meaning(weights, activations)}"
    return Datasheet(
        component.latency,
        "from the one in which a vector's last word is taken to the first in which results of it are offered",
        f"one vector in {component.interval} cycles",
        {
            "load": f"weights, row by row, {folding.simd} a word{behind}",
            "inputs": f"{folding.simd} activation codes of a vector",
            "outputs": f"{folding.pe} {output} codes" if output else sums,
        },
    )


def _speed(component: MatrixVectorUnit, *, weights: ScalarFormat, **_: Any) -> dict[str, float]:
    return matrix_speed(weights, component.folding.rows * component.folding.columns, component.interval)


MVU = Block(
    "mvu",
    _unit,
    "matrix-vector unit that holds its weights",
    (
        Parameter("rows", 64, "results of a vector", check_positive),
        Parameter("columns", 64, "elements of a vector", check_positive),
        Parameter("pe", 4, "rows worked on at a time", check_positive),
        Parameter("simd", 8, "columns a cycle", check_positive),
        Parameter("memory", "lutram", f"of the weights: {', '.join(MEMORIES)}", check_text),
        Parameter("multipliers", "luts", f"of what: {', '.join(MULTIPLIERS)} (integers only)", check_text),
        ACCUMULATOR_BITS,
        Parameter("overflow", "error", f"of narrow accumulators: {', '.join(OVERFLOWS)}", check_text),
        Parameter("has_bias", False, "rows start at a bias", check_flag),
        Parameter("output", None, "format of the results; the sums where not set", check_text),
        Parameter("multiplier_bits", 16, "of a row's scale; 0: powers of two", check_natural),
        Parameter("max_shift", 31, "largest shift of a row's scale", check_natural),
        Parameter("relu", False, "negative sums become zero, with an output format", check_flag),
    ),
    _stimuli,
    _datasheet,
    speed=_speed,
)
