import numpy as np
import pytest

from hw.kv_cache.transform_geometry import TransformGeometry
from quantizers.errors import UsageError
from tests.hw.kv_cache.transform_blocks import random_block


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([[]], "tokens must have blocks of one number and size, not [0] of []"),
        ([[(8, 3)], [(8, 3), (8, 2)]], "tokens must have blocks of one number and size, not [1, 2] of [8]"),
        ([[(8, 3), (4, 3)]], "tokens must have blocks of one number and size, not [2] of [4, 8]"),
    ],
)
def test_blocks_of_several_sizes(blocks, message):
    rng = np.random.default_rng(5)
    tokens = [[random_block(rng, d=d, n=n) for d, n in token] for token in blocks]
    with pytest.raises(UsageError) as caught:
        TransformGeometry.covering(*tokens)
    assert str(caught.value) == message


def test_entries_of_more_bits():
    block = random_block(np.random.default_rng(6), d=4, n=2, entry_bits=10)
    with pytest.raises(UsageError) as caught:
        TransformGeometry.covering([block], entry_bits=8)
    assert str(caught.value) == "entries of 8 bits must be from -128 to 127; one is -512"
    assert TransformGeometry.covering([block]).entry_bits == 10


def test_room_for_several_tokens():
    rng = np.random.default_rng(7)
    tokens = [[random_block(rng, d=8, n=n, max_bits=bits)] for n, bits in ((6, 2), (3, 5))]
    one, other = (TransformGeometry.covering(token) for token in tokens)
    both = TransformGeometry.covering(*tokens)
    assert (both.coefficients, len(both.slots)) == (6, 5)
    assert both.slots == tuple(max(a, b) for a, b in zip((*one.slots, 0, 0, 0), other.slots, strict=True))
    # A coefficient that a block lacks has one level.
    assert both.levels == max(one.levels, other.levels + 3)
    for token in tokens:
        both.check(token, None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"matrices": 0}, "matrices must be a positive integer, not 0"),
        ({"entry_bits": 13}, "entry_bits must be an integer from 2 to 12, not 13"),
        ({"slots": ()}, "stages of slots must be an integer from 1 to 8, not 0"),
        ({"slots": (3, 0)}, "each of slots must be a positive integer, not 0"),
        ({"has_means": 1}, "has_means must be true or false, not 1"),
    ],
)
def test_wrong_numbers(changed, message):
    sizes = {"matrices": 1, "elements": 4, "coefficients": 3, "entry_bits": 8, "slots": (3,), "levels": 6}
    with pytest.raises(UsageError) as caught:
        TransformGeometry(**{**sizes, **changed})
    assert str(caught.value) == message


def test_means_of_another_length():
    block = random_block(np.random.default_rng(8), d=4, n=2)
    geometry = TransformGeometry.covering([block], has_means=True)
    with pytest.raises(UsageError) as caught:
        geometry.check([block], [1, 2, 3])
    assert str(caught.value) == "there must be 4 means, an element of a token one, not (3,)"


def test_more_bits_than_there_is_room_for():
    rng = np.random.default_rng(9)
    narrow, wide = ([random_block(rng, d=4, n=1, max_bits=bits)] for bits in (3, 2))
    # As many levels, but of more coefficients with a bit more.
    geometry = TransformGeometry(matrices=1, elements=4, coefficients=2, entry_bits=8, slots=(2, 2), levels=9)
    geometry.check(wide, None)
    with pytest.raises(UsageError) as caught:
        geometry.check(narrow, None)
    assert str(caught.value) == "the hardware is made for slots (2, 2), and the tables have (1, 1, 1)"
