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


class LoadedRoundTrip(Component):
    """Words of a writer that is loaded go straight to its reader.

    Ports: ``writer_load``, ``reader_load``: the load streams of both; ``inputs``, of the writer; ``outputs``,
    of the reader.

    Args:
        writer: with streams ``load``, ``inputs`` and ``words``.
        reader: with streams ``load``, ``words`` and ``outputs``.
    """

    def __init__(self, writer: Any, reader: Any) -> None:
        self._writer, self._reader = writer, reader
        super().__init__(
            {
                "writer_load": writer.signature.members["load"],
                "reader_load": reader.signature.members["load"],
                "inputs": writer.signature.members["inputs"],
                "outputs": reader.signature.members["outputs"],
            }
        )

    def loads(self, *tables: Any) -> dict[str, list[int]]:
        """What the load streams are offered first, by their names, of tables as both take them.

        Raises:
            UsageError: they do not fit.
        """
        return {
            "writer_load": self._writer.load_words(*tables),
            "reader_load": self._reader.load_words(*tables),
        }

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.writer, m.submodules.reader = self._writer, self._reader
        connect(m, flipped(self.writer_load), self._writer.load)
        connect(m, flipped(self.reader_load), self._reader.load)
        connect(m, flipped(self.inputs), self._writer.inputs)
        connect(m, self._writer.words, self._reader.words)
        connect(m, self._reader.outputs, flipped(self.outputs))
        return m
