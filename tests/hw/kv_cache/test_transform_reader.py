import random
from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.kv_cache.transform_reader import TransformReader
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Centred
from quantizers.kv_cache.transform import Transformed
from tests.hw.kv_cache.transform_blocks import CONFIGURATIONS, Coded, configured


def simulated(number, *, tokens=3, **chances):
    coded, arguments = configured(number, tokens=tokens)
    pe = max(pe for pe in range(1, arguments["pe"] + 1) if coded.geometry.elements % pe == 0)
    arguments["simd"] = min(arguments["simd"], coded.geometry.coefficients)
    reader = TransformReader(**{**arguments, "pe": pe})
    items = {"load": reader.load_words(coded.blocks, coded.means), "words": coded.words}
    assert len(items["load"]) == reader.load_count
    count = coded.x.size // arguments["lanes"]
    trace = simulate_stream(reader, items, output_count=count, first=("load",), **chances)
    assert trace.outputs == coded.decoded.reshape(-1, arguments["lanes"]).tolist()
    return coded, reader, trace


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_elements_and_cycles(number):
    coded, reader, trace = simulated(number)
    interval = reader.interval(coded.blocks)
    _, arguments = configured(number)
    column_folds = -(-coded.geometry.coefficients // arguments["simd"])
    late = trace.cycles - (reader.load_count + reader.latency + 2 * interval + 1)
    assert 0 <= late <= max(0, arguments["pe"] - column_folds)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(("valid", "ready"), [(0.3, 1.0), (1.0, 0.2), (0.7, 0.5)])
def test_stalls(number, valid, ready):
    simulated(number, tokens=5, valid_probability=valid, ready_probability=ready, seed=number)


def test_elements_saturate():
    coded = Coded(d=8, counts=(8,), means=True, tokens=6)
    coded.blocks[0] = replace(coded.blocks[0], shift=0)
    coded.codec = Centred(Transformed(coded.blocks), means=coded.means)
    assert (coded.decoded.min(), coded.decoded.max()) == (-32768, 32767)
    reader = TransformReader(geometry=coded.geometry, lanes=4, pe=2, simd=4, word_bits=16, multipliers="dsps")
    items = {"load": reader.load_words(coded.blocks, coded.means), "words": coded.words}
    trace = simulate_stream(reader, items, output_count=12, first=("load",))
    assert trace.outputs == coded.decoded.reshape(-1, 4).tolist()


def test_a_vector_of_64_every_64_cycles():
    coded = Coded(d=64, counts=(60,))
    assert TransformReader(geometry=coded.geometry).interval(coded.blocks) == 64


def test_other_tables_between_tokens():
    """Tables of the same widths are loaded anew while words are waiting: tokens before have the old ones."""
    one, other = (Coded(d=8, counts=(6, 8), max_bits=3, tokens=12, seed=seed) for seed in (1, 2))
    other.blocks = [
        replace(block, inverse=block.inverse[::-1], levels=tuple(levels[::-1] for levels in block.levels))
        for block in one.blocks
    ]
    reader = TransformReader(geometry=one.geometry, lanes=4, pe=4, simd=4, word_bits=16, multipliers="dsps")
    loads = [*reader.load_words(one.blocks), *reader.load_words(other.blocks)]
    codes = one.codec.encode(one.x)
    old, new = (Transformed(coded.blocks).decode(codes).reshape(12, -1, 4) for coded in (one, other))
    taken = []

    async def load(ctx):
        for index, word in enumerate(loads):
            while index == reader.load_count and len(taken) < 3 * 4:
                await ctx.tick()
            ctx.set(reader.load.payload, word)
            ctx.set(reader.load.valid, 1)
            await ctx.tick().until(reader.load.ready)
            ctx.set(reader.load.valid, 0)

    async def offer(ctx):
        ctx.set(reader.words.valid, 1)
        for word in one.words:
            ctx.set(reader.words.payload, word)
            await ctx.tick().until(reader.words.ready)
        ctx.set(reader.words.valid, 0)

    async def take(ctx):
        choice = random.Random(3)
        while len(taken) < 12 * 4:
            ready = choice.random() < 0.8
            ctx.set(reader.outputs.ready, ready)
            _, _, valid, payload = await ctx.tick().sample(reader.outputs.valid, reader.outputs.payload)
            if valid and ready:
                taken.append(list(payload))

    simulator = Simulator(reader)
    simulator.add_clock(1e-6)
    simulator.add_testbench(load, background=True)
    simulator.add_testbench(offer, background=True)
    simulator.add_testbench(take)
    simulator.run()
    found = np.array(taken).reshape(12, -1, 4)
    is_old, is_new = ((found == some).all(axis=(1, 2)).tolist() for some in (old, new))
    before = sum(is_old)
    assert 3 <= before < 12
    assert is_old == [True] * before + [False] * (12 - before)
    assert is_new == [not old for old in is_old]


def test_pe_must_divide_a_vector():
    with pytest.raises(UsageError) as caught:
        TransformReader(geometry=Coded(d=8, counts=(6,)).geometry, lanes=4, pe=3)
    assert str(caught.value) == "pe must divide vector (8), which 3 does not; the nearest that does is 2"
