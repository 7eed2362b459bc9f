import random

import numpy as np
import pytest
from amaranth.hdl import signed, unsigned

from hw.lut_kernel.scale_stage import ScaleStage
from hw.simulation import simulate_stream
from quantizers.errors import UsageError

SIZES = {"lanes": 4, "row_folds": 3, "blocks": 2, "sums": signed(9)}
ZEROS = {"zeros": unsigned(4), "offsets": signed(7)}


class Problem:
    """Random or extreme sums, scales, zero points and offsets, and the results that they must give."""

    def __init__(self, vectors=2, seed=1, is_extreme=False, **arguments):
        arguments = {**SIZES, **arguments}
        self.stage = stage = ScaleStage(**arguments)
        rng = np.random.default_rng(seed)
        turns = vectors * stage.blocks * stage.row_folds
        self.shape = (vectors, stage.blocks, stage.row_folds, stage.lanes)
        sums = _numbers(arguments["sums"], self.shape, rng, is_extreme)
        scales = _numbers(unsigned(stage.scale_bits), self.shape, rng, is_extreme)
        zero_shape, offset_shape = arguments.get("zeros", unsigned(0)), arguments.get("offsets", unsigned(0))
        zeros = _numbers(zero_shape, self.shape, rng, is_extreme)
        offsets = _numbers(offset_shape, (vectors, stage.blocks, 1, 1), rng, is_extreme)
        self.results = (scales * (sums - zeros * offsets)).sum(axis=1).reshape(-1, stage.lanes).tolist()
        codes = scales | (zeros & ((1 << zero_shape.width) - 1)) << stage.scale_bits
        self.items = {
            "sums": sums.reshape(turns, -1).tolist(),
            "scales": codes.reshape(turns, -1).tolist(),
        }
        if stage.has_zeros:
            self.items["offsets"] = offsets.reshape(-1).tolist()
        self.cycles = stage.cycles(vectors)


def _numbers(shape, size, rng, is_extreme):
    if not shape.width:
        return np.zeros(size, np.int64)
    low = -(1 << (shape.width - 1)) if shape.signed else 0
    high = low + (1 << shape.width) - 1
    return rng.choice([low, high], size) if is_extreme else rng.integers(low, high + 1, size)


def simulate(problem, **settings):
    trace = simulate_stream(problem.stage, problem.items, output_count=len(problem.results), **settings)
    return trace.outputs, trace.cycles


@pytest.mark.parametrize("multipliers", [1, 2, 4])
@pytest.mark.parametrize("products", ["luts", "dsps"])
@pytest.mark.parametrize("zeros", [unsigned(0), unsigned(1), unsigned(4), signed(2), signed(4)])
def test_results(multipliers, products, zeros):
    problem = Problem(
        zeros=zeros, offsets=ZEROS["offsets"] if zeros.width else unsigned(0), multipliers=multipliers,
        products=products,
    )  # fmt: skip
    assert simulate(problem) == (problem.results, problem.cycles)


@pytest.mark.parametrize("sums", [signed(2), unsigned(6), signed(20)])
@pytest.mark.parametrize("offsets", [signed(7), unsigned(9)])
@pytest.mark.parametrize("scale_bits", [2, 16])
def test_extreme_values(sums, offsets, scale_bits):
    problem = Problem(
        sums=sums, zeros=unsigned(4), offsets=offsets, scale_bits=scale_bits, is_extreme=True, vectors=4
    )
    assert simulate(problem)[0] == problem.results


@pytest.mark.parametrize("seed", range(24))
def test_cycles(seed):
    """The documented number of cycles is the simulated one."""
    choice = random.Random(seed)
    lanes = choice.choice([1, 2, 3, 4, 6])
    problem = Problem(
        lanes=lanes,
        row_folds=choice.randint(1, 5),
        blocks=choice.randint(1, 4),
        vectors=choice.randint(1, 3),
        scale_bits=choice.randint(5, 16),
        multipliers=choice.choice([n for n in range(1, lanes + 1) if lanes % n == 0]),
        products=choice.choice(["luts", "dsps"]),
        **choice.choice([ZEROS, {}]),
    )
    assert simulate(problem) == (problem.results, problem.cycles)


@pytest.mark.parametrize("multipliers", [1, 2, 4])
@pytest.mark.parametrize("row_folds", [1, 3])
@pytest.mark.parametrize(("valid", "ready"), [(0.5, 1.0), (1.0, 0.3), (0.6, 0.4)])
def test_back_pressure(multipliers, row_folds, valid, ready):
    problem = Problem(multipliers=multipliers, row_folds=row_folds, vectors=5, **ZEROS)
    results, cycles = simulate(problem, seed=2, valid_probability=valid, ready_probability=ready)
    assert results == problem.results
    assert cycles > problem.cycles


def test_widths():
    """Of 2 blocks with a difference of up to 256 + 15 * 64 and scales of up to 4095."""
    assert ScaleStage(**SIZES, **ZEROS).accumulator_bits == (2 * 1216 * 4095).bit_length() + 1
    assert ScaleStage(**SIZES).accumulator_bits == (2 * 256 * 4095).bit_length() + 1
    assert ScaleStage(**SIZES, largest=100, scale_bits=8).accumulator_bits == (2 * 100 * 255).bit_length() + 1


def test_speed():
    stage = ScaleStage(**SIZES, multipliers=2)
    assert (stage.cycles_per_transfer, stage.interval) == (2, 2 * 3 * 2)
    # A register each for the sum and the product, one inside the multiplier, one for the results.
    assert stage.latency == 4
    assert ScaleStage(**SIZES, products="dsps").latency == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 0}, "lanes must be a positive integer, not 0"),
        ({"row_folds": True}, "row_folds must be a positive integer, not True"),
        ({"blocks": -1}, "blocks must be a positive integer, not -1"),
        ({"sums": 8}, "sums must be a shape of at least one bit, not 8"),
        ({"scale_bits": 1}, "scale_bits must be 2 to 16, not 1"),
        ({"scale_bits": 12.5}, "scale_bits must be 2 to 16, not 12.5"),
        ({"scale_bits": 12.0}, "scale_bits must be 2 to 16, not 12.0"),
        ({"zeros": unsigned(4)}, "offsets must be a shape of at least one bit, not unsigned(0)"),
        (
            {"zeros": unsigned(5), "offsets": signed(7)},
            "zeros must be a shape of at most 4 bits, not unsigned(5)",
        ),
        ({"largest": 0}, "largest must be a positive integer, not 0"),
        ({"multipliers": 3}, "multipliers must divide the 4 lanes, not be 3"),
        (
            {"sums": signed(26), "products": "dsps"},
            "products of 27 and 12 bits do not fit a DSP slice, whose wider factor has 25",
        ),
        (
            {"sums": signed(4), "scale_bits": 3, "products": "dsps"},
            "products of 5 and 3 bits are too narrow for synthesis to give them a DSP slice",
        ),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError) as caught:
        ScaleStage(**{**SIZES, **changes})
    assert str(caught.value) == message


def test_unknown_products():
    with pytest.raises(UsageError) as caught:
        ScaleStage(**SIZES, products="dsp")
    assert str(caught.value) == "unknown products 'dsp' (did you mean 'dsps'?); expected one of: luts, dsps"
