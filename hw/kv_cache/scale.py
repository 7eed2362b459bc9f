"""The scale of a vector: from the sum of its magnitudes to a small float, and from there to its products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import register
from hw.arith.multiplier import Multiplier
from hw.kv_cache.lockstep import delayed
from hw.mvu._counter import step
from quantizers.kv_cache.codebook import ScaleFormat


class ScaleEncoder(Component):
    """``ScaleFormat.encode`` of `quantizers.kv_cache.codebook`, for sums that the format reaches.

    Ports: ``total``, ``enable`` in; ``code``, which keeps its value from :attr:`latency` cycles after an
    enabled sum until that long after the next one. One sum a cycle.

    Structure: the sum is shifted to the right by powers of two, the largest first, while its leading one is
    too high; what drops out is kept in one bit. Then the significand is rounded as an integer, below its
    exponent, so that it carries into it.

    Args:
        largest: sum.
        scale: format of the code.
    """

    latency = 3

    def __init__(self, *, largest: int, scale: ScaleFormat) -> None:
        self._scale = scale
        super().__init__({"total": In(range(largest + 1)), "enable": In(1), "code": Out(scale.bits)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        unit, kept = self._scale.unit, self._scale.mantissa_bits + 1
        # Two bits below the significand at least: half of its step, and all that is below that.
        below = max(unit, 2)
        number: Value = Cat(C(0, below - unit), self.total)
        exponent: list[Value] = []
        enable: Value = self.enable
        powers = [1 << bit for bit in reversed(range(self._scale.exponent_bits))]
        for index, power in enumerate(powers):
            too_high = number[below + kept + power - 1 :].any()
            shifted = Cat(number[: power + 1].any(), number[power + 1 :])
            width = max(min(len(number), below + kept + power - 1), len(shifted))
            chosen = Signal(width, name=f"shifted{power}")
            m.d.comb += chosen.eq(Mux(too_high, shifted, number))
            number, exponent = chosen, [too_high, *exponent]
            if index in (len(powers) // 2 - 1, len(powers) - 1):
                number = register(m, number)
                exponent = [register(m, bit) for bit in exponent]
                enable = _reset_register(m, enable)
        significand = number[below : below + kept]
        rounds_up = number[below - 1] & (number[: below - 1].any() | significand[0])
        with m.If(enable):
            m.d.sync += self.code.eq(
                (Cat(C(0, self._scale.mantissa_bits), *exponent) + significand + rounds_up)[
                    : self._scale.bits
                ]
            )
        return m


class ScaledConstants(Component):
    """``floor(constant * scale / 2**shift)`` of one constant after the other.

    Ports: ``code`` of the scale, that stays as many cycles as there are constants, and ``start`` in its first
    one, in; ``write`` out, :attr:`latency` cycles later and as long; ``index`` and ``value`` out with it.

    Structure: one multiplier for the significand of the scale, which is narrow, and one shifter.

    Args:
        constants: not negative; one of them or more.
        shift: of the products to the right.
        scale: format of the code.
        largest: scale that comes.
    """

    def __init__(self, *, constants: Sequence[int], shift: int, scale: ScaleFormat, largest: int) -> None:
        self._constants, self._scale = tuple(constants), scale
        self._down = shift - scale.unit
        self.largest = max(constants) * largest >> shift
        self._multiplier = Multiplier(
            a=unsigned(max(max(constants).bit_length(), 2)),
            b=unsigned(scale.mantissa_bits + 1),
            pipelined=True,
        )
        super().__init__(
            {
                "code": In(scale.bits),
                "start": In(1),
                "write": Out(1),
                "index": Out(range(len(constants))),
                "value": Out(range(self.largest + 1)),
            }
        )

    @property
    def count(self) -> int:
        """Of the constants."""
        return len(self._constants)

    @property
    def latency(self) -> int:
        """Cycles from ``start`` to the first value."""
        return self._multiplier.latency + 4

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.multiplier = multiplier = self._multiplier
        count = Signal(range(len(self._constants)))
        runs = Signal()
        m.d.comb += runs.eq(self.start | (count != 0))
        step(m, count, len(self._constants), runs)
        constant = Signal.like(multiplier.a, name="constant")
        with m.Switch(count):
            for index, value in enumerate(self._constants):
                with m.Case(index):
                    m.d.comb += constant.eq(value)
        fraction, field = self.code[: self._scale.mantissa_bits], self.code[self._scale.mantissa_bits :]
        is_normal = field.any()
        m.d.comb += multiplier.a.eq(register(m, constant))
        m.d.comb += multiplier.b.eq(register(m, Cat(fraction, is_normal)))
        up = (field - is_normal)[: self._scale.exponent_bits]
        up = register(m, delayed(m, "up", up, multiplier.latency + 1, registers=8))
        m.d.comb += self.value.eq(self._shifted(m, register(m, multiplier.product), up))
        flag: Value = runs
        for _ in range(self.latency):
            flag = _reset_register(m, flag)
        m.d.comb += [
            self.write.eq(flag),
            self.index.eq(delayed(m, "index_line", count, self.latency, registers=self.latency)),
        ]
        return m

    def _shifted(self, m: Module, product: Value, up: Value) -> Value:
        """``product * 2**up / 2**down``, two cycles later."""
        lead = max(-self._down, 0)
        half = (self._scale.exponent_bits + 1) // 2
        rough = Cat(C(0, lead), product) << (up[half:] << half)
        rough = register(m, rough[max(self._down - (1 << half) + 1, 0) :][: len(self.value) + (1 << half)])
        left = self._down - max(self._down - (1 << half) + 1, 0) if self._down > 0 else 0
        fine = rough << delayed(m, "fine", up[:half], 1)
        return register(m, fine[left : left + len(self.value)])


def _reset_register(m: Module, flag: Value) -> Signal:
    later = Signal(name="later")
    m.d.sync += later.eq(flag)
    return later
