"""The table-lookup engine as a block."""

from __future__ import annotations

from typing import Any

import numpy as np

from hw._checks import check_positive
from hw.blocks.block import (
    Block,
    Datasheet,
    Parameter,
    Stimuli,
    check_optional_positive,
    check_text,
    matrix_speed,
)
from hw.blocks.codes import packed, random_codes, sum_meaning, wrapped
from hw.lut_kernel import STORAGES, SUM_MEMORIES, TABLES, TableLookupEngine, activation_words, weight_words
from hw.reference.lut_kernel import table_lookup_matrix_vector
from quantizers.formats import ScalarFormat


def _stimuli(
    component: TableLookupEngine,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    rows: int,
    columns: int,
    **_: Any,
) -> Stimuli:
    """A random matrix, and as many random vectors as give at least *count* transfers of results."""
    folds, lanes, bits = component.row_folds, component.lanes, component.accumulator_bits
    matrix = random_codes(weights, (rows, columns), rng)
    vectors = random_codes(activations, (-(-count // folds), columns), rng)
    sums = table_lookup_matrix_vector(
        matrix, vectors, weights=weights, activations=activations, group=component.encoding.group
    )
    transfers = np.pad(sums, [(0, 0), (0, folds * lanes - rows)]).reshape(-1, lanes)
    outputs = [
        sum(wrapped(total, bits) << bits * lane for lane, total in enumerate(transfer))
        for transfer in transfers.tolist()
    ]
    indices = [packed(word, component.encoding.index_bits) for word in weight_words(component, matrix)]
    inputs = [packed(word, activations.bits) for word in activation_words(component, vectors)]
    return Stimuli({"activations": inputs, "weights": indices * len(vectors)}, {"outputs": outputs})


def _datasheet(
    component: TableLookupEngine, *, weights: ScalarFormat, activations: ScalarFormat, **_: Any
) -> Datasheet:
    encoding, lanes, groups = component.encoding, component.lanes, component.groups
    word = component.writers * encoding.group
    return Datasheet(
        component.latency,
        "from the one in which the first rows' last weights of the last chunk are taken to their results",
        f"one vector in {component.interval} cycles",
        {
            "activations": f"{word} activation codes of a vector, {groups * encoding.group} a chunk",
            "weights": f"indices of a chunk: {groups} groups of {encoding.group} weights, "
            f"{component.planes} planes, {lanes} rows",
            "outputs": f"{lanes} sums; each the {sum_meaning(weights, activations)}",
        },
    )


def _speed(
    component: TableLookupEngine, *, weights: ScalarFormat, rows: int, columns: int, **_: Any
) -> dict[str, float]:
    return matrix_speed(weights, rows * columns, component.interval)


LUT_KERNEL = Block(
    "lut_kernel",
    TableLookupEngine,
    "table-lookup engine, to which a matrix streams",
    (
        Parameter("rows", 256, "results of a vector", check_positive),
        Parameter("columns", 256, "elements of a vector", check_positive),
        Parameter("lanes", 8, "rows worked on at a time", check_positive),
        Parameter("groups", 8, "tables: groups of activations looked up a cycle", check_positive),
        Parameter("group", None, "activations of a table; 4, or 3 of ternary", check_optional_positive),
        Parameter("planes", None, "bit planes a cycle; all if not set", check_optional_positive),
        Parameter("table", "full", f"entries kept: {', '.join(TABLES)} (half of them)", check_text),
        Parameter("storage", "lutram", f"of the tables: {', '.join(STORAGES)}", check_text),
        Parameter("banks", 2, "1, or 2: tables are written while others are read", check_positive),
        Parameter("writers", None, "tables written side by side; all if not set", check_optional_positive),
        Parameter("sums", "lutram", f"memory of the sums: {', '.join(SUM_MEMORIES)}", check_text),
        Parameter(
            "accumulator_bits", None, "width of the sums; what none overflows", check_optional_positive
        ),
    ),
    _stimuli,
    _datasheet,
    speed=_speed,
)
