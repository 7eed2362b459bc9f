"""The matrix-vector unit as a block."""

from __future__ import annotations

from typing import Any

import numpy as np

from hw._checks import check_positive
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_text
from hw.blocks.codes import packed, random_codes, sum_meaning, wrapped
from hw.blocks.mac import ACCUMULATOR_BITS
from hw.mvu import MEMORIES, OVERFLOWS, MatrixVectorUnit, input_words, load_words
from hw.reference.mvu import matrix_vector
from quantizers.formats import ScalarFormat


def _mvu_stimuli(
    component: MatrixVectorUnit,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    rows: int,
    columns: int,
    accumulator_bits: int | None,
    **_: Any,
) -> Stimuli:
    """A random matrix, and as many random vectors as give at least *count* transfers of results."""
    folds = component.folding.row_folds
    matrix = random_codes(weights, (rows, columns), rng)
    vectors = random_codes(activations, (-(-count // folds), columns), rng)
    sums = matrix_vector(
        matrix, vectors, weights=weights, activations=activations, accumulator_bits=accumulator_bits
    )
    lanes = np.pad(sums, [(0, 0), (0, folds * component.folding.pe - rows)]).reshape(-1, component.folding.pe)
    bits = component.accumulator_bits
    outputs = [
        sum(wrapped(int(total), bits) << bits * place for place, total in enumerate(transfer))
        for transfer in lanes.tolist()
    ]
    inputs = [packed(word, activations.bits) for word in input_words(component, vectors)]
    return Stimuli({"load": load_words(component, matrix), "inputs": inputs}, outputs, first=("load",))


def _mvu_datasheet(
    component: MatrixVectorUnit, *, weights: ScalarFormat, activations: ScalarFormat, **_: Any
) -> Datasheet:
    folding = component.folding
    return Datasheet(
        component.latency,
        "from the one in which a vector's last word is taken to the first in which results of it are offered",
        f"one vector in {component.interval} cycles",
        {
            "load": f"weights, row by row, {folding.simd} a word",
            "inputs": f"{folding.simd} activation codes of a vector",
            "outputs": f"{folding.pe} sums; each the {sum_meaning(weights, activations)}",
        },
    )


MVU = Block(
    "mvu",
    MatrixVectorUnit,
    "matrix-vector unit that holds its weights",
    (
        Parameter("rows", 64, "results of a vector", check_positive),
        Parameter("columns", 64, "elements of a vector", check_positive),
        Parameter("pe", 4, "rows worked on at a time", check_positive),
        Parameter("simd", 8, "columns a cycle", check_positive),
        Parameter("memory", "lutram", f"of the weights: {', '.join(MEMORIES)}", check_text),
        ACCUMULATOR_BITS,
        Parameter("overflow", "error", f"of narrow accumulators: {', '.join(OVERFLOWS)}", check_text),
    ),
    _mvu_stimuli,
    _mvu_datasheet,
)
