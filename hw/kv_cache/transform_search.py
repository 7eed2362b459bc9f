"""Coefficients to codes: how many thresholds of its own table each one reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import memory, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.kv_cache.transform_packing import coded_layout
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step

_BLOCK = {"ram_style": "block"}

_DEEPEST_LUTRAM = 64
"""Words of a memory from which on a block RAM is taken: those of a RAM64M (UG474)."""


class ThresholdSearch(Component):
    """Binary search, a comparison a stage: stage k compares with the middle of what is left of 2**k parts.

    Each stage has a memory of its own: for each coefficient of more than k bits, in their order, the 2**k
    thresholds that it may need. A counter finds the coefficient's place, so there are no pointers.

    Ports:
        ``inputs``: stream of coefficients, those of a token in turn.
        ``outputs``: stream of codes, see :func:`hw.kv_cache.transform_packing.coded_layout`; a token's last
            code is marked.
        ``write`` in: bit 0 writes the width of a coefficient, bit k + 1 a threshold of stage k;
            ``address``, ``word``: what is written where.

    A coefficient a cycle; its code is offered :attr:`latency` cycles after the one in which it was taken.

    Args:
        shape: of a coefficient.
        coefficients: of a token.
        slots: for each stage, how many coefficients have more bits than its number.
    """

    def __init__(self, *, shape: Shape, coefficients: int, slots: Sequence[int]) -> None:
        self._shape, self._coefficients, self._slots = shape, coefficients, tuple(slots)
        super().__init__(
            {
                "inputs": In(stream.Signature(shape)),
                "outputs": Out(stream.Signature(coded_layout(len(slots)))),
                "write": In(len(slots) + 1),
                "address": In(Shape.cast(range(max(self.sizes)))),
                "word": In(unsigned(shape.width)),
            }
        )

    @property
    def sizes(self) -> list[int]:
        """Words that are written: widths, and thresholds of each stage."""
        return [self._coefficients, *(slots << stage for stage, slots in enumerate(self._slots))]

    @property
    def latency(self) -> int:
        """Cycles from a coefficient to its code."""
        return len(self._slots) + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        advance, taken = Signal(), Signal()
        layout = self.outputs.payload.shape()
        position = Signal(range(self._coefficients))
        width = self._table(m, "widths", 0, unsigned(layout["width"].width), position, advance=None)
        now: Any = Signal(layout, name="now")
        m.d.comb += [now.width.eq(width), now.is_last.eq(step(m, position, self._coefficients, taken))]
        coefficient: Value = self.inputs.payload
        is_there: Value = taken
        for stage, slots in enumerate(self._slots):
            is_searched = now.width > stage
            slot = Signal(range(slots), name=f"slot{stage}")
            with m.If(advance & is_there):
                # The last one of all slots may be none at all, of a table that needs fewer.
                m.d.sync += slot.eq(Mux(now.is_last, 0, slot + is_searched))
            address = Cat(now.code[:stage], slot)
            threshold = self._table(m, f"stage{stage}", stage + 1, self._shape, address, advance=advance)
            now, coefficient, is_there = _registered(m, stage, advance, now, coefficient, is_there)
            found = Signal(layout, name=f"found{stage}")
            reached = coefficient >= threshold
            m.d.comb += [
                found.eq(now),
                found.code.eq(Mux(now.width > stage, Cat(reached, now.code), now.code)),
            ]
            now = found
        now, _, is_there = _registered(m, len(self._slots), advance, now, None, is_there)
        m.d.comb += [
            advance.eq(~is_there | self.outputs.ready),
            self.inputs.ready.eq(advance),
            taken.eq(self.inputs.valid & advance),
            self.outputs.valid.eq(is_there),
            self.outputs.payload.eq(now),
        ]
        return m

    def _table(
        self, m: Module, name: str, number: int, shape: Shape, address: Value, *, advance: Value | None
    ) -> Value:
        """What a memory of the search holds: in this cycle, or with *advance* in the next one."""
        is_comb = advance is None
        depth = self.sizes[number]
        attrs = LUTRAM if is_comb or depth <= _DEEPEST_LUTRAM else _BLOCK
        m.submodules[name] = table = memory.Memory(shape=shape, depth=depth, init=[], attrs=attrs)
        write, read = table.write_port(), table.read_port(domain="comb" if is_comb else "sync")
        m.d.comb += [
            write.en.eq(self.write[number]),
            write.addr.eq(self.address),
            write.data.eq(self.word),
            read.addr.eq(address),
        ]
        if not is_comb:
            m.d.comb += read.en.eq(advance)
        return read.data


def _registered(
    m: Module, stage: int, advance: Value, now: Any, coefficient: Value | None, is_there: Value
) -> tuple[Any, Any, Signal]:
    """All that goes along with a coefficient, a stage later."""
    later: Any = Signal(now.shape(), name=f"now{stage}", reset_less=True)
    there_later = Signal(name=f"there{stage}")
    coefficient_later = None
    with m.If(advance):
        m.d.sync += [later.eq(now), there_later.eq(is_there)]
        if coefficient is not None:
            coefficient_later = Signal(coefficient.shape(), name=f"coefficient{stage}", reset_less=True)
            m.d.sync += coefficient_later.eq(coefficient)
    return later, coefficient_later, there_later
