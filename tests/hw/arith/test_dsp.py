import numpy as np
import pytest
from amaranth.hdl import Cat, EnableInserter, Module, Shape, Signal, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from costmodel import synthesize
from hw._component import Component
from hw.arith.dsp import PackedMultiplier, Packing, widest_packing
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError


class Streamed(Component):
    """A multiplier behind streams: one set of operands a cycle, in order."""

    def __init__(self, multiplier, columns):
        self._multiplier = multiplier
        members = multiplier.signature.members
        operands = data.StructLayout(
            {"weights": members["weights"].shape, "activations": members["activations"].shape}
        )
        super().__init__(
            {
                "operands": In(stream.Signature(operands)),
                "products": Out(stream.Signature(members["products"].shape)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        advance = Signal()
        m.submodules.multiplier = EnableInserter(advance)(self._multiplier)
        marks = Signal(self._multiplier.latency)
        with m.If(advance):
            m.d.sync += marks.eq(Cat(self.operands.valid, marks))
        m.d.comb += [
            advance.eq(~self.products.valid | self.products.ready),
            self.operands.ready.eq(advance),
            self.products.valid.eq(marks[-1]),
            self._multiplier.weights.eq(self.operands.payload.weights),
            self._multiplier.activations.eq(self.operands.payload.activations),
            self.products.payload.eq(self._multiplier.products),
        ]
        return m


def values_of(shape):
    half = 1 << shape.width - 1
    return np.arange(-half, half) if shape.signed else np.arange(2 * half)


def assert_products_are_exact(weight, activation, weights, activations):
    """*weights* of shape (n, 2), *activations* of shape (n, columns); one set a cycle."""
    columns = activations.shape[1]
    multiplier = PackedMultiplier(weight=weight, activation=activation, columns=columns)
    latency = multiplier.latency
    operands = np.zeros(len(weights), dtype=np.int64)
    place = 0
    for values, shape in ((weights, weight), (activations, activation)):
        for column in values.T:
            operands |= (column & (1 << shape.width) - 1) << place
            place += shape.width
    trace = VerilatedStream(Streamed(multiplier, columns)).run(operands, output_count=len(operands))
    products = weights[:, :, None] * activations[:, None, :]
    assert np.array_equal(trace.outputs, products.reshape(len(weights), -1))
    assert trace.cycles == len(operands) + latency


@pytest.mark.parametrize(
    ("weight", "activation"), [(signed(4), signed(4)), (signed(4), unsigned(4)), (unsigned(3), signed(4))]
)
def test_every_quadruple_of_four_bits(weight, activation):
    grid = np.meshgrid(*[values_of(weight)] * 2, *[values_of(activation)] * 2, indexing="ij")
    operands = np.stack([values.ravel() for values in grid], axis=1)
    assert len(operands) == 4 ** (weight.width + activation.width)
    assert_products_are_exact(weight, activation, operands[:, :2], operands[:, 2:])


@pytest.mark.parametrize(
    ("weight", "activation"), [(signed(8), signed(8)), (signed(8), unsigned(8)), (signed(4), unsigned(8))]
)
def test_every_pair_in_each_lane_beside_every_kind_of_partner(weight, activation):
    rng = np.random.default_rng(1)
    w, a = (grid.ravel() for grid in np.meshgrid(values_of(weight), values_of(activation), indexing="ij"))
    low, high = values_of(weight)[[0, -1]]
    partners = [np.full_like(w, value) for value in (low, low + 1, -1, 0, 1, high)]
    partners.append(rng.choice(values_of(weight), len(w)))
    pairs = [pair for partner in partners for pair in ((w, partner), (partner, w))]
    weights = np.concatenate([np.stack(pair, axis=1) for pair in pairs])
    assert_products_are_exact(weight, activation, weights, np.tile(a, len(pairs))[:, None])


@pytest.mark.parametrize(
    ("weight", "activation", "columns", "result_bits", "spacing", "kept_bits"),
    [
        (signed(8), signed(8), 1, 28, 16, 14),
        (signed(8), unsigned(8), 1, 29, 16, 8),
        (signed(4), signed(4), 2, 20, 9, 7),
        (signed(4), unsigned(4), 2, 21, 9, 7),
        (signed(4), signed(4), 1, 20, 20, 18),
    ],
)
def test_packing(weight, activation, columns, result_bits, spacing, kept_bits):
    packing = widest_packing(weight, activation, columns=columns, result_bits=result_bits)
    assert packing == Packing(weight, activation, columns, spacing)
    assert packing.kept_bits == kept_bits
    products = np.outer(values_of(weight), values_of(activation))
    low, high = int(products.min()), int(products.max())
    offset = 1 << spacing - 1
    assert offset + low >= 0
    assert offset + (1 << kept_bits) - 1 + high < 1 << spacing
    assert offset + (2 << kept_bits) - 1 + high >= 1 << spacing


@pytest.mark.parametrize(
    ("bits", "columns", "result_bits"), [((9, 8), 1, 17), ((8, 10), 1, 18), ((5, 5), 2, 22), ((8, 8), 1, 33)]
)
def test_no_packing(bits, columns, result_bits):
    shapes = [signed(width) for width in bits]
    assert widest_packing(*shapes, columns=columns, result_bits=result_bits) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"weight": signed(9), "activation": signed(9), "columns": 1},
            "2 products of signed(9) and signed(9) do not fit one DSP48E1",
        ),
        (
            {"weight": signed(8), "activation": signed(8), "columns": 2},
            "4 products of signed(8) and signed(8) do not fit one DSP48E1",
        ),
        ({"weight": signed(8), "activation": signed(8), "columns": 3}, "columns must be 1 or 2, not 3"),
        (
            {"weight": 8, "activation": signed(8), "columns": 1},
            "weight must be a shape of at least one bit, not 8",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        PackedMultiplier(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("shape", "columns", "luts", "ffs"), [(signed(8), 1, 1, 8), (signed(4), 2, 5, 12), (signed(4), 1, 0, 4)]
)
def test_one_slice_does_it(shape: Shape, columns: int, luts: int, ffs: int) -> None:
    resources = synthesize(PackedMultiplier(weight=shape, activation=shape, columns=columns), name="m")
    assert (resources.dsps, resources.luts, resources.ffs) == (1, luts, ffs)
    # A flip-flop, then the setup of A before pre-adder and multiplier in cells_sim.v of Yosys.
    assert resources.logic_delay_ns == pytest.approx(0.303 + 2.400, abs=1e-9)
