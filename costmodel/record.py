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

from costmodel.synthesis import synthesize
from costmodel.yosys import yosys_version
from hw.arith import Multiplier
from hw.arith.addend import MULTIPLIERS
from hw.binned_mac import BinnedMultiplyAccumulate
from hw.dot import DotProduct
from hw.dsp_mac import PackedMultiplyAccumulate
from hw.float_mac import FloatMultiplyAccumulate
from hw.mac import MultiplyAccumulate
from hw.mvu import MatrixVectorUnit
from hw.mx_dot import MxDotProduct
from quantizers.errors import UsageError
from quantizers.formats import BlockFormat, parse_format, parse_scalar_format, signed_formats

PATH = Path(__file__).with_name("resources.json")
DOT_LENGTHS = (32, 512, 4608)
PART = "xc7z020"
_BITS = range(3, 9)
_MIXED = (
    ("int4", "int8"), ("e2m1", "int8"), ("ternary", "int8"), ("int8", "uint8"), ("int4", "e4m3"),
    ("e2m1", "e4m3"), ("e3m2", "e4m3"), ("int8", "e4m3"), ("e4m3", "e5m2"), ("e4m3", "ue4m4"),
)  # fmt: skip
_DOTS = (("int8", 16), ("int4", 16), ("e2m1", 32), ("e4m3", 8))
_FIGURES = ("luts", "lut_cells", "carry_positions", "ffs", "lutrams", "dsps", "logic_delay_ns")


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
        arguments: dict[str, Any] = {**_same(name), "lanes": lanes}
        yield RecordedDesign(f"dot {name} {name} lanes={lanes}", partial(DotProduct, **arguments))
        build = partial(DotProduct, **arguments, tree="compressors")
        yield RecordedDesign(f"dot {name} {name} lanes={lanes} compressors", build)
    for name in ("mxfp4", "mxint8", "mxfp6_e2m3"):
        mx = parse_format(name)
        assert isinstance(mx, BlockFormat)
        yield RecordedDesign(f"mx_dot {name} {name}", partial(MxDotProduct, weights=mx, activations=mx))
    for name in ("int8", "int4"):
        arguments = _same(name)
        build = partial(PackedMultiplyAccumulate, **arguments, dot_length=4608)
        yield RecordedDesign(f"dsp_mac {name} {name} n=4608", build)
        for multipliers in MULTIPLIERS if name == "int8" else ("luts",):
            folding = partial(MatrixVectorUnit, rows=64, columns=64, pe=4, simd=8)
            build = partial(folding, **arguments, multipliers=multipliers)
            yield RecordedDesign(f"mvu {name} {name} 64x64 pe=4 simd=8 {multipliers}", build)
    for name in ("e2m1", "e4m3", "e5m2"):
        build = partial(FloatMultiplyAccumulate, **_same(name), dot_length=4608, guard_bits=8)
        yield RecordedDesign(f"float_mac {name} {name} n=4608 guard=8", build)
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
            if dot_length == DOT_LENGTHS[-1] and weights == activations:
                build = partial(MultiplyAccumulate, **arguments, pipelined=True)
                yield RecordedDesign(f"pipelined_mac exact {name}", build)
            try:
                pause = BinnedMultiplyAccumulate(**arguments).pause
            except UsageError:  # formats without exponents
                continue
            cycles = round((dot_length + pause) / dot_length, 3)
            yield RecordedDesign(f"mac bins {name}", partial(BinnedMultiplyAccumulate, **arguments), cycles)


def _same(name: str) -> dict[str, Any]:
    fmt = parse_scalar_format(name)
    return {"weights": fmt, "activations": fmt}


def figures_of(design: RecordedDesign) -> dict[str, float]:
    """The resources of a design, synthesised now; what could not be had is absent."""
    return _figures_and_flags(design)[0]


def _figures_and_flags(design: RecordedDesign) -> tuple[dict[str, float], str]:
    resources = synthesize(design.build(), name=design.name, part=PART)
    values = {name: getattr(resources, name) for name in _FIGURES}
    if design.cycles_per_product is not None:
        values["cycles_per_product"] = design.cycles_per_product
    figures = {name: value for name, value in values.items() if value is not None}
    return figures, resources.tools["flags"]


def read_record() -> dict[str, dict[str, float]]:
    """The figures in the file, by name of the design."""
    designs = json.loads(PATH.read_text())["designs"]
    return {
        name: {figure: value for figure, value in figures.items() if figure != "flags"}
        for name, figures in designs.items()
    }


def grown(name: str, now: Mapping[str, float], tolerance: float = 0.03) -> list[str]:
    """What takes more than the record says, in words; empty where nothing does.

    Args:
        tolerance: share by which a figure may grow.
    """
    recorded = read_record()[name]
    return [
        f"{name}: {figure} grew from {recorded[figure]} to {now[figure]}"
        for figure in ("luts", "ffs", "lutrams", "dsps")
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


def _measure(name: str) -> tuple[str, dict[str, float | str]]:
    figures, flags = _figures_and_flags(recorded_designs()[name])
    return name, {**figures, "flags": flags}


def _write(measured: Iterable[tuple[str, dict[str, float | str]]]) -> None:
    tools = {"yosys": yosys_version()}
    document: dict[str, Any] = {"part": PART, "tools": tools, "designs": dict(sorted(measured))}
    PATH.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    """The command of this module."""
    if "--table" in sys.argv:
        for task, accumulator, luts, cycles in best_units(read_record()):
            print(f"{task:18} {accumulator:6} {luts:4.0f} sites {cycles:6.3f} cycles a product")
        return
    names = list(recorded_designs())
    with ProcessPoolExecutor() as pool:
        _write(pool.map(_measure, names))
    print(f"{len(names)} designs written to {PATH}")


if __name__ == "__main__":
    main()
