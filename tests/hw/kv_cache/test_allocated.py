import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.kv_cache.allocated import (
    KvAllocatedReader,
    KvAllocatedWriter,
    RotatedGeometry,
)
from hw.kv_cache.codebook import most_lanes
from hw.kv_cache.hadamard import exchanged_order
from hw.kv_cache.round_trip import LoadedRoundTrip
from hw.kv_cache.transform_geometry import crosses_word
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import ScaleFormat
from quantizers.kv_cache.packing import pack
from quantizers.kv_cache.rotated import Rotated, Rotation
from quantizers.kv_cache.rotation import largest_sum

# heads, size, lanes at most, finest, lowest, bits of a scale
SHAPES = [
    (3, 64, 8, 5, 3, 8),
    (2, 64, 8, 4, 0, 6),
    (1, 16, 8, 3, 0, 8),
    (2, 128, 2, 6, 1, 10),
    (4, 8, 1, 4, 2, 8),
    (3, 32, 16, 2, 0, 5),
]


def random_vectors(heads, size, finest, lowest, scale_bits, *, seed=1):
    rng = np.random.default_rng(seed)
    return [
        Rotation(
            elements=size,
            bits=tuple(rng.integers(lowest, finest + 1, size).tolist()),
            finest=finest,
            signs=tuple((1 - 2 * rng.integers(0, 2, size)).tolist()),
            scale=ScaleFormat.covering(largest_sum(size), bits=scale_bits),
            means=tuple(rng.integers(-32768, 32768, size).tolist()),
        )
        for _ in range(heads)
    ]


def round_trip(geometry):
    return LoadedRoundTrip(KvAllocatedWriter(geometry=geometry), KvAllocatedReader(geometry=geometry))


class Problem:
    """Random tokens, the words of their codes by the reference, and what comes back."""

    def __init__(self, heads, size, lanes, finest, lowest, scale_bits, *, tokens=12, seed=1):
        rng = np.random.default_rng(seed)
        self.vectors = random_vectors(heads, size, finest, lowest, scale_bits, seed=seed)
        self.geometry = RotatedGeometry.covering(self.vectors, lanes=min(lanes, most_lanes(size, finest)))
        means = np.array([vector.means for vector in self.vectors])
        spreads = np.exp2(rng.uniform(-1, 15, (tokens, 1, 1)))
        x = np.clip(means + rng.normal(0, spreads, (tokens, heads, size)), -32768, 32767).astype(int)
        x[0], x[1] = means, np.where(means < 0, 32767, -32768)
        codec = Rotated(self.vectors)
        code = codec.encode(x.reshape(tokens, 1, -1))
        lanes = self.geometry.lanes
        self.inputs = x.reshape(-1, lanes).tolist()
        self.outputs = codec.decode(code).reshape(-1, lanes).tolist()
        order = exchanged_order(size, lanes)
        self.token_words = []
        for token in range(tokens):
            numbers, widths = [], []
            for codes, scale in zip(code[::2], code[1::2], strict=True):
                numbers += [*scale.values[token], *codes.values[token][order]]
                widths += [scale_bits, *np.array(codes.widths)[order].tolist()]
            word_bits = self.geometry.word_bits
            self.token_words.append([int(w) for w in pack(np.array(numbers), widths, word_bits=word_bits)])

    @property
    def words(self):
        return [word for words in self.token_words for word in words]


@pytest.mark.parametrize("shape", SHAPES)
def test_words_are_those_of_the_reference_and_come_back(shape):
    """In the cycles of the load, a word of elements a cycle, the latency, and those of codes that go on in a
    word of their own."""
    problem = Problem(*shape)
    tokens, geometry = len(problem.token_words), problem.geometry
    writer, reader = KvAllocatedWriter(geometry=geometry), KvAllocatedReader(geometry=geometry)
    interval = geometry.heads * geometry.size // geometry.lanes
    assert writer.interval == reader.interval == interval
    loads = round_trip(geometry).loads(problem.vectors)
    goes_on = crosses_word(geometry.item_widths(problem.vectors), geometry.word_bits)
    for component, load, name, words, expected, late in (
        (writer, loads["writer_load"], "inputs", problem.inputs, problem.words, goes_on + 1),
        (reader, loads["reader_load"], "words", problem.words, problem.outputs, (tokens - 1) * goes_on),
    ):
        model = VerilatedStream(component)
        items = {"load": load, name: words}
        trace = model.run(items, output_count=len(expected), first=("load",))
        assert trace.outputs.tolist() == expected
        assert trace.cycles == len(load) + tokens * interval + component.latency + late
        trace = model.run(
            items, output_count=len(expected), first=("load",),
            seed=2, valid_probability=0.6, ready_probability=0.5,
        )  # fmt: skip
        assert trace.outputs.tolist() == expected


def test_tables_are_loaded_anew_between_tokens():
    """Tokens of two layers in turn while the output stalls: a load waits for the tokens before it."""
    problems = [Problem(2, 32, 8, 3, 1, 8, tokens=3, seed=seed) for seed in (1, 2, 1)]
    both = round_trip(problems[0].geometry)
    loads = [both.loads(problem.vectors) for problem in problems]
    outputs = [word for problem in problems for word in problem.outputs]
    found = []

    async def offer(ctx, stream, words):
        ctx.set(stream.valid, 1)
        for word in words:
            ctx.set(stream.payload, word)
            await ctx.tick().until(stream.ready)
        ctx.set(stream.valid, 0)

    async def offer_all(ctx):
        for load, problem in zip(loads, problems, strict=True):
            # The next tables are offered at once, when the tokens before them are still on their way.
            await offer(ctx, both.writer_load, load["writer_load"])
            await offer(ctx, both.reader_load, load["reader_load"])
            await offer(ctx, both.inputs, problem.inputs)

    async def take(ctx):
        rng = np.random.default_rng(1)
        while len(found) < len(outputs):
            ctx.set(both.outputs.ready, int(rng.random() < 0.4))
            *_, payload, valid, ready = await ctx.tick().sample(
                both.outputs.payload, both.outputs.valid, both.outputs.ready
            )
            if valid and ready:
                found.append([payload[lane] for lane in range(problems[0].geometry.lanes)])

    simulator = Simulator(both)
    simulator.add_clock(1e-6)
    simulator.add_testbench(offer_all)
    simulator.add_testbench(take)
    simulator.run_until(4e-3)
    assert found == outputs


@pytest.mark.parametrize(
    ("vectors", "given"),
    [
        (
            random_vectors(3, 32, 4, 1, 8),
            "3 vectors of 32 elements, codes of at most 4 bits and scales of 8 bits in units of 2**3",
        ),
        (
            random_vectors(2, 32, 3, 1, 6),
            "2 vectors of 32 elements, codes of at most 3 bits and scales of 6 bits in units of 2**5",
        ),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(vectors, given):
    geometry = RotatedGeometry.covering(random_vectors(2, 32, 4, 1, 8), lanes=4)
    for component in (KvAllocatedWriter(geometry=geometry), KvAllocatedReader(geometry=geometry)):
        with pytest.raises(UsageError) as caught:
            component.load_words(vectors)
        assert str(caught.value) == (
            "the hardware is made for 2 vectors of 32 elements, codes of at most 4 bits and scales of 8 bits in "
            f"units of 2**3; the tables are for {given}"
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads must be a positive integer, not 0"),
        ({"size": 48}, "size must be a power of two from 8 to 128, not 48; the nearest is 32"),
        ({"finest": 1}, "finest must be an integer from 2 to 6, not 1"),
        ({"lanes": 3}, "lanes must be a power of two of at most the 64 elements of a vector, not 3; "
         "the nearest is 2"),
        ({"finest": 5}, "codes of 5 bits take 16 products a vector and so as many words; "
         "expected at most 4 lanes, not 8"),
    ],
)  # fmt: skip
def test_wrong_geometries(changes, message):
    scale = ScaleFormat.covering(largest_sum(64))
    with pytest.raises(UsageError) as caught:
        RotatedGeometry(**{"heads": 2, "size": 64, "lanes": 8, "finest": 4, "scale": scale, **changes})
    assert str(caught.value) == message


def test_vectors_of_several_kinds_have_no_common_hardware():
    with pytest.raises(UsageError) as caught:
        RotatedGeometry.covering(random_vectors(1, 32, 4, 1, 8) + random_vectors(1, 16, 4, 1, 8), lanes=8)
    assert str(caught.value) == (
        "all vectors must have one size, a power of two, one finest width and one format of scales"
    )
