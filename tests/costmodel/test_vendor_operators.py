"""Sites against Vivado's LUTs for plain operators, on designs that nothing was fitted to."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from costmodel import synthesize_verilog

_TABLE = Path(__file__).parents[3] / "shared" / "data" / "vendor_operators.csv"
_WRAPPER_LUTS = 2  # what the vendor's register wrapper adds: facts/cost-data.md section 3

_OPERATORS = {
    "plus_expr": "a + b",
    "minus_expr": "a - b",
    "lt_expr": "a < b",
    "max_expr": "a > b ? a : b",
    "cond_expr": "|a ? b : c",
    "ternary_plus_expr": "a + b + c",
}
_WIDTHS = (8, 16, 32)


def _source(expression: str, width: int) -> str:
    return f"""\
module operator(input clk, input signed [{width - 1}:0] x, y, z, output reg signed [{width - 1}:0] q);
  reg signed [{width - 1}:0] a, b, c;
  always @(posedge clk) begin a <= x; b <= y; c <= z; q <= {expression}; end
endmodule
"""


def _vendor_luts() -> dict[tuple[str, int], int]:
    """Vivado's LUTs by operator and width, for those whose operands and result are all of one width."""
    with _TABLE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"].startswith("xc7z020")]
    luts = {}
    for row in rows:
        widths = set(row["parameters"].split())
        if len(widths) == 1:
            luts[row["operator"], int(widths.pop())] = int(row["luts"]) - _WRAPPER_LUTS
    return luts


@pytest.mark.skipif(not _TABLE.exists(), reason=f"the vendor table {_TABLE.name} is not beside this checkout")
def test_sites_match_vendor_luts_without_a_fit(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    vendor = _vendor_luts()
    logs = []
    for name, expression in _OPERATORS.items():
        for width in _WIDTHS:
            path = tmp_path / f"{name}{width}.v"
            path.write_text(_source(expression, width))
            sites = synthesize_verilog([path], top="operator").luts
            logs.append(math.log(sites / vendor[name, width]))
    ratio = math.exp(sum(logs) / len(logs))
    record_property("mean_ratio", ratio)
    print(f"sites / Vivado LUTs over {len(logs)} operators: geometric mean {ratio:.3f}")
    assert 0.95 < ratio < 1.15
