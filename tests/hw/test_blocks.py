import pytest

from hw.blocks import BLOCKS, find_block
from hw.mac import MultiplyAccumulate
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format


def test_defaults_and_changes():
    mac = find_block("mac")
    assert mac.parameters_with({}) == {"dot_length": 4608, "accumulator_bits": None}
    assert mac.parameters_with({"dot_length": 64}) == {"dot_length": 64, "accumulator_bits": None}
    assert mac.parameters_with({"accumulator_bits": 20}) == {"dot_length": 4608, "accumulator_bits": 20}


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
            "expected one of: dot_length, accumulator_bits",
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


def test_unknown_block():
    with pytest.raises(UsageError) as caught:
        find_block("mack")
    assert str(caught.value) == "unknown block 'mack' (did you mean 'mac'?); expected one of: " + ", ".join(
        BLOCKS
    )
