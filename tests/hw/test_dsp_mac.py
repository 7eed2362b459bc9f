import numpy as np
import pytest
from amaranth.hdl import signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In

from costmodel import synthesize
from hw.blocks import find_block
from hw.dsp_mac import PackedMultiplyAccumulate
from hw.reference import multiply_accumulate
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import parse_format, parse_scalar_format

# Spills of one step, spills of many, four lanes, no spill at all, unsigned weights.
KINDS = ["int8 int8 1", "int8 uint8 1", "int4 int4 2", "int4 uint4 2", "int2 int2 1", "uint4 int8 1"]


def dut_of(kind, dot_length=4608, **arguments):
    weights, activations, columns = kind.split()
    return PackedMultiplyAccumulate(
        weights=parse_scalar_format(weights),
        activations=parse_scalar_format(activations),
        columns=int(columns),
        dot_length=dot_length,
        **arguments,
    )


def packed_terms(kind, codes_w, codes_a, last):
    """Payloads of the terms: codes of shape (2, n) and (columns, n)."""
    weights, activations = (parse_scalar_format(name) for name in kind.split()[:2])
    payloads = np.zeros(len(last), dtype=np.int64)
    place = 0
    for codes, fmt in ((codes_w, weights), (codes_a, activations)):
        for row in codes:
            payloads |= row << place
            place += fmt.bits
    return payloads | last << place


def expected_sums(kind, codes_w, codes_a, ends):
    """Sums of every dot product, shape (dots, lanes)."""
    weights, activations = (parse_scalar_format(name) for name in kind.split()[:2])
    starts = np.concatenate([[0], ends[:-1] + 1])
    return [
        [
            int(multiply_accumulate(w[i : j + 1], a[i : j + 1], weights=weights, activations=activations))
            for w in codes_w
            for a in codes_a
        ]
        for i, j in zip(starts, ends, strict=True)
    ]


def random_dots(kind, lengths, seed=1):
    weights, activations = (parse_scalar_format(name) for name in kind.split()[:2])
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    codes_w = rng.integers(0, 1 << weights.bits, (2, total))
    codes_a = rng.integers(0, 1 << activations.bits, (int(kind.split()[2]), total))
    ends = np.cumsum(lengths) - 1
    last = np.zeros(total, dtype=np.int64)
    last[ends] = 1
    return packed_terms(kind, codes_w, codes_a, last), expected_sums(kind, codes_w, codes_a, ends)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.1), (0.4, 0.3)])
def test_dot_products_under_back_pressure(kind, valid, ready):
    terms, sums = random_dots(kind, [1, 1, 1, 2, 9, 1, 30, 1, 1, 5])
    trace = simulate_stream(
        dut_of(kind),
        terms.tolist(),
        output_count=len(sums),
        seed=5,
        valid_probability=valid,
        ready_probability=ready,
    )
    assert trace.outputs == sums


@pytest.mark.parametrize("kind", ["int8 int8 1", "int4 int4 2"])
def test_latency_pause_and_one_term_a_cycle(kind):
    lengths = [3, 1, 1, 20, 7]
    terms, sums = random_dots(kind, lengths)
    dut = dut_of(kind)
    assert (dut.latency, dut.pause) == (5, 1)
    trace = simulate_stream(dut, terms.tolist(), output_count=len(sums))
    assert trace.outputs == sums
    assert trace.cycles == len(terms) + (len(lengths) - 1) * 1 + 5


@pytest.mark.parametrize("kind", ["int4 int4 2", "int4 uint4 2"])
def test_every_quadruple_of_codes(kind):
    codes = np.stack([grid.ravel() for grid in np.meshgrid(*[np.arange(16)] * 4, indexing="ij")])
    last = np.ones(codes.shape[1], dtype=np.int64)
    trace = VerilatedStream(dut_of(kind)).run(
        packed_terms(kind, codes[:2], codes[2:], last), output_count=len(last)
    )
    w, a = (
        parse_scalar_format(name).fixed_point(part)
        for name, part in zip(kind.split(), (codes[:2], codes[2:]), strict=False)
    )
    assert np.array_equal(trace.outputs, (w[:, None] * a[None]).reshape(4, -1).T)
    assert trace.cycles == 2 * len(last) - 1 + 5


@pytest.mark.parametrize("kind", KINDS)
def test_longest_dot_products_of_extreme_codes(kind):
    """Each lane goes as far as it can either way, beside others that do the same or the opposite."""
    weights, activations = (parse_scalar_format(name) for name in kind.split()[:2])
    columns = int(kind.split()[2])
    extremes_w, extremes_a = (
        [int(np.argmax(fmt.values())), int(np.argmin(fmt.values()))] for fmt in (weights, activations)
    )
    choices = np.stack(
        [grid.ravel() for grid in np.meshgrid(*[extremes_w] * 2, *[extremes_a] * columns, indexing="ij")]
    )
    rng = np.random.default_rng(2)
    noise_w = rng.integers(0, 1 << weights.bits, (2, 3 * 4608))
    noise_a = rng.integers(0, 1 << activations.bits, (columns, 3 * 4608))
    codes = np.repeat(choices, 4608, axis=1)
    codes_w = np.concatenate([codes[:2], noise_w], axis=1)
    codes_a = np.concatenate([codes[2:], noise_a], axis=1)
    last = (np.arange(codes_w.shape[1]) % 4608 == 4607).astype(np.int64)
    trace = VerilatedStream(dut_of(kind)).run(
        packed_terms(kind, codes_w, codes_a, last),
        output_count=int(last.sum()),
        seed=1,
        valid_probability=0.9,
        ready_probability=0.001,
    )
    assert trace.outputs.tolist() == expected_sums(kind, codes_w, codes_a, np.flatnonzero(last))


@pytest.mark.parametrize("bits", [6, 12, 16])
def test_narrow_accumulators_wrap(bits):
    terms, sums = random_dots("int8 int8 1", [40, 40, 40])
    wrapped = [
        [(value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1) for value in lanes] for lanes in sums
    ]
    dut = dut_of("int8 int8 1", accumulator_bits=bits)
    assert dut.accumulator_bits == bits
    assert simulate_stream(dut, terms.tolist(), output_count=3).outputs == wrapped
    assert wrapped != sums


def test_ports():
    dut = dut_of("int4 uint4 2", dot_length=100)
    term = data.StructLayout(
        {
            "weights": data.ArrayLayout(signed(4), 2),
            "activations": data.ArrayLayout(unsigned(4), 2),
            "last": 1,
        }
    )
    sums = data.ArrayLayout(signed(dut.accumulator_bits), 4)
    assert dut.signature.members["terms"] == In(stream.Signature(term))
    assert dut.signature.members["sums"].signature == stream.Signature(sums)


@pytest.mark.parametrize(
    ("formats", "columns"),
    [("int4 int4", 2), ("int3 uint4", 2), ("int8 int8", 1), ("int5 int5", 1), ("int4 uint8", 1)],
)
def test_as_many_columns_as_fit(formats, columns):
    weights, activations = map(parse_scalar_format, formats.split())
    dut = PackedMultiplyAccumulate(weights=weights, activations=activations, dot_length=4608)
    assert dut.packing.columns == columns


LIMITS = "do not fit one DSP48E1; up to int8 and int8, or int8 and uint8, fit in twos, int4 and int4 in fours"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "e4m3"}, "weights must be an integer format, not e4m3"),
        ({"activations": "e2m1"}, "activations must be an integer format, not e2m1"),
        ({"weights": "int8", "columns": 2}, f"4 products of int8 and int4 with 24-bit sums {LIMITS}"),
        ({"weights": "uint8", "activations": "uint8"}, f"2 products of uint8 and uint8 with 30-bit sums {LIMITS}"),
        ({"accumulator_bits": 47}, f"2 products of int4 and int4 with 47-bit sums {LIMITS}"),
        ({"columns": 3}, "columns must be 1 or 2, not 3"),
        ({"dot_length": 0}, "dot_length must be a positive integer, not 0"),
        ({"accumulator_bits": -1}, "accumulator_bits must be a positive integer, not -1"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, message):
    given = {"weights": "int4", "activations": "int4", "dot_length": 4608} | arguments
    for name in ("weights", "activations"):
        given[name] = parse_format(given[name])
    with pytest.raises(UsageError) as caught:
        PackedMultiplyAccumulate(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("kind", "luts"), [("int8 int8 1", 18), ("int8 uint8 1", 25), ("int4 int4 2", 48), ("int4 int4 1", 5)]
)
def test_sites(kind, luts):
    resources = synthesize(dut_of(kind), name="mac")
    assert (resources.dsps, resources.luts) == (1, luts)


@pytest.mark.parametrize(
    ("formats", "changes"),
    [
        ("int8 int8", {}),
        ("int4 uint4", {"dot_length": 7}),
        ("int4 int4", {"columns": 1, "accumulator_bits": 9}),
    ],
)
def test_block(formats, changes):
    block = find_block("dsp_mac")
    weights, activations = map(parse_scalar_format, formats.split())
    arguments = {"weights": weights, "activations": activations, **block.parameters_with(changes)}
    dut = block.build(**arguments)
    stimuli = block.stimuli(dut, np.random.default_rng(1), 50, **arguments)
    bits = dut.accumulator_bits
    trace = VerilatedStream(dut).run(
        stimuli.inputs, output_count=len(stimuli.outputs["sums"]), ready_probability=0.5
    )
    packed = [
        sum((value & (1 << bits) - 1) << bits * lane for lane, value in enumerate(lanes))
        for lanes in trace.outputs.tolist()
    ]
    assert (packed, len(packed)) == (stimuli.outputs["sums"], 50)
    datasheet = block.datasheet(dut, **arguments)
    assert (datasheet.latency, set(datasheet.streams)) == (5, {"terms", "sums"})
    assert datasheet.throughput == (
        f"one term a cycle, {dut.packing.lanes} products, with a pause of 1 cycle between dot products"
    )


@pytest.mark.parametrize(
    ("value", "message"), [(3, "columns must be 1 or 2, not 3"), ("a", "columns must be 1 or 2, not 'a'")]
)
def test_wrong_columns_of_the_block(value, message):
    with pytest.raises(UsageError) as caught:
        find_block("dsp_mac").parameters_with({"columns": value})
    assert str(caught.value) == message


def test_block_takes_integers_only():
    block = find_block("dsp_mac")
    assert block.parse_format("uint4") == parse_scalar_format("uint4")
    with pytest.raises(UsageError) as caught:
        block.parse_format("e4m3")
    assert str(caught.value) == "block 'dsp_mac' takes integer formats, not e4m3"
