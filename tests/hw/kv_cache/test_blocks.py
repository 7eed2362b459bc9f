"""The units of the KV cache by name: what they are said to give is what they give."""

import numpy as np
import pytest

from hw.blocks import find_block
from hw.simulation import simulate_stream
from quantizers.errors import UsageError

TRANSFORM = {
    **{"size": 8, "heads": 2, "coefficients": 5, "bits": 3, "lanes": 4, "pe": 2, "simd": 4, "word_bits": 16},
    "memory": "lutram",
}
VARIANTS = [
    ("kv_uniform_writer", {"head_dim": 16, "group": 16, "lanes": 4}),
    ("kv_uniform_writer", {"head_dim": 16, "group": 8, "lanes": 4, "bits": 3, "word_bits": 7}),
    ("kv_uniform_writer", {"head_dim": 8, "group": 16, "lanes": 4, "bits": 2, "per_channel": True}),
    ("kv_uniform_reader", {"head_dim": 16, "group": 16, "lanes": 4, "bits": 8}),
    ("kv_uniform_reader", {"head_dim": 8, "group": 12, "lanes": 4, "bits": 3, "per_channel": True}),
    ("kv_rotated_writer", {"size": 8, "heads": 2, "lanes": 2, "bits": 2}),
    ("kv_rotated_writer", {"size": 16, "heads": 3, "lanes": 2, "bits": 3, "table_seed": 7}),
    ("kv_rotated_reader", {"size": 8, "heads": 2, "lanes": 2, "bits": 2}),
    ("kv_rotated_reader", {"size": 16, "heads": 3, "lanes": 1, "bits": 4, "table_seed": 7}),
    ("kv_allocated_writer", {"size": 16, "heads": 2, "finest": 3}),
    ("kv_allocated_writer", {"size": 8, "lanes": 1, "finest": 4, "lowest": 0, "scale_bits": 6}),
    ("kv_allocated_reader", {"size": 16, "heads": 2, "finest": 3, "lowest": 1}),
    ("kv_allocated_reader", {"size": 8, "lanes": 2, "finest": 2, "lowest": 9}),
    ("hadamard", {"size": 8, "lanes": 8, "input_bits": 1}),
    ("hadamard", {"size": 32, "lanes": 2, "input_bits": 5}),
    ("kv_transform_writer", TRANSFORM),
    ("kv_transform_writer", {**TRANSFORM, "heads": 1, "bits": 1, "memory": "registers"}),
    ("kv_transform_reader", TRANSFORM),
    ("kv_transform_reader", {**TRANSFORM, "heads": 3, "word_bits": 7}),
    ("kv_merge_engine", {"channels": 8, "lanes": 2}),
    ("kv_merge_engine", {"channels": 12, "lanes": 3, "t": 0.3}),
    ("kv_merge_restore", {"channels": 8, "lanes": 2, "capacity": 3}),
    ("kv_merge_restore", {"channels": 4, "lanes": 4, "token_bits": 3}),
    ("kv_distinct_tokens", {"capacity": 20}),
    ("kv_distinct_tokens", {"capacity": 30, "retained": 2, "retention": "printed", "gamma": 0.2}),
]


def built(name, changes):
    """The block, its component and the arguments of that."""
    block = find_block(name)
    arguments = block.parameters_with(changes)
    return block, block.build(**arguments), arguments


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_stimuli_hold_in_simulation(name, changes):
    block, component, arguments = built(name, changes)
    stimuli = block.stimuli(component, np.random.default_rng(5), 40, **arguments)
    counts = stimuli.output_counts
    assert next(iter(counts.values())) >= 40
    run = simulate_stream(
        component,
        stimuli.inputs,
        output_count=counts,
        seed=2,
        valid_probability=0.8,
        ready_probability=0.7,
        first=stimuli.first,
        max_cycles=20_000,
    )
    for stream, expected in stimuli.outputs.items():
        member = block.build(**arguments).signature.members[stream].signature.members["payload"]
        bits = [
            member.shape.const(payload).as_bits() if isinstance(payload, list) else payload
            for payload in run.streams[stream]
        ]
        assert bits == expected
        assert len(set(expected)) > 1


def test_tables_follow_their_seed():
    """And nothing else: the same design, whatever the stimuli."""
    codes = []
    for table_seed in (0, 0, 1):
        block, component, arguments = built(
            "kv_rotated_writer", {"size": 16, "lanes": 2, "table_seed": table_seed}
        )
        stimuli = block.stimuli(component, np.random.default_rng(3), 8, **arguments)
        codes.append(stimuli.inputs["inputs"])
    assert codes[0] == codes[1] != codes[2]


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("kv_uniform_writer", {"elements_per_cycle": 8}),
        ("kv_uniform_reader", {"elements_per_cycle": 8}),
        ("kv_rotated_writer", {"elements_per_cycle": 8}),
        ("kv_rotated_reader", {"elements_per_cycle": 8}),
        ("kv_allocated_writer", {"elements_per_cycle": 4}),
        ("kv_allocated_reader", {"elements_per_cycle": 4}),
        ("hadamard", {"elements_per_cycle": 8}),
        ("kv_merge_engine", {"cycles_per_vector": 327 / 2, "elements_per_cycle": 2 * 64 / 327}),
        ("kv_transform_writer", {"elements_per_cycle": 1}),
        ("kv_transform_reader", {"elements_per_cycle": 1}),
        ("kv_merge_restore", {"elements_per_cycle": 4}),
        ("kv_distinct_tokens", {}),
    ],
)
def test_speed(name, rate):
    block, component, arguments = built(name, {})
    assert block.speed(component, **arguments) == rate


def test_speed_of_packed_words_that_are_too_narrow():
    block, component, arguments = built("kv_uniform_writer", {"word_bits": 16})
    assert block.speed(component, **arguments) == {"elements_per_cycle": 4}


def test_datasheet_of_a_writer():
    block, component, arguments = built("kv_uniform_writer", {"per_channel": True, "group": 32})
    sheet = block.datasheet(component, **arguments)
    assert sheet.latency == component.latency == 19
    assert sheet.latency_meaning == (
        "from the one in which the last elements of 32 tokens are taken to the first word of codes"
    )
    assert sheet.throughput == "32 elements in 4 cycles"
    assert sheet.streams == {
        "inputs": "8 elements of a token, from channel 0",
        "words": "4-bit codes of a group, 32 tokens of a channel, from a new word on",
        "ranges": "smallest element of a group, and largest less smallest; one for each group",
    }


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("kv_uniform_writer", {"per_channel": 1}, "per_channel must be true or false, not 1"),
        ("kv_uniform_writer", {"bits": 9}, "bits must be 2 to 8, not 9"),
        (
            "kv_uniform_reader",
            {"group": 48},
            "group must divide head_dim (64), which 48 does not; the nearest that does is 32",
        ),
        (
            "kv_rotated_writer",
            {"size": 48},
            "size must be a power of two from 8 to 128, not 48; the nearest is 32",
        ),
        ("kv_rotated_reader", {"heads": 0}, "heads must be a positive integer, not 0"),
        (
            "kv_rotated_reader",
            {"table_seed": -1},
            "table_seed must be a non-negative integer, not -1",
        ),
        ("kv_allocated_writer", {"finest": 7}, "finest must be an integer from 2 to 6, not 7"),
        ("kv_allocated_reader", {"scale_bits": 4}, "scale_bits must be an integer from 5 to 16, not 4"),
        (
            "kv_allocated_reader",
            {"lanes": 8},
            "codes of 5 bits take 16 products a vector and so as many words; expected at most 4 lanes, not 8",
        ),
        (
            "hadamard",
            {"lanes": 3},
            "lanes must be a power of two of at most the 64 elements of a vector, not 3; the nearest is 2",
        ),
        ("kv_transform_writer", {"bits": 9}, "bits must be an integer from 1 to 8, not 9"),
        (
            "kv_transform_reader",
            {"pe": 7},
            "pe must divide vector (64), which 7 does not; the nearest that does is 8",
        ),
        ("hadamard", {"input_bits": 33}, "input_bits must be an integer from 1 to 32, not 33"),
        ("kv_merge_engine", {"t": 2}, "t must be from 0 to 1, not 2"),
        ("kv_merge_engine", {"multipliers": "dsp"}, "unknown multipliers 'dsp' (did you mean 'dsps'?)"),
        ("kv_merge_restore", {"lanes": 5}, "lanes must divide the 64 channels, not be 5"),
        ("kv_distinct_tokens", {"gamma": 1.5}, "gamma must be from 0 to 1, not 1.5"),
        ("kv_distinct_tokens", {"gamma": "much"}, "gamma must be from 0 to 1, not 'much'"),
        ("kv_distinct_tokens", {"retention": "some"}, "unknown retention 'some' (did you mean 'prose'?)"),
    ],
)
def test_wrong_parameters(name, changes, message):
    with pytest.raises(UsageError) as caught:
        built(name, changes)
    assert str(caught.value).partition("; expected one of")[0] == message
