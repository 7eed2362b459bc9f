"""The hardware blocks by name."""

from __future__ import annotations

from hw.blocks.block import Block, Datasheet, Parameter, Stimuli
from hw.blocks.block_aligner import BLOCK_ALIGNER
from hw.blocks.block_selector import BLOCK_SELECTOR
from hw.blocks.codes import LONGEST_RANDOM_DOT
from hw.blocks.dot import DOT
from hw.blocks.dsp_mac import DSP_MAC
from hw.blocks.float_mac import FLOAT_MAC
from hw.blocks.grouped_lookup import GROUPED_LUT_KERNEL
from hw.blocks.kv_allocated import KV_ALLOCATED_READER, KV_ALLOCATED_WRITER
from hw.blocks.kv_merge import KV_DISTINCT_TOKENS, KV_MERGE_ENGINE, KV_MERGE_RESTORE
from hw.blocks.kv_rotated import HADAMARD, KV_ROTATED_READER, KV_ROTATED_WRITER
from hw.blocks.kv_transform import KV_TRANSFORM_READER, KV_TRANSFORM_WRITER
from hw.blocks.kv_uniform import KV_UNIFORM_READER, KV_UNIFORM_WRITER
from hw.blocks.lut_kernel import LUT_KERNEL
from hw.blocks.mac import ANCHOR_DOT_LENGTH, BINNED_MAC, MAC
from hw.blocks.mvu import MVU
from hw.blocks.mx_dot import MX_DOT
from quantizers.errors import unknown_choice

__all__ = [
    "ANCHOR_DOT_LENGTH",
    "BLOCKS",
    "LONGEST_RANDOM_DOT",
    "Block",
    "Datasheet",
    "Parameter",
    "Stimuli",
    "find_block",
]

BLOCKS: dict[str, Block] = {
    block.name: block
    for block in (
        *(MAC, BINNED_MAC, FLOAT_MAC, DSP_MAC, DOT, MX_DOT, MVU),
        *(LUT_KERNEL, GROUPED_LUT_KERNEL, BLOCK_ALIGNER),
        *(KV_UNIFORM_WRITER, KV_UNIFORM_READER, KV_ROTATED_WRITER, KV_ROTATED_READER, HADAMARD),
        *(KV_ALLOCATED_WRITER, KV_ALLOCATED_READER, KV_TRANSFORM_WRITER, KV_TRANSFORM_READER),
        *(KV_MERGE_ENGINE, KV_MERGE_RESTORE, KV_DISTINCT_TOKENS, BLOCK_SELECTOR),
    )
}


def find_block(name: str) -> Block:
    """The block of a name.

    Raises:
        UsageError: there is none; says which is nearest.
    """
    if name not in BLOCKS:
        raise unknown_choice("block", name, BLOCKS)
    return BLOCKS[name]
