"""The multiply-accumulate units that share a DSP slice, as a block."""

from __future__ import annotations

import numpy as np

from hw._checks import check_positive
from hw.arith.dsp import check_columns
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli
from hw.blocks.codes import LONGEST_RANDOM_DOT, packed, random_codes, sum_meaning, wrapped
from hw.blocks.mac import ACCUMULATOR_BITS, ANCHOR_DOT_LENGTH
from hw.dsp_mac import PackedMultiplyAccumulate
from hw.reference import multiply_accumulate
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat, ScalarFormat, parse_scalar_format


def _dsp_mac_stimuli(
    component: PackedMultiplyAccumulate,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    columns: int | None,
    accumulator_bits: int | None,
) -> Stimuli:
    """Dot products of random codes, of random length."""
    terms: list[int] = []
    sums: list[int] = []
    packing, bits = component.packing, component.accumulator_bits
    for length in rng.integers(1, min(dot_length, LONGEST_RANDOM_DOT) + 1, count).tolist():
        w = random_codes(weights, (length, packing.rows), rng)
        a = random_codes(activations, (length, packing.columns), rng)
        terms += [
            packed(x, weights.bits) | packed(y, activations.bits) << packing.rows * weights.bits
            for x, y in zip(w, a, strict=True)
        ]
        terms[-1] |= 1 << packing.rows * weights.bits + packing.columns * activations.bits
        totals = multiply_accumulate(w.T[:, None], a.T[None], weights=weights, activations=activations)
        lanes = [wrapped(int(total), bits) for total in totals.flat]
        sums.append(sum(total << bits * lane for lane, total in enumerate(lanes)))
    return Stimuli({"terms": terms}, {"sums": sums})


def _dsp_mac_datasheet(
    component: PackedMultiplyAccumulate,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    columns: int | None,
    accumulator_bits: int | None,
) -> Datasheet:
    packing = component.packing
    return Datasheet(
        component.latency,
        "from the one in which the last term is taken to the first in which its sums are offered",
        f"one term a cycle, {packing.lanes} products, with a pause of {component.pause} cycle "
        "between dot products",
        {
            "terms": f"{packing.rows} weight codes and {packing.columns} activation codes; last marks the "
            "final term of the dot products",
            "sums": f"for each weight, with each activation, the {sum_meaning(weights, activations)}",
        },
    )


def _check_optional_columns(name: str, value: object) -> None:
    if value is not None:
        check_columns(name, value)


def parse_integer_format(name: str) -> ScalarFormat:
    """The integer format of a name.

    Raises:
        UsageError: there is none, or the format is no integer.
    """
    fmt = parse_scalar_format(name)
    if not isinstance(fmt, IntegerFormat):
        msg = f"block 'dsp_mac' takes integer formats, not {fmt.name}"
        raise UsageError(msg, given=name, expected=["int8", "int4", "uint4"])
    return fmt


DSP_MAC = Block(
    "dsp_mac",
    PackedMultiplyAccumulate,
    "multiply-accumulate units for two or four products of integers that share a DSP slice",
    (
        Parameter("dot_length", ANCHOR_DOT_LENGTH, "terms in the longest dot", check_positive),
        Parameter(
            "columns",
            None,
            "activations of a term, 1 or 2; as many as fit where not set",
            _check_optional_columns,
        ),
        ACCUMULATOR_BITS,
    ),
    _dsp_mac_stimuli,
    _dsp_mac_datasheet,
    parse_integer_format,
)
