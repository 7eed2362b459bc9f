from __future__ import annotations

import pytest

from costmodel import PARTS, find_part
from quantizers.errors import UsageError


def test_find_part() -> None:
    part = find_part("xc7z020")
    assert (part.family, part.luts, part.ffs, part.dsps, part.brams) == ("xc7", 53_200, 106_400, 220, 140)
    assert part.lutrams == 17_400


def test_parts_are_of_a_family_that_the_flow_models() -> None:
    for name, part in PARTS.items():
        assert (part.name, part.family) == (name, "xc7")
        assert part.ffs == 2 * part.luts  # four LUTs and eight flip-flops a slice
        assert 0.25 < part.lutrams / part.luts < 0.5  # slices whose LUTs can be RAM


def test_unknown_part_lists_the_choices() -> None:
    with pytest.raises(UsageError) as caught:
        find_part("xc7z02")
    assert str(caught.value) == (
        "unknown part 'xc7z02' (did you mean 'xc7z020'?); expected one of: "
        "xc7z010, xc7z020, xc7z045, xc7a35t, xc7a100t, xc7a200t, xc7k325t"
    )
    assert caught.value.expected[0] == "xc7z020"
