import random

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.sim import Simulator

from hw._component import Component
from hw.kv_cache.uniform_cache import UniformReader, UniformWriter
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.packing import pack
from quantizers.kv_cache.uniform import dequantize, quantize

SIZES = [
    {"head_dim": 64, "bits": 4, "group": 32, "lanes": 8, "word_bits": 32},
    {"head_dim": 16, "bits": 3, "group": 8, "lanes": 4, "word_bits": 7},
    {"head_dim": 12, "bits": 2, "group": 12, "lanes": 2, "word_bits": 64},
    {"head_dim": 8, "bits": 8, "group": 24, "lanes": 4, "word_bits": 32, "per_channel": True},
    {"head_dim": 12, "bits": 3, "group": 8, "lanes": 4, "word_bits": 16, "per_channel": True},
]


class Through(Component):
    """A writer and a reader, with nothing between them."""

    def __init__(self, **sizes) -> None:
        self._writer, self._reader = UniformWriter(**sizes), UniformReader(**sizes)
        word = self._writer.inputs.payload.shape()
        super().__init__({"inputs": In(stream.Signature(word)), "outputs": Out(stream.Signature(word))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.writer, m.submodules.reader = writer, reader = self._writer, self._reader
        connect(m, flipped(self.inputs), writer.inputs)
        connect(m, writer.words, reader.words)
        connect(m, writer.ranges, reader.ranges)
        connect(m, reader.outputs, flipped(self.outputs))
        return m


def tokens_of(sizes, *, blocks, seed=1):
    """Vectors (tokens, head_dim), as many as make *blocks* groups in a channel, or so many tokens."""
    rng = np.random.default_rng(seed)
    count = blocks * (sizes["group"] if sizes.get("per_channel") else 3)
    spread = rng.choice([1, 30, 2000, 32768], (1, sizes["head_dim"]))
    return rng.integers(-32768, 32768, (count, sizes["head_dim"])) % (2 * spread) - spread


def groups_of(tokens, sizes):
    """Groups (n, group) in the order in which they are written."""
    if not sizes.get("per_channel"):
        return tokens.reshape(-1, sizes["group"])
    return (
        tokens.reshape(-1, sizes["group"], sizes["head_dim"]).transpose(0, 2, 1).reshape(-1, sizes["group"])
    )


def decoded_tokens(tokens, sizes):
    groups = dequantize(quantize(groups_of(tokens, sizes), sizes["bits"]), sizes["bits"])
    if not sizes.get("per_channel"):
        return groups.reshape(tokens.shape)
    return groups.reshape(-1, sizes["head_dim"], sizes["group"]).transpose(0, 2, 1).reshape(tokens.shape)


def written(dut, transfers, counts, *, seed, valid=1.0, ready=1.0):
    """What comes out of both streams, each taken at random times of its own, and the cycles."""
    taken, cycles = {name: [] for name in counts}, 0
    choice = random.Random(seed)

    async def testbench(ctx):
        nonlocal cycles
        position, offering = 0, False
        while any(len(taken[name]) < count for name, count in counts.items()):
            if not offering and position < len(transfers) and choice.random() < valid:
                offering = True
                ctx.set(dut.inputs.payload, transfers[position])
            ctx.set(dut.inputs.valid, offering)
            for name in counts:
                ctx.set(getattr(dut, name).ready, choice.random() < ready)
            for name in counts:
                port = getattr(dut, name)
                if ctx.get(port.valid) and ctx.get(port.ready):
                    taken[name].append(ctx.get(port.payload.as_value() if name == "ranges" else port.payload))
            if offering and ctx.get(dut.inputs.ready):
                position, offering = position + 1, False
            await ctx.tick()
            cycles += 1
            assert cycles < 20_000

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return taken, cycles


@pytest.mark.parametrize("sizes", SIZES)
def test_words_and_ranges(sizes):
    tokens = tokens_of(sizes, blocks=2)
    groups = quantize(groups_of(tokens, sizes), sizes["bits"])
    words = pack(groups.codes, sizes["bits"], word_bits=sizes["word_bits"]).reshape(-1).tolist()
    ranges = ((groups.minimum.astype(int) & 0xFFFF) | groups.span.astype(int) << 16).tolist()
    transfers = tokens.reshape(-1, sizes["lanes"]).tolist()
    counts = {"words": len(words), "ranges": len(ranges)}
    for valid, ready in ((1.0, 1.0), (0.7, 0.5)):
        dut = UniformWriter(**sizes)
        taken, _ = written(dut, transfers, counts, seed=3, valid=valid, ready=ready)
        assert taken == {"words": words, "ranges": ranges}


def test_a_vector_of_64_every_8_cycles():
    for more in ({}, {"per_channel": True, "group": 8}):
        assert UniformWriter(**more).interval == more.get("group", 64) // 8


@pytest.mark.parametrize(
    "sizes", [*SIZES, {"head_dim": 64, "bits": 4, "group": 64, "lanes": 8, "word_bits": 32}]
)
def test_cycles_of_a_group(sizes):
    """What more groups take more; then every buffer is full, or none is."""
    cycles, groups = [], []
    interval = UniformWriter(**sizes).interval
    for blocks in (2, 4):
        tokens = tokens_of(sizes, blocks=blocks)
        groups.append(tokens.size // sizes["group"])
        words = groups[-1] * -(-sizes["group"] * sizes["bits"] // sizes["word_bits"])
        transfers = tokens.reshape(-1, sizes["lanes"]).tolist()
        cycles.append(
            written(UniformWriter(**sizes), transfers, {"words": words, "ranges": groups[-1]}, seed=1)[1]
        )
    assert cycles[1] - cycles[0] == (groups[1] - groups[0]) * interval


LATENCIES = [
    # Sizes; cycles of the writer, and of the reader.
    (SIZES[0], 13, 7),
    (SIZES[1], 11, 7),
    (SIZES[2], 14, 7),
    (SIZES[3], 24, 11),
    (SIZES[4], 16, 10),
    ({"head_dim": 16, "bits": 2, "group": 4, "lanes": 4, "word_bits": 32}, 10, 7),
    ({"head_dim": 16, "bits": 2, "group": 8, "lanes": 4, "word_bits": 64, "per_channel": True}, 15, 11),
]


@pytest.mark.parametrize(("sizes", "written", "read"), LATENCIES)
def test_latency(sizes, written, read):
    """From the last elements that the first codes need, and from the last word that the first elements do."""
    writer, reader = UniformWriter(**sizes), UniformReader(**sizes)
    interval = reader.interval
    assert (writer.latency, reader.latency) == (written, read)
    tokens = tokens_of(sizes, blocks=1)
    is_turned, bits, word_bits = sizes.get("per_channel"), sizes["bits"], sizes["word_bits"]
    block = sizes["group"] * (sizes["head_dim"] if is_turned else 1) // sizes["lanes"]
    trace = simulate_stream(
        writer, tokens.reshape(-1, sizes["lanes"]).tolist(), output_count={"words": 1, "ranges": 1}
    )
    # The last word is taken in cycle block - 1; the last cycle counted is that of the output.
    assert trace.cycles == block + written
    groups = quantize(groups_of(tokens, sizes), bits)
    words = pack(groups.codes, bits, word_bits=word_bits)
    ranges = ((groups.minimum.astype(int) & 0xFFFF) | groups.span.astype(int) << 16).tolist()
    if is_turned:
        # A group's first word is taken when the last codes of the one before are given.
        taken = (len(words) - 1) * interval + words.shape[1] - 1
    else:
        taken = -(-bits * sizes["lanes"] // word_bits) - 1
    items = {"words": words.reshape(-1).tolist(), "ranges": ranges}
    assert simulate_stream(reader, items, output_count=1).cycles == taken + 1 + read


@pytest.mark.parametrize("sizes", SIZES[1:])
def test_vectors_come_back(sizes):
    tokens = tokens_of(sizes, blocks=2)
    expected = decoded_tokens(tokens, sizes).reshape(-1, sizes["lanes"]).tolist()
    transfers = tokens.reshape(-1, sizes["lanes"]).tolist()
    for valid, ready in ((1.0, 1.0), (0.7, 0.5)):
        trace = simulate_stream(
            Through(**sizes),
            transfers,
            output_count=len(expected),
            valid_probability=valid,
            ready_probability=ready,
        )
        assert trace.outputs == expected


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [False, True])
def test_many_vectors_come_back(per_channel):
    sizes = {"head_dim": 64, "bits": 4, "group": 32, "lanes": 8, "word_bits": 32, "per_channel": per_channel}
    tokens = tokens_of(sizes, blocks=100)
    expected = decoded_tokens(tokens, sizes).reshape(-1, 8)
    compiled = VerilatedStream(Through(**sizes))
    for seed, chance in enumerate((1.0, 0.6)):
        trace = compiled.run(
            tokens.reshape(-1, 8),
            output_count=len(expected),
            seed=seed,
            valid_probability=chance,
            ready_probability=chance,
        )
        np.testing.assert_array_equal(trace.outputs, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_channel": 1}, "per_channel must be true or false, not 1"),
        (
            {"group": 128},
            "group must divide head_dim (64), which 128 does not; the nearest that does is 64",
        ),
        (
            {"head_dim": 60, "group": 8},
            "lanes must divide head_dim (60), which 8 does not; the nearest that does is 6",
        ),
        ({"word_bits": 0}, "output_bits must be a positive integer, not 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        UniformWriter(**arguments)
    assert str(caught.value) == message
