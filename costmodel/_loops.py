"""Combinational loops of a mapped netlist: Yosys' ``sta`` never ends on one, so they are found first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from costmodel._dsp48 import unregistered_inputs

_ADDRESSED = ("RAM", "ROM", "SRL")
_LOGIC = ("LUT", "MUXF", "INV", "BUF", "CFGLUT")


def has_combinational_loop(module: Mapping[str, Any]) -> bool:
    """Whether a path of *module* (``write_json`` form) comes back to its own net without a register.

    Block RAMs count as registers; a DSP slice is one where its settings put a register on the way.
    """
    sources: dict[Any, set[Any]] = {}
    for cell in module["cells"].values():
        for outputs, inputs in _arcs(cell):
            for net in outputs:
                sources.setdefault(net, set()).update(inputs)
    try:
        TopologicalSorter(sources).prepare()
    except CycleError:
        return True
    return False


def _arcs(cell: Mapping[str, Any]) -> Iterator[tuple[list[Any], set[Any]]]:
    """Output bits of a cell with the input bits that they depend on at once."""
    kind, pins, directions = cell["type"], cell["connections"], cell["port_directions"]
    if kind == "CARRY4":
        yield from _carry_arcs(pins)
        return
    outputs = [bit for pin, bits in pins.items() if directions[pin] == "output" for bit in bits]
    inputs = [pin for pin in pins if directions[pin] == "input"]
    if kind.startswith(_LOGIC):
        yield outputs, _nets(pins, inputs)
    elif kind.startswith(_ADDRESSED) and not kind.startswith("RAMB"):
        yield outputs, _nets(pins, [pin for pin in inputs if pin.startswith(("A", "DPRA"))])
    elif kind == "DSP48E1":
        yield outputs, _nets(pins, unregistered_inputs(cell))


def _carry_arcs(pins: Mapping[str, list[Any]]) -> Iterator[tuple[list[Any], set[Any]]]:
    below = _nets(pins, ["CI", "CYINIT"])
    for index in range(4):
        below = below | {bit for bit in (pins["S"][index], pins["DI"][index]) if isinstance(bit, int)}
        yield [pins[pin][index] for pin in ("O", "CO") if pin in pins], below


def _nets(pins: Mapping[str, list[Any]], names: Iterable[str]) -> set[Any]:
    return {bit for name in names for bit in pins.get(name, ()) if isinstance(bit, int)}
