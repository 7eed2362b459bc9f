import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from costmodel import synthesize
from hw.lut_kernel.block_aligner import BlockAligner
from hw.reference.block_aligner import align_words
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from quantizers.table_lookup.wide_float import WideFloat, wide_float

BF16, FP16 = wide_float("bf16"), wide_float("fp16")


def finite_codes(fmt, shape, rng):
    return rng.choice(np.flatnonzero(np.isfinite(fmt.values())), shape)


def near_codes(fmt, shape, rng):
    """Normal numbers of about one magnitude, and some zeros: what layers give each other."""
    return fmt.encode(rng.standard_normal(shape) * (rng.random(shape) > 0.1))


def expected(codes, component):
    """Payloads of the output stream for words of codes, from the reference."""
    bits, lanes = component.bits, component.lanes
    aligned = align_words(
        codes, activations=component.activations_format, words_per_block=component.words, bits=bits
    )
    return [
        sum((code & ((1 << bits) - 1)) << bits * lane for lane, code in enumerate(word))
        | exponent << bits * lanes
        for word, exponent in zip(aligned.codes.tolist(), aligned.exponents.tolist(), strict=True)
    ]


def check(codes, **arguments):
    """Simulates words of codes, without a pause: results and cycles."""
    component = BlockAligner(lanes=codes.shape[1], **arguments)
    want, cycles = expected(codes, component), component.cycles(len(codes) // component.words)
    if len(codes) > 200:
        run = VerilatedStream(component).run(codes, output_count=len(codes))
    else:
        run = simulate_stream(component, codes.tolist(), output_count=len(codes))
    assert list(run.outputs) == want
    assert run.cycles == cycles


def random_aligner(seed):
    choice = random.Random(seed)
    return {
        "activations": choice.choice([BF16, FP16, WideFloat(choice.randint(2, 8), choice.randint(1, 10))]),
        "lanes": choice.randint(1, 6),
        "words": choice.randint(1, 9),
        "bits": choice.randint(4, 16),
    }


@pytest.mark.parametrize("seed", range(24))
def test_random_aligners(seed):
    """Integers and exponents are the reference's; the documented number of cycles is the simulated one."""
    arguments = random_aligner(seed)
    lanes, words = arguments.pop("lanes"), arguments["words"]
    rng = np.random.default_rng(seed)
    for draw in (finite_codes, near_codes):
        check(draw(arguments["activations"], (words * (1 + seed % 6), lanes), rng), **arguments)


@pytest.mark.parametrize("seed", range(20))
def test_latency_and_interval(seed):
    """The first block's results come the documented cycles after its last word, the others in a row."""
    arguments = random_aligner(seed)
    component = BlockAligner(**arguments)
    words, blocks = component.words, 3
    codes = finite_codes(
        component.activations_format, (blocks * words, component.lanes), np.random.default_rng(seed)
    )
    for count in (1, words + 1, blocks * words):
        run = simulate_stream(BlockAligner(**arguments), codes.tolist(), output_count=count)
        # The last of `words` words is taken in cycle words - 1; the last cycle counted is that of the output.
        assert run.cycles == words - 1 + component.latency + count
    assert component.interval == words


@pytest.mark.parametrize(("widths", "bits"), [((3, 2), 4), ((3, 2), 8), ((2, 4), 4)])
@pytest.mark.parametrize("words", [1, 2])
def test_every_pair_of_codes(widths, bits, words):
    """Blocks of two, side by side and one after the other; e2m4 in 4 bits rounds and saturates."""
    fmt = WideFloat(*widths)
    codes = np.flatnonzero(np.isfinite(fmt.values()))
    pairs = np.stack(np.meshgrid(codes, codes, indexing="ij"), axis=-1)
    check(pairs.reshape(-1, 2 // words), activations=fmt, words=words, bits=bits)


@pytest.mark.parametrize("bits", [8, 12])
def test_every_bfloat16_beside_others(bits):
    """Every finite code with one whose exponent is 0 to 20 higher, so that it is shifted by each distance."""
    codes = np.flatnonzero(np.isfinite(BF16.values()))
    rng = np.random.default_rng(1)
    fields = np.minimum((codes >> 7 & 255) + rng.integers(0, 21, len(codes)), 254)
    others = fields << 7 | rng.integers(0, 128, len(codes)) | rng.integers(0, 2, len(codes)) << 15
    check(np.stack([codes, others], axis=-1), activations=BF16, words=1, bits=bits)


@pytest.mark.parametrize(("fmt", "bits"), [(BF16, 4), (BF16, 12), (FP16, 8), (FP16, 16)])
def test_extremes(fmt, bits):
    """Largest numbers, smallest normal and subnormal ones, and zeros of both signs."""
    largest, sign = fmt.encode(fmt.maximum).item(), 1 << fmt.bits - 1
    normal = 1 << fmt.mantissa_bits
    blocks = [
        [largest, largest | sign, largest - 1, 1],
        [1, 1 | sign, normal - 1, normal - 1 | sign],
        [normal, normal | sign, normal - 1, 1],
        [0, sign, 0, 0],
        [0, sign, 1, 0],
        [largest, 0, normal, sign],
    ]
    check(np.array(blocks).reshape(-1, 2), activations=fmt, words=2, bits=bits)


def test_numbers_that_do_not_exist_mark_their_block_only():
    component = BlockAligner(activations=BF16, lanes=2, words=2, bits=8)
    codes = np.array(
        [[0x3F80, 0], [0x3F80, 1], [0x3F80, 0x7F80], [1, 1], [0, 0], [0xFFC1, 0], [0x3F80, 0], [0, 0]]
    )
    run = simulate_stream(component, codes.tolist(), output_count=len(codes))
    assert [payload >> 16 for payload in run.outputs] == [127, 127, 255, 255, 255, 255, 127, 127]
    good = [0, 1, 6, 7]
    reference = expected(codes[good], component)
    assert [run.outputs[place] for place in good] == reference


@pytest.mark.parametrize(("lanes", "words"), [(1, 1), (4, 1), (3, 4), (1, 9)])
@pytest.mark.parametrize(("valid", "ready"), [(0.5, 1.0), (1.0, 0.2), (0.6, 0.4), (0.1, 1.0)])
def test_back_pressure(lanes, words, valid, ready):
    rng = np.random.default_rng(4)
    codes = near_codes(BF16, (words * max(6, 30 // words), lanes), rng)
    component = BlockAligner(activations=BF16, lanes=lanes, words=words)
    want, cycles = expected(codes, component), component.cycles(len(codes) // words)
    run = simulate_stream(
        component,
        codes.tolist(),
        output_count=len(codes),
        seed=3,
        valid_probability=valid,
        ready_probability=ready,
    )
    assert run.outputs == want
    assert run.cycles > cycles


@pytest.mark.parametrize(("fmt", "lanes", "words", "bits"), [(BF16, 4, 8, 12), (FP16, 16, 2, 10)])
def test_long_streams(fmt, lanes, words, bits):
    rng = np.random.default_rng(5)
    codes = np.concatenate(
        [draw(fmt, (words * 1500, lanes), rng) for draw in (near_codes, finite_codes, near_codes)]
    )
    component = BlockAligner(activations=fmt, lanes=lanes, words=words, bits=bits)
    want, cycles = expected(codes, component), component.cycles(len(codes) // words)
    model = VerilatedStream(component)
    at_once = model.run(codes, output_count=len(codes))
    assert (at_once.outputs.tolist(), at_once.cycles) == (want, cycles)
    for valid, ready in ((0.7, 0.8), (1.0, 0.3), (0.2, 1.0)):
        run = model.run(
            codes, output_count=len(codes), seed=6, valid_probability=valid, ready_probability=ready
        )
        assert run.outputs.tolist() == want


class _Shallow(BlockAligner):
    depth = property(lambda self: BlockAligner.depth.fget(self) - 1)


@pytest.mark.parametrize(("lanes", "words", "depth"), [(1, 2, 3), (4, 8, 11), (16, 2, 7), (5, 32, 36)])
def test_a_smaller_ring_would_stop_the_stream(lanes, words, depth):
    arguments = {"activations": BF16, "lanes": lanes, "words": words}
    assert BlockAligner(**arguments).depth == depth
    codes = near_codes(BF16, (4 * words, lanes), np.random.default_rng(8))
    shallow = _Shallow(**arguments)
    want, cycles = expected(codes, shallow), shallow.cycles(4)
    run = simulate_stream(shallow, codes.tolist(), output_count=len(codes))
    assert run.outputs == want
    assert run.cycles > cycles


@pytest.mark.parametrize(("lanes", "words"), [(2, 3), (4, 1)])
def test_words_are_taken_until_all_is_full(lanes, words):
    """While nobody takes results: the ring, and the registers behind it."""
    component = BlockAligner(activations=BF16, lanes=lanes, words=words)
    taken = 0

    async def offer(ctx):
        nonlocal taken
        ctx.set(component.activations.valid, 1)
        for _ in range(60):
            *_, ready = await ctx.tick().sample(component.activations.ready)
            taken += ready

    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(offer)
    simulator.run()
    assert taken == component.depth + 4


def test_its_size():
    """Measured: 311 sites with four lanes, of which 52 hold words; 1120 with sixteen."""
    assert synthesize(BlockAligner(activations=BF16), name="aligner").luts <= 320


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 0}, "lanes must be a positive integer, not 0"),
        ({"words": 1.5}, "words must be a positive integer, not 1.5"),
        ({"bits": 3}, "bits must be 4 to 16, not 3"),
        ({"bits": 17}, "bits must be 4 to 16, not 17"),
        ({"activations": "bf16"}, "activations must be a WideFloat, such as bf16, not 'bf16'"),
        (
            {"activations": parse_scalar_format("int8")},
            "activations must be a WideFloat, such as bf16, not "
            "IntegerFormat(bits=8, signed=True, narrow=False)",
        ),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError) as caught:
        BlockAligner(**{"activations": BF16, **changes})
    assert str(caught.value) == message
