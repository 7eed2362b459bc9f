"""The multiply-accumulate unit whose accumulator has a bin for each exponent."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.memory import Memory, ReadPort, WritePort
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive, check_switch
from hw._component import Component
from hw.arith._shapes import accumulate, add_with_carry, register, shape_range
from hw.arith.decoder import Decoder, check_format
from hw.arith.multiplier import Multiplier
from hw.reference.widths import exact_accumulator_bits
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat

MEMORY_DEPTH = 32
"""Words of LUT RAM of which one LUT6 holds two bits; 64 of them take it whole."""


class BinnedMultiplyAccumulate(Component):
    """Exact dot products, the products of each exponent summed in a word of LUT RAM.

    V. Liguori, "From a lossless (~1.5:1) compression algorithm for Llama2 7B weights to variable precision,
    variable range, compressed numeric data types for CNNs and LLMs", arXiv 2406.05866: a product of
    significands is never shifted by its exponent; it is added to the bin that the exponent names. When
    the last pair of a dot product is in, the bins are folded, lowest first, ``t = bin + (t >> span)``,
    on the same adder: each step finishes *span* bits of the sum. Then they are cleared, again on the same
    adder, ``bin + ~bin + 1``. Where two sums of exponents share a bin (*span* 2), the product is shifted
    by one place.

    Ports: those of :class:`hw.mac.MultiplyAccumulate`, which gives the same sums. One pair a cycle within a
    dot product; between two of them, :attr:`pause` cycles. A sum is valid :attr:`latency` cycles after
    its last pair was taken and waits until it is; the next dot product is taken meanwhile, up to its fold.

    Args:
        weights: any scalar format without codes for NaN or infinity.
        activations: likewise; one of them, at least, of more than one binade.
        dot_length: pairs in the longest dot product. It sets the width of bins and sums.
        accumulator_bits: width of the sums, which wrap; by default
            :func:`hw.reference.exact_accumulator_bits`.
        pipelined: a register after the decoders and in the multiplier, and the loop through the memory in two
            cycles, read and add: two pairs in a row that share a bin meet in a bypass. On an ECP5 of speed
            grade 6 the way through adder and bypass then limits, 200 MHz for e4m3 in place of 128.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        dot_length: int,
        accumulator_bits: int | None = None,
        pipelined: bool = False,
    ) -> None:
        check_format("weights", weights)
        check_format("activations", activations)
        check_positive("dot_length", dot_length)
        if accumulator_bits is None:
            accumulator_bits = exact_accumulator_bits(weights, activations, dot_length)
        check_positive("accumulator_bits", accumulator_bits)
        check_switch("pipelined", pipelined)
        self._pipelined = pipelined
        self._decoders = Decoder(weights), Decoder(activations)
        # The exponent that is first set to that of code 0 is the one that counts.
        self._exponents = [d for d in self._decoders if len(d.exponent)]
        if not self._exponents:
            msg = f"bins need exponents, and neither {weights} nor {activations} has more than one binade"
            raise UsageError(msg, given=f"{weights}, {activations}", expected=["the exact accumulator"])
        self._multiplier = Multiplier(
            a=self._decoders[0].significand.shape(),
            b=self._decoders[1].significand.shape(),
            pipelined=pipelined,
        )
        self._accumulator_bits = accumulator_bits
        self._first_sum = len(self._exponents)
        self._last_sum = sum(d.max_exponent for d in self._exponents)
        subnormal = _exponent_of_zero(self._exponents[0])
        self._shift_bits = int(self._last_sum >= MEMORY_DEPTH and subnormal == 1)
        self._carry_when_counting = (1 << self._shift_bits) - subnormal
        largest = max(abs(value) for value in shape_range(self._multiplier.product.shape()))
        largest_bin = dot_length * (largest << (self.span - 1))
        # Folding at most doubles the largest bin.
        self._word_bits = (2 * largest_bin).bit_length() + 1
        pair = data.StructLayout({"weight": weights.bits, "activation": activations.bits, "last": 1})
        super().__init__(
            {
                "pairs": In(stream.Signature(pair)),
                "sums": Out(stream.Signature(signed(accumulator_bits))),
            }
        )

    @property
    def accumulator_bits(self) -> int:
        """Width of the sums."""
        return self._accumulator_bits

    @property
    def span(self) -> int:
        """Exponent sums that share a bin."""
        return 1 << self._shift_bits

    @property
    def bins(self) -> int:
        """Words of memory that are used."""
        return (self._last_sum >> self._shift_bits) - (self._first_sum >> self._shift_bits) + 1

    @property
    def latency(self) -> int:
        """Cycles from the one in which the last pair is taken to the first in which its sum is valid."""
        return self._term_latency + 1 + self.bins + self._pipelined

    @property
    def pause(self) -> int:
        """Cycles from the last pair of a dot product in which no pair of the next is taken."""
        return self._term_latency + 2 * self.bins

    @property
    def _term_latency(self) -> int:
        """Cycles from codes to the registers of the term and of the index of its bin."""
        return self._multiplier.latency + 2 + self._pipelined

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        accepting, folding, clearing = Signal(), Signal(), Signal(init=1)
        counting, rewind = Signal(), Signal()
        taken = self.pairs.valid & accepting
        m.d.comb += [self.pairs.ready.eq(accepting), counting.eq(folding | clearing)]

        valid, last = taken, taken & self.pairs.payload.last
        for _ in range(self._term_latency):
            valid, last = _flag(m, valid), _flag(m, last)
        exponents, product, negate = self._operands(m, accepting)
        index = self._index(m, exponents, counting, rewind)
        term = register(m, product)

        m.submodules.memory = memory = Memory(shape=self._word_bits, depth=self._depth, init=[])
        read, write = memory.read_port(domain="comb"), memory.write_port()
        address = index[self._shift_bits :]
        fold = Signal(signed(self._word_bits), reset_less=True)
        total = Signal(signed(self._word_bits))
        # While bins are folded and cleared, codes of zero make the term, and its sign, zero.
        addend = _extended(term, self._word_bits) ^ negate.replicate(self._word_bits)
        m.d.comb += [read.addr.eq(address), write.data.eq(total)]
        is_folded, at_end = folding, Signal()
        is_last_fold: Value = folding & at_end
        is_written = valid | clearing
        if self._pipelined:
            is_folded, is_last_fold = _flag(m, is_folded), _flag(m, is_last_fold)
            m.d.comb += [write.addr.eq(register(m, address)), write.en.eq(_flag(m, is_written))]
            running = self._running(m, read, write, total)
            folded = Mux(is_folded, (total >> self.span)[: self._word_bits], addend)
            with m.If(clearing):
                m.d.sync += running.eq(0)
            m.d.comb += total.eq(
                add_with_carry(
                    running,
                    register(m, folded & ~clearing.replicate(self._word_bits)),
                    register(m, negate),
                    width=self._word_bits,
                )
            )
        else:
            addend = addend | ((fold >> self.span)[: self._word_bits] & folding.replicate(self._word_bits))
            addend = Mux(clearing, ~read.data, addend)
            m.d.comb += [
                write.addr.eq(address),
                write.en.eq(is_written),
                total.eq(accumulate(read.data, addend, clearing | negate, width=self._word_bits)),
            ]
        finished = Signal(self.span * (self.bins - 1), reset_less=True)
        with m.If(is_folded):
            m.d.sync += [fold.eq(total), finished.eq(Cat(finished, fold[: self.span])[self.span :])]

        pending, start = Signal(), Signal()
        sum_waits = self.sums.valid & ~self.sums.ready
        m.d.comb += [
            start.eq((last | pending) & ~sum_waits),
            at_end.eq(counting & (address == self._last_sum >> self._shift_bits)),
            rewind.eq(start | at_end),
            self.sums.payload.eq(Cat(finished, fold).as_signed()),
        ]
        m.d.sync += [
            pending.eq((last | pending) & ~start),
            folding.eq(start | (folding & ~at_end)),
            clearing.eq(Mux(at_end, folding, clearing)),
            self.sums.valid.eq(is_last_fold | sum_waits),
        ]
        with m.If(start):
            m.d.sync += fold.eq(0)
        with m.If(taken & self.pairs.payload.last):
            m.d.sync += accepting.eq(0)
        with m.Elif(clearing & at_end):
            m.d.sync += accepting.eq(1)
        return m

    def _running(self, m: Module, read: ReadPort, write: WritePort, total: Signal) -> Signal:
        """The word of a bin, a cycle after its address; of the bin that is being written, what is written."""
        running = Signal.like(total, reset_less=True)
        is_bypassed = Signal()
        m.d.comb += is_bypassed.eq(write.en & (write.addr == read.addr))
        m.d.sync += running.eq(Mux(is_bypassed, total, read.data))
        return running

    @property
    def _depth(self) -> int:
        return 1 << (self._last_sum >> self._shift_bits).bit_length()

    def _operands(self, m: Module, accepting: Value) -> tuple[list[Value], Value, Value]:
        """Exponents, and with them the aligned product of the significands and the register of its sign."""
        codes = []
        for decoder, code in zip(
            self._decoders, (self.pairs.payload.weight, self.pairs.payload.activation), strict=True
        ):
            held = Signal(len(code), reset_less=True)
            m.d.sync += held.eq(Mux(accepting, code, 0))
            m.d.comb += decoder.code.eq(held)
            codes.append(held)
        weight, activation = self._decoders
        m.submodules.weight, m.submodules.activation = weight, activation
        m.submodules.multiplier = multiplier = self._multiplier
        operands: list[Value] = [weight.significand, activation.significand]
        exponents: list[Value] = [decoder.exponent for decoder in self._exponents]
        negate: Value = weight.sign ^ activation.sign
        if self._pipelined:
            operands, exponents = ([register(m, v) for v in values] for values in (operands, exponents))
            negate = register(m, negate)
        m.d.comb += [multiplier.a.eq(operands[0]), multiplier.b.eq(operands[1])]
        for _ in range(multiplier.latency):
            exponents, negate = [register(m, exponent) for exponent in exponents], register(m, negate)
        product: Value = multiplier.product
        if self._shift_bits:
            odd = exponents[0][0]
            for exponent in exponents[1:]:
                odd = odd ^ exponent[0]
            product = Mux(odd, product << 1, product)
        return exponents, product, register(m, negate)

    def _index(self, m: Module, exponents: list[Value], counting: Value, rewind: Value) -> Signal:
        """The sum of the exponents; where bins are counted, the next one.

        The first exponent, that of code zero then, is a part of the step.
        """
        first = self._first_sum >> self._shift_bits << self._shift_bits
        index = Signal(range(self._last_sum + 1), init=first)
        others = exponents[1] if len(exponents) > 1 else C(0, 1)
        carry = counting if self._carry_when_counting else C(0, 1)
        with m.If(rewind):
            m.d.sync += index.eq(first)
        with m.Else():
            m.d.sync += index.eq(exponents[0] + Mux(counting, index, others) + carry)
        return index


def _flag(m: Module, value: Value) -> Signal:
    delayed = Signal()
    m.d.sync += delayed.eq(value)
    return delayed


def _extended(term: Value, width: int) -> Value:
    fill = term[-1] if term.shape().signed else C(0, 1)
    return Cat(term, fill.replicate(max(0, width - len(term))))[:width]


def _exponent_of_zero(decoder: Decoder) -> int:
    """The exponent of code 0: 1, but 0 where there is no mantissa and zero needs no exponent."""
    return int(len(decoder.significand) > 1)
