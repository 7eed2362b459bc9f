import numpy as np
import pytest

from hw.blocks import find_block
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format


def build(weights, activations, **changes):
    block = find_block("grouped_lut_kernel")
    formats = {"weights": parse_scalar_format(weights), "activations": parse_scalar_format(activations)}
    arguments = {**formats, **block.parameters_with(changes)}
    return block, block.build(**arguments), arguments


@pytest.mark.parametrize(
    ("formats", "changes"),
    [
        ("uint2 int8", {}),
        ("int4 int4", {"group": 3, "banks": 1, "has_zeros": True, "products": "dsps"}),
        ("ternary uint8", {"table": "mirrored", "writers": 1, "multipliers": 1}),
        ("uint1 int16", {"group": 2, "block": None, "scale_bits": 5}),
    ],
)
def test_stimuli(formats, changes):
    sizes = {"rows": 5, "columns": 20, "lanes": 2, "groups": 2, "block": 8}
    block, component, arguments = build(*formats.split(), **{**sizes, **changes})
    stimuli = block.stimuli(component, np.random.default_rng(3), 20, **arguments)
    assert len(stimuli.outputs["outputs"]) == 21
    assert len(set(stimuli.outputs["outputs"])) > 10
    run = simulate_stream(component, stimuli.inputs, output_count=21, ready_probability=0.7)
    bits = component.accumulator_bits
    mask = (1 << bits) - 1
    assert [(x & mask) | (y & mask) << bits for x, y in run.outputs] == stimuli.outputs["outputs"]


def test_speed_and_datasheet():
    sizes = {"rows": 64, "columns": 64, "lanes": 4, "groups": 4, "block": 32, "multipliers": 1}
    block, component, arguments = build("uint2", "int8", **sizes)
    assert block.speed(component, **arguments) == {
        "cycles_per_vector": 128,
        "weights_per_cycle": 32,
        "weight_bits_per_cycle": 64,
    }
    datasheet = block.datasheet(component, **arguments)
    assert datasheet.latency == component.latency
    assert datasheet.latency_meaning.endswith("are taken to their results, if no sums waited")
    assert datasheet.throughput == "one vector in 128 cycles"
    assert datasheet.streams["scales"] == (
        "4 rows of a block: 12 bits of a scale, and above it 2 of a zero point"
    )
    assert datasheet.streams["outputs"] == "4 sums of blocks times scales, in units of those of the scales"


def test_scales_alone_in_the_datasheet():
    block, component, arguments = build("int2", "int8", rows=4, columns=8, block=4, scale_bits=9)
    streams = block.datasheet(component, **arguments).streams
    assert streams["scales"] == "8 rows of a block: 9 bits of a scale"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"has_zeros": 1}, "has_zeros must be true or false, not 1"),
        ({"block": 0}, "block must be a positive integer, not 0"),
        ({"products": 3}, "products must be a name, not 3"),
    ],
)
def test_wrong_parameters(changes, message):
    with pytest.raises(UsageError) as caught:
        find_block("grouped_lut_kernel").parameters_with(changes)
    assert str(caught.value) == message
