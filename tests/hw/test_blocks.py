import numpy as np
import pytest

from dse.metrics import METRICS
from hw.blocks import BLOCKS, LONGEST_RANDOM_DOT, find_block
from hw.mac import MultiplyAccumulate
from hw.simulation import simulate_stream, stream_ports
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format


def test_defaults_and_changes():
    mac = find_block("mac")
    defaults = {"dot_length": 4608, "accumulator_bits": None, "pipelined": False}
    assert mac.parameters_with({}) == defaults
    for change in ({"dot_length": 64}, {"accumulator_bits": 20}, {"pipelined": True}):
        assert mac.parameters_with(change) == {**defaults, **change}


def test_build():
    int4 = parse_scalar_format("int4")
    mac = find_block("mac").build(weights=int4, activations=int4, dot_length=9, accumulator_bits=None)
    assert isinstance(mac, MultiplyAccumulate)
    assert mac.accumulator_bits == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dot_lenght": 3},
            "unknown parameter of block 'mac' 'dot_lenght' (did you mean 'dot_length'?); "
            "expected one of: dot_length, accumulator_bits, pipelined",
        ),
        ({"dot_length": -1}, "dot_length must be a positive integer, not -1"),
        ({"dot_length": "many"}, "dot_length must be a positive integer, not 'many'"),
        ({"accumulator_bits": 0}, "accumulator_bits must be a positive integer, not 0"),
    ],
)
def test_wrong_parameters(changes, message):
    with pytest.raises(UsageError) as caught:
        find_block("mac").parameters_with(changes)
    assert str(caught.value) == message


def test_formats_by_role():
    int4, e2m1 = parse_scalar_format("int4"), parse_scalar_format("e2m1")
    mac = find_block("mac")
    assert mac.formats_of({"activations": "e2m1", "weights": "int4"}) == {
        "weights": int4,
        "activations": e2m1,
    }
    assert find_block("hadamard").formats_of({}) == {}


@pytest.mark.parametrize(
    ("block", "names", "message"),
    [
        ("mac", {"weights": "int4"}, "block 'mac' needs the format of its activations"),
        (
            "hadamard",
            {"weights": "int4", "activations": "int4"},
            "block 'hadamard' takes no formats, but weights 'int4' were given; "
            "its parameters are: size, lanes, input_bits",
        ),
    ],
)
def test_wrong_formats(block, names, message):
    with pytest.raises(UsageError) as caught:
        find_block(block).formats_of(names)
    assert str(caught.value) == message


def test_unknown_block():
    with pytest.raises(UsageError) as caught:
        find_block("mack")
    assert str(caught.value) == "unknown block 'mack' (did you mean 'mac'?); expected one of: " + ", ".join(
        BLOCKS
    )


def mac_of(weights, activations, **changes):
    """The block's component, and the arguments that it was built from."""
    block = find_block("mac")
    formats = {"weights": parse_scalar_format(weights), "activations": parse_scalar_format(activations)}
    arguments = {**formats, **block.parameters_with(changes)}
    return block.build(**arguments), arguments


def dots_of(payloads, weights, activations):
    """Dot products of packed pairs, in Python integers: (length, sum) of each."""
    dots, length, total = [], 0, 0
    for pair in payloads:
        w, a = pair % (1 << weights.bits), pair >> weights.bits & ((1 << activations.bits) - 1)
        length, total = (
            length + 1,
            total + int(weights.fixed_point([w])[0]) * int(activations.fixed_point([a])[0]),
        )
        if pair >> weights.bits + activations.bits:
            dots.append((length, total))
            length, total = 0, 0
    assert length == 0
    return dots


@pytest.mark.parametrize("formats", ["int4 uint8", "e4m3 e2m1", "ternary int3n"])
@pytest.mark.parametrize("dot_length", [1, 5, 4608])
def test_stimuli_are_dot_products_and_their_sums(formats, dot_length):
    component, arguments = mac_of(*formats.split(), dot_length=dot_length)
    stimuli = find_block("mac").stimuli(component, np.random.default_rng(1), 300, **arguments)
    assert list(stimuli.inputs) == ["pairs"]
    assert stimuli.first == ()
    dots = dots_of(stimuli.inputs["pairs"], arguments["weights"], arguments["activations"])
    assert [total % (1 << component.accumulator_bits) for _, total in dots] == stimuli.outputs["sums"]
    lengths = {length for length, _ in dots}
    assert (min(lengths), max(lengths)) == (1, min(dot_length, LONGEST_RANDOM_DOT))


def test_stimuli_hold_only_codes_that_encoding_makes():
    component, arguments = mac_of("ternary", "int3n")
    stimuli = find_block("mac").stimuli(component, np.random.default_rng(2), 100, **arguments)
    pairs = stimuli.inputs["pairs"]
    assert {pair % 4 for pair in pairs} == {0, 1, 3}
    assert {pair >> 2 & 7 for pair in pairs} == {0, 1, 2, 3, 5, 6, 7}


def test_stimuli_follow_the_seed():
    component, arguments = mac_of("int8", "int8")
    first, again, other = (
        find_block("mac").stimuli(component, np.random.default_rng(seed), 20, **arguments)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_sums_wrap_where_the_accumulator_is_narrow():
    component, arguments = mac_of("int8", "int8", accumulator_bits=10)
    stimuli = find_block("mac").stimuli(component, np.random.default_rng(3), 50, **arguments)
    dots = dots_of(stimuli.inputs["pairs"], arguments["weights"], arguments["activations"])
    assert [total % 1024 for _, total in dots] == stimuli.outputs["sums"]
    assert max(abs(total) for _, total in dots) > 1024


def test_datasheet():
    component, arguments = mac_of("e2m1", "e4m3", dot_length=64)
    sheet = find_block("mac").datasheet(component, **arguments)
    assert sheet.latency == component.latency
    assert sheet.latency_meaning == (
        "from the one in which the last pair is taken to the first in which its sum is offered"
    )
    assert sheet.throughput == "one pair a cycle, without a gap between dot products"
    assert sheet.streams == {
        "pairs": "a weight code and an activation code; last marks the final pair of a dot product",
        # Half steps of e2m1, 2**-9 of e4m3.
        "sums": "sum of the products, in units of 2**-10",
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_has_what_the_commands_need(name):
    """Stimuli and datasheet name the streams of the component, whatever the block."""
    block = BLOCKS[name]
    fmt = {"dsp_mac": "int8", "lut_kernel": "int4", "grouped_lut_kernel": "int4"}.get(name, "e4m3")
    arguments = {**block.formats_of(dict.fromkeys(block.formats, fmt)), **block.parameters_with({})}
    component = block.build(**arguments)
    sinks, sources = stream_ports(component)
    assert list(block.datasheet(component, **arguments).streams) == list(component.signature.members)
    assert set(block.speed(component, **arguments)) <= set(METRICS)
    stimuli = block.stimuli(component, np.random.default_rng(0), 4, **arguments)
    assert sorted(stimuli.inputs) == sorted(sinks)
    assert list(stimuli.outputs) == sources
    assert all(stream in sinks for stream in stimuli.first)
    assert sum(stimuli.output_counts.values()) >= 4
    assert all(stimuli.output_counts.values())


def test_stimuli_hold_in_simulation():
    component, arguments = mac_of("e2m1", "int4")
    stimuli = find_block("mac").stimuli(component, np.random.default_rng(4), 20, **arguments)
    layout = component.pairs.payload.shape()
    trace = simulate_stream(
        component, [layout.from_bits(bits) for bits in stimuli.inputs["pairs"]], output_count=20
    )
    assert [total % (1 << component.accumulator_bits) for total in trace.outputs] == stimuli.outputs["sums"]


@pytest.mark.parametrize(
    ("formats", "changes"),
    [
        ("int4 uint4", {}),
        ("e2m1 int8", {"has_bias": True}),
        ("int8 int8", {"output": "int8", "relu": True}),
        ("e4m3 e4m3", {"output": "e4m3", "has_bias": True, "max_shift": 60}),
        ("int4 int4", {"output": "int4", "multiplier_bits": 0, "max_shift": 8}),
    ],
)
def test_matrix_vector_unit_with_every_option(formats, changes):
    block = find_block("mvu")
    weights, activations = map(parse_scalar_format, formats.split())
    sizes = {"rows": 5, "columns": 7, "pe": 2, "simd": 3}
    arguments = {
        "weights": weights,
        "activations": activations,
        **block.parameters_with({**sizes, **changes}),
    }
    component = block.build(**arguments)
    stimuli = block.stimuli(component, np.random.default_rng(3), 20, **arguments)
    assert len(stimuli.outputs["outputs"]) == 21
    assert len(set(stimuli.outputs["outputs"])) > 10
    run = simulate_stream(
        component, stimuli.inputs, output_count=21, first=stimuli.first, ready_probability=0.7
    )
    fmt = parse_scalar_format(changes["output"]) if "output" in changes else None
    bits = fmt.bits if fmt else component.accumulator_bits
    mask = (1 << bits) - 1
    assert [(x & mask) | (y & mask) << bits for x, y in run.outputs] == stimuli.outputs["outputs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relu": 1}, "relu must be true or false, not 1"),
        ({"relu": True}, "relu is a part of the requantizer, and without an output format there is none"),
        ({"output": "int0"}, "no format 'int0'"),
        ({"max_shift": -1}, "max_shift must be a non-negative integer, not -1"),
    ],
)
def test_wrong_parameters_of_the_matrix_vector_unit(changes, message):
    block = find_block("mvu")
    int4 = parse_scalar_format("int4")
    with pytest.raises(UsageError) as caught:
        block.build(weights=int4, activations=int4, **block.parameters_with(changes))
    assert str(caught.value).startswith(message)
