"""What the table-lookup engine costs a weight bit a cycle.

Run from the root of the checkout: ``python tests/benchmarks/bench_lut_kernel.py``. Whole engines for a
matrix of 1024 columns and of 32 rows a lane, 512 where sums wait in block RAM; ``busy`` is the part of the
cycles in which weights are taken, and ``sites/bit`` the LUT6 sites for each weight bit of these cycles (each
weight, where they are ternary), ``sites/mean`` for each of all cycles.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from costmodel import synthesize
from hw.lut_kernel import TableLookupEngine
from quantizers.formats import parse_scalar_format

_COLUMNS = 1024
_ROWS_OF_A_LANE = {"lutram": 32, "bram": 512}

_ENGINES: tuple[dict[str, Any], ...] = (
    {"weights": "uint1", "lanes": 8, "groups": 4, "writers": 2},
    {"weights": "uint1", "lanes": 8, "groups": 8, "writers": 4},
    {"weights": "uint1", "lanes": 8, "groups": 16, "writers": 8},
    {"weights": "uint1", "lanes": 9, "groups": 18, "writers": 9},
    {"weights": "uint1", "lanes": 24, "groups": 16, "writers": 8},
    {"weights": "uint1", "lanes": 9, "groups": 18, "writers": 3, "sums": "bram"},
    {"weights": "uint1", "lanes": 9, "groups": 18, "writers": 3, "sums": "bram", "banks": 1, "group": 5},
    {"weights": "uint1", "lanes": 8, "groups": 8, "writers": 4, "table": "mirrored"},
    {"weights": "uint1", "lanes": 8, "groups": 8, "writers": 4, "table": "mirrored", "group": 5},
    {"weights": "uint1", "lanes": 8, "groups": 4, "storage": "registers"},
    {"weights": "uint1", "lanes": 8, "groups": 4, "storage": "registers", "table": "mirrored"},
    {"weights": "uint1", "lanes": 8, "groups": 16, "group": 1, "storage": "registers"},
    {"weights": "int2", "lanes": 8, "groups": 8, "writers": 4},
    {"weights": "int2", "lanes": 8, "groups": 8, "writers": 4, "planes": 1},
    {"weights": "int3", "lanes": 8, "groups": 8, "writers": 4},
    {"weights": "int4", "lanes": 8, "groups": 8, "writers": 4},
    {"weights": "int4", "lanes": 8, "groups": 8, "writers": 4, "planes": 1},
    {"weights": "int4", "lanes": 8, "groups": 8, "writers": 4, "planes": 2},
    {"weights": "int4", "lanes": 9, "groups": 18, "writers": 3, "sums": "bram", "planes": 1},
    {"weights": "int4", "lanes": 8, "groups": 8, "writers": 4, "activations": "int4"},
    {"weights": "int4", "lanes": 8, "groups": 8, "writers": 4, "activations": "e4m3"},
    {"weights": "ternary", "lanes": 8, "groups": 16, "table": "mirrored", "writers": 8},
    {"weights": "ternary", "lanes": 9, "groups": 18, "banks": 1, "writers": 6},
    {"weights": "ternary", "lanes": 9, "groups": 18, "banks": 1, "writers": 18, "sums": "bram"},
    {"weights": "ternary", "lanes": 9, "groups": 18, "banks": 1, "writers": 6, "sums": "bram"},
    {"weights": "ternary", "lanes": 24, "groups": 18, "banks": 1, "writers": 9, "sums": "bram"},
)


def main() -> None:
    print(
        f"{'weights':9}{'inputs':8}{'table':10}{'storage':10}{'sums':8}{'banks':>6}{'g':>3}{'planes':>7}{'lanes':>7}{'groups':>8}{'sites':>7}{'lutram':>8}"
        f"{'brams':>7}{'FFs':>7}{'delay ns':>10}{'cycles':>8}{'busy':>7}{'sites/bit':>11}{'sites/mean':>12}"
    )
    for engine in _ENGINES:
        _print(**engine)


def _print(*, weights: str, lanes: int, activations: str = "int8", **arguments: Any) -> None:
    rows = _ROWS_OF_A_LANE[arguments.get("sums", "lutram")]
    engine = TableLookupEngine(
        weights=parse_scalar_format(weights),
        activations=parse_scalar_format(activations),
        rows=rows * lanes,
        columns=_COLUMNS,
        lanes=lanes,
        **arguments,
    )
    encoding = engine.encoding
    bits = lanes * engine.groups * encoding.group * engine.planes
    busy = engine.lookup_cycles * engine.chunks / engine.interval
    cycles = engine.interval
    cost = synthesize(engine, name=weights)
    delay = "" if cost.logic_delay_ns is None else f"{cost.logic_delay_ns:.2f}"
    print(
        f"{weights:9}{activations:8}{encoding.table:10}{engine.storage:10}{engine.sums:8}{engine.banks:>6}"
        f"{encoding.group:>3}{engine.planes:>7}{lanes:>7}{engine.groups:>8}"
        f"{cost.luts:>7}{cost.lutrams:>8}{cost.brams:>7}{cost.ffs:>7}{delay:>10}{cycles:>8}{busy:>7.2f}"
        f"{cost.luts / bits:>11.2f}{cost.luts / bits / busy:>12.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
