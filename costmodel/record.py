"""The record of what the designs of this project occupy: a change of a figure is a change of a file.

``python -m costmodel.record`` measures all of them again and writes ``resources.json`` beside this module;
``python -m costmodel.record --table`` prints the best unit for every format from it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from amaranth.hdl import signed
from amaranth.lib import wiring

from costmodel.synthesis import Resources, synthesize
from hw.arith import Multiplier
from hw.binned_mac import BinnedMultiplyAccumulate
from hw.dot import DotProduct
from hw.mac import MultiplyAccumulate
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format, signed_formats

PATH = Path(__file__).with_name("resources.json")
DOT_LENGTHS = (32, 512, 4608)
PART = "xc7z020"
_BITS = range(3, 9)
_MIXED = (
    ("int4", "int8"), ("e2m1", "int8"), ("ternary", "int8"), ("int8", "uint8"), ("int4", "e4m3"),
    ("e2m1", "e4m3"), ("e3m2", "e4m3"), ("int8", "e4m3"), ("e4m3", "e5m2"), ("e4m3", "ue4m4"),
)  # fmt: skip
_DOTS = (("int8", 16), ("int4", 16), ("e2m1", 32), ("e4m3", 8))
_FIGURES = ("luts", "lut_cells", "carry_positions", "ffs", "lutrams", "logic_delay_ns")


@dataclass(frozen=True)
class RecordedDesign:
    """One design of the record.

    Attributes:
        name: its key in the file.
        build: makes the component.
        cycles_per_product: of a dot product of the full length, its pause included; ``None`` for what is
            no multiply-accumulate unit.
    """

    name: str
    build: Callable[[], wiring.Component]
    cycles_per_product: float | None = None


def recorded_designs() -> dict[str, RecordedDesign]:
    """All designs of the record, by name."""
    return {design.name: design for design in _designs()}


def _designs() -> Iterator[RecordedDesign]:
    for bits in _BITS:
        shape = signed(bits)
        yield RecordedDesign(f"multiplier int{bits} int{bits}", partial(Multiplier, a=shape, b=shape))
    for name, lanes in _DOTS:
        fmt = parse_scalar_format(name)
        arguments: dict[str, Any] = {"weights": fmt, "activations": fmt, "lanes": lanes}
        yield RecordedDesign(f"dot {name} {name} lanes={lanes}", partial(DotProduct, **arguments))
    same = [(fmt.name, fmt.name) for bits in _BITS for fmt in signed_formats(bits)]
    for weights, activations in (*same, *_MIXED):
        for dot_length in DOT_LENGTHS:
            arguments = {
                "weights": parse_scalar_format(weights),
                "activations": parse_scalar_format(activations),
                "dot_length": dot_length,
            }
            name = f"{weights} {activations} n={dot_length}"
            yield RecordedDesign(f"mac exact {name}", partial(MultiplyAccumulate, **arguments), 1.0)
            try:
                pause = BinnedMultiplyAccumulate(**arguments).pause
            except UsageError:  # formats without exponents
                continue
            cycles = round((dot_length + pause) / dot_length, 3)
            yield RecordedDesign(f"mac bins {name}", partial(BinnedMultiplyAccumulate, **arguments), cycles)


def figures_of(design: RecordedDesign) -> dict[str, float]:
    """The resources of a design, synthesised now; what could not be had is absent."""
    resources = synthesize(design.build(), name=design.name, part=PART)
    values = {name: getattr(resources, name) for name in _FIGURES}
    if design.cycles_per_product is not None:
        values["cycles_per_product"] = design.cycles_per_product
    return {name: value for name, value in values.items() if value is not None}


def read_record() -> dict[str, dict[str, float]]:
    """The figures in the file, by name of the design."""
    designs: dict[str, dict[str, float]] = json.loads(PATH.read_text())["designs"]
    return designs


def grown(name: str, now: Mapping[str, float], tolerance: float = 0.03) -> list[str]:
    """What takes more than the record says, in words; empty where nothing does.

    Args:
        tolerance: share by which a figure may grow.
    """
    recorded = read_record()[name]
    return [
        f"{name}: {figure} grew from {recorded[figure]} to {now[figure]}"
        for figure in ("luts", "ffs", "lutrams")
        if now[figure] > recorded[figure] * (1 + tolerance)
    ]


def best_units(record: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, str, float, float]]:
    """For every pair of formats and dot length the unit of the fewest sites times cycles a product.

    Yields:
        pair and dot length, accumulator, LUT6 sites, cycles a product.
    """
    units: dict[str, list[tuple[float, str, float, float]]] = {}
    for name, figures in record.items():
        kind, accumulator, task = name.split(maxsplit=2)
        if kind == "mac":
            luts, cycles = figures["luts"], figures["cycles_per_product"]
            units.setdefault(task, []).append((luts * cycles, accumulator, luts, cycles))
    for task, candidates in units.items():
        _, accumulator, luts, cycles = min(candidates)
        yield task, accumulator, luts, cycles


def _measure(name: str) -> tuple[str, dict[str, float]]:
    return name, figures_of(recorded_designs()[name])


def _write(measured: Iterable[tuple[str, dict[str, float]]], tools: Mapping[str, str]) -> None:
    document: dict[str, Any] = {"part": PART, "tools": dict(tools), "designs": dict(sorted(measured))}
    PATH.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    """The command of this module."""
    if "--table" in sys.argv:
        for task, accumulator, luts, cycles in best_units(read_record()):
            print(f"{task:18} {accumulator:6} {luts:4.0f} sites {cycles:6.3f} cycles a product")
        return
    names = list(recorded_designs())
    resources: Resources = synthesize(recorded_designs()[names[0]].build(), name=names[0], part=PART)
    with ProcessPoolExecutor() as pool:
        _write(pool.map(_measure, names), resources.tools)
    print(f"{len(names)} designs written to {PATH}")


if __name__ == "__main__":
    main()
