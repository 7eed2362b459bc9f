"""The byte format of group-wise weights, as a file or a stream holds them.

All integers are little-endian; bit fields are filled from the least significant bit of each byte, and
every section starts on a byte.

    header   24 bytes: magic "BFTL", version, flags (1 ternary, 2 symmetric, 4 one scale), bits, table
             group as one byte each; rows, columns, block and the CRC-32 of all that follows as 32 bits
             each
    indices  bit planes: for every row, every plane (least significant first), ceil(columns / group)
             indices of `group` bits; ternary: for every row, ceil(columns / 3) fields of 5 bits, the
             index and above it the sign; every row starts on a byte
    scales   float16, row by row
    zeros    `bits` bits each, row by row; absent where symmetric

Table groups run over the columns without regard to blocks, so a format with a group of 4 needs 1 bit a
weight and plane, and a ternary one 5/3 bits (TL2 of bitnet.cpp), plus the scales.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantizers.errors import UsageError
from quantizers.table_lookup.planes import (
    MAX_BITS,
    MAX_GROUP,
    bit_planes,
    check_integer,
    codes_of_planes,
    plane_indices,
    plane_of_indices,
    ternary_indices,
    ternary_weights,
)
from quantizers.table_lookup.weights import TERNARY_ZERO, GroupedWeights

MAGIC = b"BFTL"
VERSION = 1
TERNARY_GROUP = 3
TERNARY_BITS = 5
_HEADER = struct.Struct("<4sBBBBIIII")
_TERNARY, _SYMMETRIC, _ONE_SCALE = 1, 2, 4


def pack(weights: GroupedWeights, *, group: int = 4) -> bytes:
    """*weights* as bytes.

    Args:
        weights: what to store.
        group: columns of a lookup index, 1 to 8; ternary weights always take 3.

    Raises:
        UsageError: *group* is out of range.
    """
    check_integer("group", group, 1, MAX_GROUP)
    rows, columns = weights.codes.shape
    group = TERNARY_GROUP if weights.ternary else group
    flags = _TERNARY * weights.ternary | _SYMMETRIC * weights.symmetric
    flags |= _ONE_SCALE * (weights.scales.shape == (1, 1))
    sections = [_index_bytes(weights, group), weights.scales.astype("<f2").tobytes()]
    if not weights.symmetric:
        sections.append(_packed(weights.zeros.reshape(1, -1), weights.bits).tobytes())
    body = b"".join(sections)
    header = _HEADER.pack(
        MAGIC, VERSION, flags, weights.bits, group, rows, columns, weights.block, zlib.crc32(body)
    )
    return header + body


def unpack(data: bytes) -> GroupedWeights:
    """The weights of which `pack` gives *data*.

    Raises:
        UsageError: the magic, the version, a field of the header, the length or the checksum is wrong.
    """
    if len(data) < _HEADER.size:
        msg = f"packed weights start with a header of {_HEADER.size} bytes; there are {len(data)}"
        raise UsageError(msg, given=len(data))
    magic, version, flags, bits, group, rows, columns, block, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        msg = (
            f"not packed weights: starts with {magic!r}, version {version}, not {MAGIC!r}, version {VERSION}"
        )
        raise UsageError(msg, given=magic)
    check_integer("flags", flags, 0, _TERNARY | _SYMMETRIC | _ONE_SCALE)
    ternary, symmetric, one_scale = (bool(flags & bit) for bit in (_TERNARY, _SYMMETRIC, _ONE_SCALE))
    check_integer("bits", bits, *((2, 2) if ternary else (1, MAX_BITS)))
    check_integer("table group", group, *((TERNARY_GROUP, TERNARY_GROUP) if ternary else (1, MAX_GROUP)))
    check_integer("rows", rows, 1, 2**32 - 1)
    check_integer("columns", columns, 1, 2**32 - 1)
    check_integer("block", block, 1, columns)
    shape = (1, 1) if one_scale else (rows, -(-columns // block))
    index_bytes = rows * _row_bytes(bits, columns, group, ternary)
    scale_count = shape[0] * shape[1]
    zero_bytes = 0 if symmetric else _bytes_of(scale_count * bits)
    expected = _HEADER.size + index_bytes + 2 * scale_count + zero_bytes
    if len(data) != expected:
        msg = (
            f"packed weights of {rows} x {columns}, {bits} bits, take {expected} bytes; there are {len(data)}"
        )
        raise UsageError(msg, given=len(data), expected=[str(expected)])
    body = memoryview(data)[_HEADER.size :]
    if (found := zlib.crc32(body)) != checksum:
        msg = f"packed weights are damaged: the checksum is {found:#010x}, the header says {checksum:#010x}"
        raise UsageError(msg, given=f"{found:#010x}", expected=[f"{checksum:#010x}"])
    octets = np.frombuffer(body, np.uint8)
    codes = _codes(octets[:index_bytes].reshape(rows, -1), bits, columns, group, ternary)
    scales = octets[index_bytes : index_bytes + 2 * scale_count].view("<f2").astype(np.float16).reshape(shape)
    zeros = np.full(shape, 2 ** (bits - 1), np.uint8)
    if not symmetric:
        zeros = _unpacked(octets[None, index_bytes + 2 * scale_count :], bits, scale_count).reshape(shape)
    return GroupedWeights(codes=codes, bits=bits, scales=scales, zeros=zeros, block=block, ternary=ternary)


def packed_bits_per_weight(weights: GroupedWeights, *, group: int = 4) -> float:
    """Bits of `pack` per weight, scales, zero points and header included."""
    return 8 * len(pack(weights, group=group)) / weights.codes.size


def _index_bytes(weights: GroupedWeights, group: int) -> bytes:
    if weights.ternary:
        indices, signs = ternary_indices(weights.codes.astype(np.int8) - TERNARY_ZERO, group)
        return _packed(indices | signs << np.uint8(TERNARY_BITS - 1), TERNARY_BITS).tobytes()
    planes = bit_planes(weights.codes, weights.bits)
    fields = np.concatenate([plane_indices(plane, group) for plane in planes], axis=1)
    return _packed(fields, group).tobytes()


def _codes(
    octets: NDArray[np.uint8], bits: int, columns: int, group: int, ternary: bool
) -> NDArray[np.uint8]:
    """The codes of the index section, one row of *octets* a row."""
    groups = -(-columns // group)
    if ternary:
        fields = _unpacked(octets, TERNARY_BITS, groups)
        magnitudes, signs = fields & (2 ** (TERNARY_BITS - 1) - 1), fields >> (TERNARY_BITS - 1)
        return (ternary_weights(magnitudes, signs, columns, group) + TERNARY_ZERO).astype(np.uint8)
    fields = _unpacked(octets, group, bits * groups)
    planes = [plane_of_indices(indices, group, columns) for indices in np.split(fields, bits, axis=1)]
    return codes_of_planes(np.stack(planes))


def _row_bytes(bits: int, columns: int, group: int, ternary: bool) -> int:
    groups = -(-columns // group)
    return _bytes_of(groups * (TERNARY_BITS if ternary else group * bits))


def _bytes_of(bits: int) -> int:
    return -(-bits // 8)


def _packed(fields: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The low *width* bits of the fields (rows, n) as bytes (rows, ceil(n * width / 8))."""
    bits = (fields[..., None] >> np.arange(width, dtype=np.uint8)) & np.uint8(1)
    return np.packbits(bits.reshape(fields.shape[0], -1), axis=1, bitorder="little")


def _unpacked(octets: NDArray[Any], width: int, count: int) -> NDArray[np.uint8]:
    """*count* fields of *width* bits of every row of *octets*."""
    bits = np.unpackbits(octets, axis=1, count=count * width, bitorder="little")
    fields = bits.reshape(octets.shape[0], count, width) << np.arange(width, dtype=np.uint8)
    return fields.sum(axis=-1, dtype=np.uint8)
