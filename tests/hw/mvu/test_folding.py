import pytest

from hw.mvu import Folding
from quantizers.errors import UsageError


@pytest.mark.parametrize(
    ("rows", "columns", "pe", "simd", "expected"),
    [
        (8, 8, 4, 4, (2, 2, 4, 0)),
        (7, 9, 4, 4, (2, 3, 6, 3)),
        (5, 7, 5, 7, (1, 1, 1, 0)),
        (512, 4608, 16, 16, (32, 288, 9216, 0)),
        (10, 10, 1, 3, (10, 4, 40, 2)),
    ],
)
def test_folds(rows, columns, pe, simd, expected):
    folding = Folding(rows=rows, columns=columns, pe=pe, simd=simd)
    assert (folding.row_folds, folding.column_folds, folding.cycles, folding.spare_lanes) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows must be a positive integer, not 0"),
        ({"columns": 1.5}, "columns must be a positive integer, not 1.5"),
        ({"pe": True}, "pe must be a positive integer, not True"),
        ({"pe": 5}, "pe must be at most rows (4), not 5"),
        ({"simd": 7}, "simd must be at most columns (6), not 7"),
    ],
)
def test_wrong_foldings(changes, message):
    with pytest.raises(UsageError) as caught:
        Folding(**{"rows": 4, "columns": 6, "pe": 2, "simd": 3, **changes})
    assert str(caught.value) == message
