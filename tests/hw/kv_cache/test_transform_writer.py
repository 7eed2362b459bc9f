import random

import pytest
from amaranth.sim import Simulator

from hw.kv_cache.transform_writer import TransformWriter
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from tests.hw.kv_cache.transform_blocks import CONFIGURATIONS, Coded, configured


def simulated(number, *, tokens=3, **chances):
    coded, arguments = configured(number, tokens=tokens)
    writer = TransformWriter(**arguments)
    items = {
        "load": writer.load_words(coded.blocks, coded.means),
        "inputs": coded.x.reshape(-1, arguments["lanes"]).tolist(),
    }
    assert len(items["load"]) == writer.load_count
    assert len(coded.words) == tokens * writer.word_count(coded.blocks)
    trace = simulate_stream(writer, items, output_count=len(coded.words), first=("load",), **chances)
    return coded, writer, trace


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_words_and_cycles(number):
    coded, writer, trace = simulated(number)
    assert trace.outputs == coded.words
    _, arguments = configured(number)
    column_folds = -(-coded.geometry.elements // arguments["simd"])
    late = trace.cycles - (writer.load_count + writer.latency(coded.blocks) + 2 * writer.interval + 1)
    assert 0 <= late <= max(0, arguments["pe"] - column_folds)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(("valid", "ready"), [(0.3, 1.0), (1.0, 0.2), (0.7, 0.5)])
def test_stalls(number, valid, ready):
    coded, _, trace = simulated(
        number, tokens=5, valid_probability=valid, ready_probability=ready, seed=number
    )
    assert trace.outputs == coded.words


def test_a_vector_of_64_every_64_cycles():
    geometry = Coded(d=64, counts=(60,)).geometry
    assert TransformWriter(geometry=geometry).interval == 64
    assert TransformWriter(geometry=geometry, pe=4).interval == 120


def test_products_in_luts():
    coded = Coded(d=8, counts=(7,), word_bits=16)
    writer = TransformWriter(geometry=coded.geometry, lanes=4, pe=2, simd=4, word_bits=16)
    items = {"load": writer.load_words(coded.blocks), "inputs": coded.x.reshape(-1, 4).tolist()}
    trace = simulate_stream(writer, items, output_count=len(coded.words), first=("load",))
    assert trace.outputs == coded.words


def test_other_tables_between_tokens():
    """Tables are loaded anew while tokens are waiting: those before the load have the old ones."""
    one, other = (Coded(d=8, counts=(6, 8), max_bits=3, tokens=12, seed=seed) for seed in (1, 2))
    geometry = type(one.geometry).covering(one.blocks, other.blocks)
    writer = TransformWriter(geometry=geometry, lanes=4, pe=4, simd=4, word_bits=16, memory="lutram")
    loads = [*writer.load_words(one.blocks), *writer.load_words(other.blocks)]
    count = [writer.word_count(coded.blocks) for coded in (one, other)]
    transfers = one.x.reshape(-1, 4).tolist()
    choice, taken, before = random.Random(3), [], []

    async def load(ctx):
        for index, word in enumerate(loads):
            while index == writer.load_count and len(taken) < 3 * count[0]:
                await ctx.tick()
            ctx.set(writer.load.payload, word)
            ctx.set(writer.load.valid, 1)
            await ctx.tick().until(writer.load.ready)
            if index == writer.load_count:
                before.append(sent[0] // 4)
            ctx.set(writer.load.valid, 0)

    sent = [0]

    async def offer(ctx):
        for transfer in transfers:
            ctx.set(writer.inputs.payload, transfer)
            ctx.set(writer.inputs.valid, 1)
            await ctx.tick().until(writer.inputs.ready)
            sent[0] += 1
        ctx.set(writer.inputs.valid, 0)

    async def take(ctx):
        for _ in range(3000):
            ready = choice.random() < 0.8
            ctx.set(writer.words.ready, ready)
            _, _, valid, word = await ctx.tick().sample(writer.words.valid, writer.words.payload)
            if valid and ready:
                taken.append(word)

    simulator = Simulator(writer)
    simulator.add_clock(1e-6)
    simulator.add_testbench(load, background=True)
    simulator.add_testbench(offer, background=True)
    simulator.add_testbench(take)
    simulator.run()
    assert 3 <= before[0] < 12
    other.x = one.x
    assert taken == one.words[: before[0] * count[0]] + other.words[before[0] * count[1] :]


def test_tables_that_do_not_fit():
    coded, larger = Coded(d=8, counts=(6,)), Coded(d=8, counts=(7,))
    writer = TransformWriter(geometry=coded.geometry, lanes=4, pe=2, simd=4)
    for blocks, means, message in [
        (larger.blocks, None, "the hardware is made for coefficients 6, and the tables have 7"),
        (coded.blocks * 2, None, "the hardware is made for matrices 1, and the tables have 2"),
        (coded.blocks, [0] * 8, "the hardware is made for has_means False, and the tables have True"),
    ]:
        with pytest.raises(UsageError) as caught:
            writer.load_words(blocks, means)
        assert str(caught.value) == message


def test_lanes_must_divide_a_vector():
    with pytest.raises(UsageError) as caught:
        TransformWriter(geometry=Coded(d=8, counts=(6,)).geometry, lanes=3)
    assert str(caught.value) == "lanes must divide vector (8), which 3 does not; the nearest that does is 2"
