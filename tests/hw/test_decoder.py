import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.arith import Decoder
from quantizers.errors import UsageError
from quantizers.formats import parse_format, parse_scalar_format


def decoded(name):
    """(sign, significand, exponent) of every code, from simulation."""
    fmt = parse_scalar_format(name)
    dut = Decoder(fmt)
    fields = []

    async def testbench(ctx):
        for code in range(1 << fmt.bits):
            ctx.set(dut.code, code)
            fields.append([ctx.get(port) for port in (dut.sign, dut.significand, dut.exponent)])

    simulator = Simulator(dut)
    simulator.add_testbench(testbench)
    simulator.run()
    return fmt, dut, fields


@pytest.mark.parametrize(
    "name", ["int3", "int8", "uint8", "e1m6", "e2m1", "e3m0", "e4m3", "e5m2", "e5m0", "ue3m2", "e4m3b11"]
)
def test_fields_give_the_value_of_every_code(name):
    fmt, dut, fields = decoded(name)
    expected = fmt.fixed_point(np.arange(1 << fmt.bits))
    counts_from_one = len(dut.exponent) > 0
    for value, (sign, significand, exponent) in zip(expected, fields, strict=True):
        magnitude = significand << exponent
        assert (-magnitude if sign else magnitude) == value << counts_from_one


def test_ternary_is_sign_and_one_bit():
    _, dut, fields = decoded("ternary")
    assert [(sign, significand) for sign, significand, _ in fields] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(dut.exponent) == 0


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("int8", (0, 8, 0)),
        ("e1m6", (1, 7, 0)),
        ("e4m3", (1, 4, 4)),
        ("ue3m2", (0, 3, 3)),
        ("e5m0", (1, 1, 5)),
    ],
)
def test_port_widths(name, widths):
    _, dut, _ = decoded(name)
    assert (len(dut.sign), len(dut.significand), len(dut.exponent)) == widths


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e4m3fn", "fmt has codes for NaN or infinity, which this datapath cannot carry: e4m3fn"),
        ("e5m2ieee", "fmt has codes for NaN or infinity, which this datapath cannot carry: e5m2ieee"),
        ("mxfp4", "fmt must be a scalar number format, such as parse_format('e4m3'), not mxfp4"),
    ],
)
def test_formats_without_a_datapath(name, message):
    with pytest.raises(UsageError) as caught:
        Decoder(parse_format(name))
    assert str(caught.value) == message


def test_error_names_the_plain_format():
    with pytest.raises(UsageError) as caught:
        Decoder(parse_format("e4m3b11fn"))
    assert caught.value.expected == ["e4m3b11"]
