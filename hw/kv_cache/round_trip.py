"""A writer and a reader of a cache without the memory between them: what comes back of what is written."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module
from amaranth.lib.wiring import Component as WiringComponent
from amaranth.lib.wiring import connect, flipped

from hw._component import Component


class RoundTrip(Component):
    """Streams that the writer gives go straight to the reader.

    Ports: ``inputs``, of the writer; ``outputs``, of the reader.

    Args:
        writer: with a stream ``inputs``.
        reader: with a stream ``outputs``.
        between: streams by their names at the writer and at the reader.
    """

    def __init__(self, writer: WiringComponent, reader: WiringComponent, between: dict[str, str]) -> None:
        self._writer, self._reader, self._between = writer, reader, between
        super().__init__(
            {
                "inputs": writer.signature.members["inputs"],
                "outputs": reader.signature.members["outputs"],
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.writer, m.submodules.reader = self._writer, self._reader
        connect(m, flipped(self.inputs), self._writer.inputs)
        connect(m, self._reader.outputs, flipped(self.outputs))
        for source, sink in self._between.items():
            connect(m, getattr(self._writer, source), getattr(self._reader, sink))
        return m
