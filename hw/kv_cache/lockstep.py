"""Pipelines of fixed latency that work on vectors of several words, and their streams."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, EnableInserter, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import memory, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step
from quantizers.errors import UsageError


class Stage(Component):
    """A part of a pipeline that moves in step with all others.

    Ports: ``inputs``, a word; ``valid`` in: a word is there; ``outputs``: the word of :attr:`latency` cycles
    before. The words of a vector come in consecutive cycles; between vectors there may be any number of
    cycles without one.

    Args:
        inputs: layout of a word that comes in.
        outputs: of one that goes out.
        words: of a vector.
    """

    def __init__(self, *, inputs: Any, outputs: Any, words: int) -> None:
        self.words = words
        super().__init__({"inputs": In(inputs), "valid": In(1), "outputs": Out(outputs)})

    @property
    def latency(self) -> int:
        """Cycles from a word to what comes out for it."""
        raise NotImplementedError


class Lockstep(Component):
    """A stage between two streams.

    Ports: ``inputs`` and ``outputs``, streams of words. One word a cycle; a vector's first word comes out
    :attr:`latency` cycles after the one in which it was taken. A word that nobody takes stops the pipeline.
    Within a vector it also waits for the next word; between vectors it runs dry.

    Args:
        stage: elaborated with this component.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.words = stage.words
        super().__init__(
            {
                "inputs": In(stream.Signature(stage.inputs.shape())),
                "outputs": Out(stream.Signature(stage.outputs.shape())),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which a word was taken to the one in which what it became is offered."""
        return self._stage.latency + 1

    def cycles(self, vectors: int) -> int:
        """From the first offer to the last word of so many vectors, where nothing waits outside."""
        return vectors * self.words + self.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        # Whether the pipeline moves is decided a cycle ahead, since the signal reaches every register: that
        # takes a register for a word in front of it, and one for a word that nobody takes behind it.
        advance = Signal(init=1)
        m.submodules.stage = EnableInserter(advance)(self._stage)
        will_have_word, at_start = self._add_input(m, advance)
        will_wait = self._add_output(m, advance)
        m.d.sync += advance.eq(~will_wait & (will_have_word | at_start))
        return m

    def _add_input(self, m: Module, advance: Value) -> tuple[Value, Value]:
        """Whether there is a word in the next cycle, and whether a vector may start in it."""
        is_full, word = Signal(), Signal.like(Value.cast(self.inputs.payload), name="word", reset_less=True)
        with m.If(self.inputs.ready):
            m.d.sync += [word.eq(self.inputs.payload), is_full.eq(self.inputs.valid)]
        position, taken = Signal(range(self.words)), Signal()
        ends = step(m, position, self.words, taken)
        m.d.comb += [
            self.inputs.ready.eq(~is_full | advance),
            taken.eq(is_full & advance),
            Value.cast(self._stage.inputs).eq(word),
            self._stage.valid.eq(is_full),
        ]
        will_have_word = self.inputs.valid | (is_full & ~advance)
        return will_have_word, Mux(taken, ends, position == 0)

    def _add_output(self, m: Module, advance: Value) -> Value:
        """Whether a word waits in the register behind the pipeline in the next cycle."""
        there, is_gone = Signal(self._stage.latency), Signal()
        is_waiting, word = (
            Signal(),
            Signal.like(Value.cast(self._stage.outputs), name="waiting", reset_less=True),
        )
        is_new, will_wait = Signal(), Signal()
        with m.If(advance):
            m.d.sync += [there.eq(Cat(self._stage.valid, there)), is_gone.eq(0)]
            m.d.sync += word.eq(Value.cast(self._stage.outputs))
        with m.Elif(self.outputs.ready & ~is_waiting):
            # Taken while the pipeline stands still.
            m.d.sync += is_gone.eq(1)
        m.d.sync += is_waiting.eq(will_wait)
        m.d.comb += [
            is_new.eq(there[-1] & ~is_gone),
            self.outputs.valid.eq(is_waiting | is_new),
            Value.cast(self.outputs.payload).eq(Mux(is_waiting, word, Value.cast(self._stage.outputs))),
            will_wait.eq((is_waiting | (advance & is_new)) & ~self.outputs.ready),
        ]
        return will_wait


def word_count(size: int, lanes: int) -> int:
    """Words of a vector of *size* elements.

    Raises:
        UsageError: *lanes* is no power of two that divides *size*, itself a power of two.
    """
    check_positive("lanes", lanes)
    if lanes & (lanes - 1) or lanes > size:
        choices = [str(1 << n) for n in range(size.bit_length())]
        nearest = sorted(choices, key=lambda choice: abs(int(choice) - lanes))
        msg = (
            f"lanes must be a power of two of at most the {size} elements of a vector, not {lanes}; "
            f"the nearest is {nearest[0]}"
        )
        raise UsageError(msg, given=lanes, expected=nearest)
    return size // lanes


class Delay(Component):
    """What came in *cycles* cycles ago: in registers up to two cycles, else in LUT RAM.

    Ports: ``inputs``, ``outputs``.

    Args:
        shape: of both.
        cycles: 0 or more.
        registers: the most cycles for which there are registers.
    """

    def __init__(self, *, shape: Any, cycles: int, registers: int = 2) -> None:
        self._cycles, self._registers = cycles, registers
        super().__init__({"inputs": In(shape), "outputs": Out(shape)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        source, target = Value.cast(self.inputs), Value.cast(self.outputs)
        if self._cycles <= self._registers:
            for _ in range(self._cycles):
                later = Signal.like(source, name="later", reset_less=True)
                m.d.sync += later.eq(source)
                source = later
            m.d.comb += target.eq(source)
            return m
        m.submodules.ring = ring = memory.Memory(
            shape=unsigned(len(source)), depth=self._cycles - 1, init=[], attrs=LUTRAM
        )
        read, write = ring.read_port(domain="comb"), ring.write_port()
        place = Signal(range(self._cycles - 1))
        step(m, place, self._cycles - 1, Value.cast(1))
        last = Signal.like(target, name="last", reset_less=True)
        m.d.comb += [
            read.addr.eq(place),
            write.addr.eq(place),
            write.data.eq(source),
            write.en.eq(1),
            target.eq(last),
        ]
        m.d.sync += last.eq(read.data)
        return m


def delayed(m: Module, name: str, value: Any, cycles: int, *, registers: int = 2) -> Value:
    """The value of so many cycles ago; see :class:`Delay`."""
    if cycles == 0:
        return Value.cast(value)
    m.submodules[name] = delay = Delay(
        shape=Shape.cast(Value.cast(value).shape()), cycles=cycles, registers=registers
    )
    m.d.comb += delay.inputs.eq(value)
    return Value.cast(delay.outputs)


def flag_line(m: Module, flag: Value, cycles: int) -> list[Value]:
    """The flag of 0, 1, ..., *cycles* cycles ago; it was 0 before the start."""
    line = Signal(max(cycles, 1), name="line")
    m.d.sync += line.eq(Cat(flag, line))
    return [flag, *(line[cycle] for cycle in range(cycles))]
