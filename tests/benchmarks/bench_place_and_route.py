"""How fast the multiply-accumulate units of all formats run, on a Lattice ECP5 after place and route.

Run from the root of the checkout: ``python tests/benchmarks/bench_place_and_route.py [--bits 3 4 5 6 7 8]
[--dot-length 4608]``. A line for each unit of two operands of one format: LUT6 sites on xc7z020, mean clock
frequency and its deviation over the seeds, and the longest path. About ten seconds a unit, the first time;
results are kept in the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amaranth.lib.wiring import Component

sys.path.insert(0, str(Path(__file__).parents[2]))

from costmodel import ContentCache, synthesize
from costmodel.place_and_route import PART, place_and_route
from hw.binned_mac import BinnedMultiplyAccumulate
from hw.mac import MultiplyAccumulate
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat, signed_formats

UNITS: dict[str, tuple[Any, dict[str, Any]]] = {
    "exact": (MultiplyAccumulate, {}),
    "exact pipelined": (MultiplyAccumulate, {"pipelined": True}),
    "bins": (BinnedMultiplyAccumulate, {}),
    "bins pipelined": (BinnedMultiplyAccumulate, {"pipelined": True}),
}


def built(fmt: ScalarFormat, dot_length: int) -> Iterator[tuple[str, Component, int]]:
    """Each unit that there is for a format, with its name and latency."""
    for name, (unit, more) in UNITS.items():
        try:
            component = unit(weights=fmt, activations=fmt, dot_length=dot_length, **more)
        except UsageError:  # no bins without exponents
            continue
        yield name, component, component.latency


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--bits", type=int, nargs="+", default=[4])
    arguments.add_argument("--dot-length", type=int, default=4608)
    chosen = arguments.parse_args()
    caches = {name: ContentCache(namespace=name) for name in ("synthesis", "place_and_route")}
    print(f"place and route on {PART}; dot products of {chosen.dot_length}")
    print(f"{'format':7} {'unit':15} {'bits':>4} {'sites':>5} {'cycles':>6} {'MHz':>12}  longest path")
    for fmt in (fmt for bits in chosen.bits for fmt in signed_formats(bits)):
        for name, component, latency in built(fmt, chosen.dot_length):
            sites = synthesize(component, name=name, cache=caches["synthesis"]).luts
            placed = place_and_route(component, name=name, cache=caches["place_and_route"])
            path = placed.critical_path
            print(
                f"{fmt.name:7} {name:15} {component.accumulator_bits:4} {sites:5} {latency:6} "
                f"{placed.fmax_mhz:5.0f} +- {placed.deviation_mhz:3.0f}  {path.start} -> {path.end}, "
                f"{path.logic_ns:.1f} ns logic, {path.routing_ns:.1f} routing",
                flush=True,
            )


if __name__ == "__main__":
    main()
