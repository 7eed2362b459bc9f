import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from costmodel import synthesize
from hw.blocks import find_block
from hw.mx_dot import MxDotProduct
from hw.reference.mx_dot import SCALE_NAN, block_dot, element_format
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.formats import parse_format
from tests.hw.test_mac import random_codes

PAIRS = ["mxfp4 mxfp4", "mxfp4 mxfp6_e2m3", "mxfp6_e3m2 mxint8", "e4m3 e2m1", "mxint8 mxint8"]


def formats_of(pair):
    return [parse_format(name) for name in pair.split()]


def blocks_of(pair, block_size, count, seed=1):
    """Stream items and their dot products; the first are of extreme elements, some scales are NaN."""
    formats = formats_of(pair)
    rng = np.random.default_rng(seed)
    elements = [element_format(fmt) for fmt in formats]
    w, a = (random_codes(fmt, (count, block_size), rng) for fmt in elements)
    for row, picks in enumerate(((np.argmin, np.argmin), (np.argmin, np.argmax), (np.argmax, np.argmax))):
        w[row], a[row] = (pick(fmt.values()) for pick, fmt in zip(picks, elements, strict=True))
    scales = [rng.integers(256, size=count) for _ in formats]
    scales[0][4] = scales[1][5] = scales[0][6] = scales[1][6] = SCALE_NAN
    names = ("weights", "activations", "weight_scale", "activation_scale")
    items = [
        dict(zip(names, values, strict=True))
        for values in zip(w.tolist(), a.tolist(), *(scale.tolist() for scale in scales), strict=True)
    ]
    dots = block_dot(scales[0], w, scales[1], a, weights=formats[0], activations=formats[1])
    return items, [
        (int(total), int(exponent), int(is_nan)) for total, exponent, is_nan in zip(*dots, strict=True)
    ]


class InWords(wiring.Component):
    """A dot product unit whose output stream carries plain words, as the simulation wants them."""

    def __init__(self, unit):
        self.unit = unit
        word = stream.Signature(unit.dots.payload.shape().size)
        super().__init__({"blocks": In(stream.Signature(unit.blocks.payload.shape())), "dots": Out(word)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = self.unit
        wiring.connect(m, wiring.flipped(self.blocks), unit.blocks)
        m.d.comb += [
            self.dots.payload.eq(unit.dots.payload.as_value()),
            self.dots.valid.eq(unit.dots.valid),
            unit.dots.ready.eq(self.dots.ready),
        ]
        return m


def simulate(dut, items, **arguments):
    """The dot products that come out, and the cycles that they take."""
    trace = simulate_stream(InWords(dut), items, **arguments)
    layout = dut.dots.payload.shape()
    dots = [layout.from_bits(word) for word in trace.outputs]
    return [(dot["sum"], dot["exponent"], dot["is_nan"]) for dot in dots], trace.cycles


def dut_of(pair, **arguments):
    weights, activations = formats_of(pair)
    return MxDotProduct(weights=weights, activations=activations, **arguments)


@pytest.mark.parametrize("tree", ["adders", "compressors"])
@pytest.mark.parametrize("block_size", [1, 5, 16])
@pytest.mark.parametrize("pair", PAIRS)
def test_dot_products_are_exact_under_back_pressure(pair, block_size, tree):
    items, dots = blocks_of(pair, block_size, 30)
    dut = dut_of(pair, block_size=block_size, tree=tree)
    found, _ = simulate(dut, items, output_count=30, seed=3, valid_probability=0.7, ready_probability=0.5)
    assert found == dots


def test_a_block_of_the_standard():
    items, dots = blocks_of("mxfp4 mxfp4", 32, 30, seed=5)
    dut = dut_of("mxfp4 mxfp4")
    found, _ = simulate(dut, items, output_count=30, seed=3, ready_probability=0.5)
    assert found == dots


@pytest.mark.parametrize(("levels_per_stage", "tree", "latency"), [(1, "compressors", 7), (0, "adders", 2)])
def test_latency_and_a_dot_product_a_cycle(levels_per_stage, tree, latency):
    items, dots = blocks_of("mxfp4 mxfp4", 16, 20)
    dut = dut_of("mxfp4 mxfp4", block_size=16, levels_per_stage=levels_per_stage, tree=tree)
    assert dut.latency == latency
    assert simulate(dut, items, output_count=20) == (dots, 20 + latency)


def test_widths():
    """32 * 12 * 12 = 4608 in either direction."""
    assert dut_of("mxfp4 mxfp4").accumulator_bits == 14


@pytest.mark.parametrize(
    ("pair", "changes", "message"),
    [
        (
            "mxfp4 mxfp8_e4m3",
            {},
            "activations has codes for NaN or infinity, which this datapath cannot carry: e4m3fn",
        ),
        ("mxfp4 mxfp4", {"block_size": 0}, "block_size must be a positive integer, not 0"),
        (
            "mxfp4 mxfp4",
            {"tree": "adder"},
            "unknown tree 'adder' (did you mean 'adders'?); expected one of: adders, compressors",
        ),
    ],
)
def test_wrong_arguments(pair, changes, message):
    with pytest.raises(UsageError) as caught:
        dut_of(pair, **changes)
    assert str(caught.value) == message


def test_cost():
    """Yosys 0.70: 513 sites for 32 elements of e2m1, scales and handshake included; adders 590."""
    assert synthesize(dut_of("mxfp4 mxfp4"), name="mx_dot").luts <= 560


@pytest.mark.parametrize("pair", ["mxfp4 mxfp6_e3m2", "e4m3 mxint8"])
def test_stimuli_of_the_block_hold_in_simulation(pair):
    weights, activations = formats_of(pair)
    block = find_block("mx_dot")
    arguments = {"weights": weights, "activations": activations, **block.parameters_with({"block_size": 3})}
    dut = block.build(**arguments)
    stimuli = block.stimuli(dut, np.random.default_rng(3), 25, **arguments)
    layout = dut.blocks.payload.shape()
    items = [layout.from_bits(word) for word in stimuli.inputs["blocks"]]
    assert simulate_stream(InWords(dut), items, output_count=25).outputs == stimuli.outputs["dots"]
