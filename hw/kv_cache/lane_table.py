"""Tables of what goes with each element of a token, read as its words go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Module, Shape, ShapeCastable, Signal, unsigned
from amaranth.lib import data, memory
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import register
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step

IN_LOGIC = {"rom_style": "logic"}
"""A table that synthesis makes of LUTs, not of a block RAM, however many heads it has."""


class LaneTable(Component):
    """A row of fields for each word of a token, one a lane.

    Ports: ``advance`` in: a word is there. ``row`` out, an array of fields: that of the word of the cycle
    before. Of a table that is loaded also ``write``, ``address``, ``word`` in: a row's bits as a number.

    Args:
        field: layout of a field.
        lanes: fields of a row.
        depth: rows.
        rows: constants, as numbers; without them the table is loaded.
    """

    def __init__(
        self, *, field: data.Layout | Shape, lanes: int, depth: int, rows: Sequence[int] | None = None
    ) -> None:
        self._rows, self.depth = rows, depth
        layout = data.ArrayLayout(field, lanes)
        self.width = layout.size
        ports: dict[str, Any] = {"advance": In(1), "row": Out(layout)}
        if rows is None:
            ports |= {"write": In(1), "address": In(range(depth)), "word": In(self.width)}
        super().__init__(ports)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        is_loaded = self._rows is None
        m.submodules.rows = rows = memory.Memory(
            shape=unsigned(self.width),
            depth=self.depth,
            init=self._rows or [],
            attrs=LUTRAM if is_loaded else IN_LOGIC,
        )
        read = rows.read_port(domain="comb")
        place = Signal(range(self.depth))
        step(m, place, self.depth, self.advance)
        m.d.comb += [read.addr.eq(place), self.row.as_value().eq(register(m, read.data))]
        if is_loaded:
            write = rows.write_port()
            m.d.comb += [write.en.eq(self.write), write.addr.eq(self.address), write.data.eq(self.word)]
        return m


def table_rows(
    fields: Mapping[str, npt.NDArray[np.int64]], layout: Mapping[str, Any], lanes: int
) -> list[int]:
    """The rows of a table as numbers, the first lane in the lowest bits.

    Args:
        fields: of each element of a token, by the field's name, in the order in which they come.
        layout: the fields' shapes, the lowest first.
        lanes: elements of a row.
    """
    widths = {name: Shape.cast(_shape(shape)).width for name, shape in layout.items()}
    elements = np.zeros(next(iter(fields.values())).size, object)
    offset = 0
    for name, width in widths.items():
        masked = fields[name].reshape(-1).astype(np.int64) & ((1 << width) - 1)
        elements += masked.astype(object) << offset
        offset += width
    rows = elements.reshape(-1, lanes)
    return [sum(int(bits) << lane * offset for lane, bits in enumerate(row)) for row in rows]


def _shape(shape: Any) -> Shape:
    return shape.as_shape() if isinstance(shape, ShapeCastable) else Shape.cast(shape)
