"""A writer and a reader of calibrated transforms, which are loaded before they take vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module
from amaranth.lib.wiring import connect, flipped

from hw._component import Component
from hw.kv_cache.transform_geometry import Means
from hw.kv_cache.transform_reader import TransformReader
from hw.kv_cache.transform_writer import TransformWriter
from quantizers.kv_cache.transform import Block


class TransformRoundTrip(Component):
    """The words of the writer go straight to the reader.

    Ports: ``writer_load``, ``reader_load``: the load streams of both; ``inputs``, of the writer; ``outputs``,
    of the reader.
    """

    def __init__(self, writer: TransformWriter, reader: TransformReader) -> None:
        self._writer, self._reader = writer, reader
        super().__init__(
            {
                "writer_load": writer.signature.members["load"],
                "reader_load": reader.signature.members["load"],
                "inputs": writer.signature.members["inputs"],
                "outputs": reader.signature.members["outputs"],
            }
        )

    def loads(self, blocks: Sequence[Block], means: Means = None) -> dict[str, list[int]]:
        """What the load streams are offered first, by their names, for the blocks of a token and its means.

        Raises:
            UsageError: they do not fit the geometry.
        """
        return {
            "writer_load": self._writer.load_words(blocks, means),
            "reader_load": self._reader.load_words(blocks, means),
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
