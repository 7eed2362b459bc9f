"""Random transforms, and what the software makes of random vectors with them."""

from functools import cached_property

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import stream
from amaranth.lib.wiring import In, connect, flipped

from hw._component import Component
from hw.kv_cache.transform_geometry import TransformGeometry, coefficient_widths
from hw.kv_cache.transform_load import LoadRouter
from quantizers.kv_cache.codec import Centred
from quantizers.kv_cache.packing import pack
from quantizers.kv_cache.transform import Block, Transformed


def random_block(rng, *, d, n, entry_bits=8, max_bits=4):
    """With thresholds that some sums reach, some equal ones, and some beyond all sums."""
    limit = 1 << (entry_bits - 1)
    forward, inverse = rng.integers(-limit, limit, (n, d)), rng.integers(-limit, limit, (d, n))
    forward[0] = -limit
    reach = int(np.sqrt(d) * limit * 15000)
    thresholds, levels = [], []
    for j in range(n):
        width = max_bits if j == 0 else int(rng.integers(1, max_bits + 1))
        some = rng.integers(-reach, reach, (1 << width) - 1)
        some[: len(some) // 4] = some[0]
        if j % 3 == 1:
            some[-1] = 1 << 40
        thresholds.append(tuple(sorted(some.tolist())))
        levels.append(tuple(rng.integers(-32768, 32768, 1 << width).tolist()))
    return Block(
        forward=forward,
        inverse=inverse,
        shift=int(rng.integers(0, entry_bits + 6)),
        thresholds=tuple(thresholds),
        levels=tuple(levels),
    )


class Coded:
    """Tokens of random vectors, the extremes first, with blocks of *counts* coefficients."""

    def __init__(self, *, d, counts, entry_bits=8, max_bits=4, means=False, word_bits=16, tokens=3, seed=1):
        rng = np.random.default_rng(seed)
        self.word_bits = word_bits
        self.blocks = [random_block(rng, d=d, n=n, entry_bits=entry_bits, max_bits=max_bits) for n in counts]
        channels = d * len(counts)
        self.means = rng.integers(-32768, 32768, channels) if means else None
        self.geometry = TransformGeometry.covering(self.blocks, entry_bits=entry_bits, has_means=means)
        spread = np.exp2(rng.uniform(4, 17, (tokens, 1, 1)))
        self.x = np.clip(rng.normal(0, spread, (tokens, 1, channels)), -32768, 32767).astype(np.int64)
        self.x[0] = -32768
        self.x[1] = 32767
        codec = Transformed(self.blocks)
        self.codec = Centred(codec, means=self.means) if means else codec

    @cached_property
    def words(self):
        """Of all tokens, packed by the software, each token from a new word on."""
        n = self.geometry.coefficients
        fields = self.codec.encode(self.x)
        values = [np.pad(field.values, [(0, 0), (0, n - field.values.shape[1])]) for field in fields]
        widths = coefficient_widths(self.blocks, n)
        return pack(np.concatenate(values, axis=1), widths, word_bits=self.word_bits).reshape(-1).tolist()

    @cached_property
    def decoded(self):
        return self.codec.decode(self.codec.encode(self.x))


class Loaded(Component):
    """A component with *write*, *address* and *word*, and streams, behind a load stream."""

    def __init__(self, inner, *, sizes, width):
        self._inner = inner
        self._router = LoadRouter(sizes=sizes, width=width)
        super().__init__(
            {
                "load": In(stream.Signature(width)),
                "inputs": inner.signature.members["inputs"],
                "outputs": inner.signature.members["outputs"],
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner, m.submodules.router = inner, router = self._inner, self._router
        connect(m, flipped(self.load), router.load)
        connect(m, flipped(self.inputs), inner.inputs)
        connect(m, inner.outputs, flipped(self.outputs))
        m.d.comb += [
            router.is_idle.eq(1),
            inner.write.eq(router.write),
            inner.address.eq(router.address),
            inner.word.eq(router.word),
        ]
        return m


CONFIGURATIONS = [
    # d, coefficients, entry bits, most bits, means, lanes, pe, simd, word bits
    (8, (6,), 8, 4, False, 4, 2, 4, 16),
    (8, (8, 5), 8, 3, True, 4, 4, 2, 8),
    (12, (7, 12, 9), 6, 6, True, 4, 6, 5, 13),
    (8, (8,), 12, 8, False, 2, 8, 1, 8),
    (16, (16, 16), 8, 2, False, 8, 4, 8, 32),
    (16, (11,), 8, 5, True, 16, 8, 4, 11),
    (6, (1, 1), 4, 1, False, 3, 1, 3, 1),
    (4, (4, 3, 2, 4), 8, 3, False, 4, 1, 4, 64),
    (10, (9, 10), 10, 4, True, 5, 5, 9, 7),
    (16, (15,), 8, 7, False, 2, 2, 2, 24),
    (12, (10, 12), 2, 4, False, 6, 3, 10, 17),
    (32, (30,), 8, 4, True, 8, 4, 8, 32),
]


def configured(number, *, tokens=3):
    """The coded tokens of a configuration, and the arguments of its writer; of its reader too, but for *pe*."""
    d, counts, entry_bits, max_bits, means, lanes, pe, simd, word_bits = CONFIGURATIONS[number]
    coded = Coded(
        d=d,
        counts=counts,
        entry_bits=entry_bits,
        max_bits=max_bits,
        means=means,
        word_bits=word_bits,
        tokens=tokens,
        seed=number,
    )
    arguments = {"lanes": lanes, "pe": pe, "simd": simd, "word_bits": word_bits}
    # Products as the simulator's own are several times as fast as those of LUTs.
    return coded, {"geometry": coded.geometry, "memory": "lutram", "multipliers": "dsps", **arguments}
