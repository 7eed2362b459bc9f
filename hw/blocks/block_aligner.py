"""The aligner of blocks of floating-point activations as a block."""

from __future__ import annotations

from typing import Any

import numpy as np

from hw._checks import check_positive
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_text
from hw.blocks.codes import element_words, joined
from hw.lut_kernel import BlockAligner
from hw.reference.block_aligner import align_words
from quantizers.table_lookup.wide_float import wide_float


def _aligner(*, input: str, lanes: int, words: int, bits: int) -> BlockAligner:
    return BlockAligner(activations=wide_float(input), lanes=lanes, words=words, bits=bits)


def _stimuli(
    component: BlockAligner,
    rng: np.random.Generator,
    count: int,
    *,
    lanes: int,
    words: int,
    bits: int,
    **_: Any,
) -> Stimuli:
    """Whole blocks of at least *count* words: normal numbers and zeros, every fourth block of any codes."""
    fmt, blocks = component.activations_format, -(-count // words)
    shape = (blocks, words, lanes)
    codes = np.asarray(fmt.encode(rng.standard_normal(shape) * (rng.random(shape) > 0.1)), np.int64)
    finite = np.flatnonzero(np.isfinite(fmt.values()))
    codes[::4] = rng.choice(finite, codes[::4].shape)
    aligned = align_words(codes.reshape(-1, lanes), activations=fmt, words_per_block=words, bits=bits)
    outputs = [
        joined([word, exponent], [bits * lanes, fmt.exponent_bits])
        for word, exponent in zip(
            element_words(aligned.codes, lanes=lanes, bits=bits), aligned.exponents.tolist(), strict=True
        )
    ]
    return Stimuli({"activations": element_words(codes, lanes=lanes, bits=fmt.bits)}, {"outputs": outputs})


def _datasheet(component: BlockAligner, *, input: str, lanes: int, words: int, bits: int) -> Datasheet:
    bias = component.activations_format.exponent_bias
    return Datasheet(
        component.latency,
        "from the one in which a block's last word is taken to the first with results of it",
        f"one word a cycle, {words} words a block",
        {
            "activations": f"{lanes} {input} codes of a block",
            "outputs": f"{lanes} integers and the exponent of their block: of value "
            f"integer * 2**(exponent - {bias + bits - 2}); an exponent of all ones: the block held an "
            "infinity or a NaN",
        },
    )


def _speed(component: BlockAligner, *, lanes: int, **_: Any) -> dict[str, float]:
    return {"elements_per_cycle": lanes}


BLOCK_ALIGNER = Block(
    "block_aligner",
    _aligner,
    "makes blocks of floating-point activations integers with an exponent a block",
    (
        Parameter("input", "bf16", "format of the activations: bf16, fp16 or tf32", check_text),
        Parameter("lanes", 4, "activations a cycle", check_positive),
        Parameter("words", 8, "of a block", check_positive),
        Parameter("bits", 12, "of an integer, 4 to 16", check_positive),
    ),
    _stimuli,
    _datasheet,
    speed=_speed,
    formats=(),
)
