from __future__ import annotations

import re

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.table_lookup.packing import pack, packed_bits_per_weight, unpack
from quantizers.table_lookup.weights import GroupedWeights, quantize_groups, quantize_ternary


def assert_same(ours: GroupedWeights, theirs: GroupedWeights) -> None:
    for name in ("codes", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
    assert (ours.bits, ours.block, ours.ternary) == (theirs.bits, theirs.block, theirs.ternary)


@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("block", [1, 32, "channel", "tensor"])
def test_weights_come_back(block, group: int) -> None:
    rng = np.random.default_rng(group)
    for bits in (1, 2, 3, 4):
        for symmetric in (False, True):
            matrix = rng.standard_normal(rng.integers(1, 50, 2))
            weights = quantize_groups(matrix, bits, block=block, symmetric=symmetric)
            assert_same(unpack(pack(weights, group=group)), weights)
    ternary = quantize_ternary(rng.standard_normal(rng.integers(1, 50, 2)), block=block)
    assert_same(unpack(pack(ternary, group=group)), ternary)


def some(**changes) -> GroupedWeights:
    fields = {
        "codes": np.array([[3, 0, 1, 2, 3]], np.uint8),
        "bits": 2,
        "scales": np.array([[1.0]], np.float16),
        "zeros": np.array([[1]], np.uint8),
        "block": 5,
    }
    return GroupedWeights(**{**fields, **changes})


def test_bytes_of_planes() -> None:
    data = pack(some())
    assert data[:12] == b"BFTL\x01\x04\x02\x04\x01\x00\x00\x00"
    assert data[12:20] == b"\x05\x00\x00\x00\x05\x00\x00\x00"
    # Plane 0 is 10101, plane 1 is 10011: indices 5 and 1, 9 and 1; the scale 1.0; the zero point 1.
    assert data[24:] == b"\x15\x19\x00\x3c\x01"


def test_bytes_of_ternary_weights() -> None:
    data = pack(
        some(codes=np.array([[1, 2, 2, 3, 3]], np.uint8), zeros=np.array([[2]], np.uint8), ternary=True)
    )
    assert data[5:8] == b"\x07\x02\x03"
    # -1, 0, 0 is index 9 with a sign, 25; 1, 1, 0 is 12; five bits each.
    assert data[24:] == b"\x99\x01\x00\x3c"


@pytest.mark.parametrize(
    ("weights", "bits"),
    [
        (quantize_groups(np.ones((64, 1024)), 4, symmetric=True), 4 + 16 / 128),
        (quantize_groups(np.ones((64, 1024)), 2, block=32), 2 + 18 / 32),
        (quantize_ternary(np.ones((64, 1536))), 5 / 3 + 16 / (64 * 1536)),
    ],
)
def test_bits_per_weight(weights: GroupedWeights, bits: float) -> None:
    assert packed_bits_per_weight(weights) == pytest.approx(bits + 8 * 24 / weights.codes.size, rel=1e-12)


DATA = pack(some())


def changed(position: int, value: int) -> bytes:
    return DATA[:position] + bytes([value]) + DATA[position + 1 :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA[:23], "packed weights start with a header of 24 bytes; there are 23"),
        (DATA[:-1], "packed weights of 1 x 5, 2 bits, take 29 bytes; there are 28"),
        (DATA + b"\0", "packed weights of 1 x 5, 2 bits, take 29 bytes; there are 30"),
        (changed(0, 0), "not packed weights: starts with b'\\x00FTL', version 1, not b'BFTL', version 1"),
        (changed(4, 2), "not packed weights: starts with b'BFTL', version 2, not b'BFTL', version 1"),
        (changed(5, 8), "flags must be an integer from 0 to 7, not 8"),
        (changed(6, 5), "bits must be an integer from 1 to 4, not 5"),
        (changed(7, 0), "table group must be an integer from 1 to 8, not 0"),
        (changed(5, 5), "table group must be an integer from 3 to 3, not 4"),
        (changed(8, 0), "rows must be an integer from 1 to 4294967295, not 0"),
        (changed(12, 0), "columns must be an integer from 1 to 4294967295, not 0"),
        (changed(16, 6), "block must be an integer from 1 to 5, not 6"),
        (
            changed(24, 0),
            "packed weights are damaged: the checksum is 0xefc7a661, the header says 0x47c7be93",
        ),
    ],
)
def test_wrong_bytes_are_told(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        unpack(data)


@pytest.mark.parametrize("position", range(20, 29))
def test_every_damaged_byte_of_the_rest_is_found(position: int) -> None:
    with pytest.raises(UsageError, match="^packed weights are damaged: the checksum is "):
        unpack(changed(position, DATA[position] ^ 0x10))


def test_wrong_table_group_to_pack() -> None:
    with pytest.raises(UsageError, match=r"^group must be an integer from 1 to 8, not 9$"):
        pack(some(), group=9)
