"""The fast kernel against the definition, bit for bit, for every scalar format."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from quantizers import rounding
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat, parse_format, parse_scalar_format
from quantizers.rounding import quantization_error, round_blocks, round_scaled
from tests.quantizers.format_samples import SCALARS, assert_same, critical_points, definition, random_floats

E4M3 = parse_scalar_format("e4m3")
SCALES = (1.0, 0.5, 0.0137, 7.3e-5, 311.7)
BLOCKS = ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8"]
FAMILIES = ["int8", "uint4", "ternary", "e4m3", "ue3m2", "e3m0", "e3m0b4", "e4m3fn", "e5m2ieee"]


class TestAgainstTheDefinition:
    @pytest.mark.parametrize("fmt", SCALARS, ids=lambda fmt: fmt.name)
    def test_every_format(self, fmt):
        noise = random_floats(2000)
        for scale in map(np.float32, SCALES):
            x = np.concatenate([critical_points(fmt, scale, dtype=np.float32, limit=4096), noise])
            assert_same(round_scaled(x, fmt, scale), definition(x, fmt, scale))

    @pytest.mark.parametrize("name", FAMILIES)
    def test_a_million_floats(self, name):
        fmt = parse_scalar_format(name)
        x = random_floats(1_000_000)
        assert_same(round_scaled(x, fmt, 0.37), definition(x, fmt, np.float32(0.37)))

    @pytest.mark.parametrize("name", FAMILIES)
    def test_every_float32_of_some_binades(self, name):
        """2**20 patterns each from 1 up and around the format's largest value, both signs."""
        fmt = parse_scalar_format(name)
        top = int(np.float32(fmt.maximum).view(np.int32))
        ranges = [np.arange(b, b + (1 << 20), dtype=np.int64) for b in (0x3F800000, top - (1 << 19))]
        x = np.concatenate(ranges).astype(np.int32).view(np.float32)
        for signed in (x, -x):
            assert_same(round_scaled(signed, fmt), definition(signed, fmt, np.float32(1)))

    def test_subnormal_scales_and_results(self):
        x = np.array([1e-40, -3e-42, 1e-45, 2e-38], np.float32)
        for scale in map(np.float32, (1e-40, 1e-45, 1e-38)):
            assert_same(round_scaled(x, E4M3, scale), definition(x, E4M3, scale))
        assert round_scaled(x, E4M3, 1e-42).any()

    @pytest.mark.parametrize(
        ("name", "x", "expected"),
        [
            ("e2m1", [-0.0, -0.25, 0.25, 0.75, 2.5, -99, np.inf], [-0.0, -0.0, 0, 1, 2, -6, 6]),
            ("int4", [-0.0, -0.5, 0.5, 1.5, 2.5, -99, np.inf], [0, 0, 0, 2, 2, -8, 7]),
            ("ue2m1", [-0.0, -0.25, 0.25, -3, 2.5, -np.inf, np.inf], [0, 0, 0, 0, 2, 0, 6]),
            ("e2m0", [1.5, 3.0, 0.5, -1.5, -3.0, 100, -np.inf], [2, 2, 0, -2, -2, 4, -4]),
        ],
    )
    def test_known_values(self, name, x, expected):
        fmt = parse_scalar_format(name)
        assert_same(round_scaled(x, fmt), np.array(expected, np.float32))


class TestScales:
    @pytest.mark.parametrize("shape", [(5,), (5, 1, 1, 1)])
    @pytest.mark.parametrize("name", FAMILIES)
    def test_per_channel(self, name, shape):
        fmt = parse_scalar_format(name)
        x = np.random.default_rng(1).standard_normal((5, 4, 3, 7)).astype(np.float32)
        scale = np.array([0.1, 0.013, 1, 3.7, 1e-3], np.float32).reshape(shape)
        assert_same(round_scaled(x, fmt, scale), definition(x, fmt, scale.reshape(5, 1, 1, 1)))

    @pytest.mark.parametrize("shape", [(5, 4, 1, 1), (5, 4, 3, 1), (5, 4, 3, 7)])
    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)])
    def test_per_place_of_the_first_axes(self, shape, order):
        """Rows and elements, in every layout: only one that keeps the scaled axes first is read through."""
        rng = np.random.default_rng(2)
        x = np.empty([(5, 4, 3, 7)[axis] for axis in order], np.float32)
        x[...] = rng.standard_normal(x.shape)
        x = x.transpose(np.argsort(order))
        scale = rng.uniform(1e-3, 2, shape).astype(np.float32)
        assert_same(round_scaled(x, E4M3, scale), definition(x, E4M3, scale))

    @pytest.mark.parametrize("scale", [0.3, np.float64(0.3), [0.3], np.full((1, 1, 1, 1), 0.3)])
    def test_one_value(self, scale):
        x = random_floats(24).reshape(2, 3, 4)
        assert_same(round_scaled(x, E4M3, scale), definition(x, E4M3, np.float32(0.3)))

    def test_one_value_per_element_of_a_vector(self):
        x = random_floats(6)
        scale = np.linspace(0.1, 0.6, 6, dtype=np.float32)
        assert_same(round_scaled(x, E4M3, scale), definition(x, E4M3, scale))

    @pytest.mark.parametrize(
        ("scale", "shape", "expected"),
        [
            ((3,), (4, 3), "one value or (4,) or (4, 1) or (4, 3)"),
            ((1, 3), (4, 3), "one value or (4,) or (4, 1) or (4, 3)"),
            ((1, 4), (4, 3), "one value or (4,) or (4, 1) or (4, 3)"),
            ((2, 1, 3), (2, 4, 3), "one value or (2,) or (2, 1, 1) or (2, 4, 1) or (2, 4, 3)"),
            ((2,), (), "one value"),
            ((0,), (4,), "one value or (4,)"),
        ],
    )
    def test_other_shapes(self, scale, shape, expected):
        with pytest.raises(UsageError) as error:
            round_scaled(np.ones(shape, np.float32), E4M3, np.ones(scale, np.float32))
        message = f"a scale of shape {scale} does not fit x of shape {shape}; expected {expected}"
        assert str(error.value) == message


def layouts() -> dict[str, np.ndarray]:
    x = random_floats(2 * 8 * 6 * 4).reshape(2, 8, 6, 4)
    return {
        "C": x,
        "Fortran": np.asfortranarray(x),
        "channels last": np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "channel axis inside": x.transpose(1, 0, 2, 3),
        "strided": random_floats(4 * 8 * 6 * 4).reshape(4, 8, 6, 4)[::2],
        "reversed": x[:, ::-1],
        "read-only": np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
        "broadcast": np.broadcast_to(x[:1], x.shape),
        "float64": x.astype(np.float64),
        "float16": np.clip(x, -6e4, 6e4).astype(np.float16),
        "integers": np.arange(-300, 300).reshape(2, 300),
        "scalar": x[0, 0, 0, 0],
        "empty": np.empty((2, 0, 3), np.float32),
        "list": np.array([[1.0, 2.2], [3.3, -4.4]]),
    }


class TestLayouts:
    @pytest.mark.parametrize("layout", layouts())
    def test_result_does_not_depend_on_it(self, layout):
        x = layouts()[layout]
        expected = definition(x.astype(np.float32), E4M3, np.float32(0.37))
        assert_same(np.asarray(round_scaled(x, E4M3, 0.37)), np.asarray(expected))
        out = np.full(x.shape, 7, np.float32)
        assert round_scaled(x, E4M3, 0.37, out=out) is out
        assert_same(out, np.asarray(expected))

    @pytest.mark.parametrize("layout", ["C", "Fortran", "channels last", "channel axis inside", "strided"])
    def test_per_channel(self, layout):
        x = layouts()[layout]
        scale = np.linspace(0.1, 0.7, x.shape[0], dtype=np.float32)
        expected = definition(x, E4M3, scale.reshape(-1, 1, 1, 1))
        assert_same(round_scaled(x, E4M3, scale), expected)

    @pytest.mark.parametrize("layout", ["C", "Fortran", "channels last"])
    def test_dense_layouts_are_kept(self, layout):
        x = layouts()[layout]
        assert round_scaled(x, E4M3, 0.37).strides == x.strides

    @pytest.mark.parametrize("layout", ["C", "channels last"])
    @pytest.mark.parametrize("padding", [(0, 0, 0, 1), (1, 0, 2, 1), (0, 1, 0, 0)])
    def test_the_inside_of_a_padded_array(self, padding, layout):
        x = np.random.default_rng(9).standard_normal((3, 8, 5, 6)).astype(np.float32)
        expected = round_scaled(x, E4M3, 0.37)
        around = list(zip(padding, padding[::-1], strict=True))
        last = layout == "channels last"
        padded = np.pad(x.transpose(0, 2, 3, 1) if last else x, around, constant_values=7)
        inside = padded[
            tuple(
                slice(low, low + n - low - high) for (low, high), n in zip(around, padded.shape, strict=True)
            )
        ]
        out = inside.transpose(0, 3, 1, 2) if last else inside
        source = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if last else x
        assert round_scaled(source, E4M3, 0.37, out=out) is out
        assert_same(out, expected)
        inside[...] = 7
        assert (padded == 7).all()

    @pytest.mark.parametrize("layout", ["C", "Fortran", "channels last", "strided"])
    def test_in_place(self, layout):
        x = layouts()[layout].copy(order="K") if layout != "strided" else layouts()[layout]
        expected = definition(x.copy(), E4M3, np.float32(0.37))
        round_scaled(x, E4M3, 0.37, out=x)
        assert_same(x, expected)

    def test_input_is_left_alone(self):
        x = random_floats(100)
        before = x.copy()
        round_scaled(x, E4M3, 0.37)
        assert_same(x, before)

    @pytest.mark.parametrize(
        ("out", "given"),
        [
            (np.empty(4, np.float64), "float64 of shape (4,)"),
            (np.empty(3, np.float32), "float32 of shape (3,)"),
        ],
    )
    def test_out_that_does_not_fit(self, out, given):
        with pytest.raises(UsageError) as error:
            round_scaled(np.ones(4, np.float32), E4M3, out=out)
        assert str(error.value) == f"out must be float32 of shape (4,), not {given}"


def errors_by_definition(x: np.ndarray, fmt: ScalarFormat, scales: np.ndarray) -> np.ndarray:
    columns = [definition(x, fmt, s[:, None]) - x for s in scales.T]
    return np.stack([np.square(c.astype(np.float64)).sum(axis=1) for c in columns], axis=1)


class TestQuantizationError:
    # 8192 is the chunk of the kernel, 64 its lanes.
    @pytest.mark.parametrize("length", [1, 2, 9, 63, 64, 65, 8191, 8192, 8193, 40_000])
    @pytest.mark.parametrize("name", ["int4", "e2m1", "e3m0", "ue2m2"])
    def test_against_numpy(self, name, length):
        fmt = parse_scalar_format(name)
        rng = np.random.default_rng(length)
        x = rng.standard_normal((3, length)).astype(np.float32)
        scales = rng.uniform(0.05, 0.6, (3, 5)).astype(np.float32)
        actual = quantization_error(x, fmt, scales)
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, errors_by_definition(x, fmt, scales), rtol=1e-12)

    def test_exact_where_the_sum_is(self):
        x = np.tile(np.array([[0.25, 0.5, -0.25, 2.5]], np.float32), (1, 5000))
        # e2m1 turns these into 0, 0.5, -0 and 2; at scale 2 into 0, 0, 0 and 2 (1.25 goes to 1).
        errors = quantization_error(x, parse_scalar_format("e2m1"), [[1, 2]])
        assert errors.tolist() == [[5000 * (0.0625 * 2 + 0.25), 5000 * (0.0625 * 2 + 0.25 + 0.25)]]

    def test_values_of_the_format_have_none(self):
        values = E4M3.values().astype(np.float32)[None]
        assert quantization_error(values, E4M3, [[1.0]]).tolist() == [[0.0]]

    def test_special_inputs(self):
        x = np.array([[1.0, np.nan], [1.0, np.inf], [1.0, 2.0]], np.float32)
        errors = quantization_error(x, E4M3, np.ones((3, 1)))
        np.testing.assert_array_equal(errors, [[np.nan], [np.inf], [0]])

    def test_nothing_to_add(self):
        assert quantization_error(np.empty((2, 0)), E4M3, np.ones((2, 3))).tolist() == [[0.0] * 3] * 2
        assert quantization_error(np.ones((2, 4)), E4M3, np.ones((2, 0))).shape == (2, 0)

    def test_other_dtypes_and_layouts(self):
        x = np.random.default_rng(0).standard_normal((50, 3))
        scales = np.full((3, 2), [0.1, 0.2])
        expected = quantization_error(np.ascontiguousarray(x.T, dtype=np.float32), E4M3, scales)
        assert (quantization_error(x.T, E4M3, scales) == expected).all()

    @pytest.mark.parametrize(("x", "scales"), [((4,), (1, 1)), ((4, 2), (3, 1)), ((4, 2), (4,))])
    def test_shapes_that_do_not_fit(self, x, scales):
        with pytest.raises(UsageError) as error:
            quantization_error(np.ones(x), E4M3, np.ones(scales))
        assert str(error.value) == f"x and scales must be of shapes (C, N) and (C, S), not {x} and {scales}"


@pytest.fixture
def three_threads(monkeypatch):
    """Three threads for large arrays, whatever the machine and the environment."""
    monkeypatch.setattr(rounding, "_thread_count", lambda: 3)


class TestBlocks:
    """``BlockFormat.round`` is the definition."""

    @pytest.mark.parametrize("name", BLOCKS)
    @pytest.mark.parametrize("length", [1, 31, 32, 77, 128])
    def test_against_the_definition_along_every_axis(self, name, length):
        fmt, rng = parse_format(name), np.random.default_rng(length)
        scale = np.exp2(rng.uniform(-150, 126, (40, 1)))
        x = (rng.standard_normal((40, length)) * scale).astype(np.float32)
        expected = fmt.round(x)
        assert_same(round_blocks(x, fmt), expected)
        assert_same(round_blocks(x.T.copy(), fmt, 0).T, expected)
        in_the_middle = x.reshape(5, 8, length).transpose(0, 2, 1)
        assert_same(round_blocks(in_the_middle, fmt, 1), expected.reshape(5, 8, length).transpose(0, 2, 1))

    @pytest.mark.parametrize("name", BLOCKS)
    @pytest.mark.filterwarnings("ignore:overflow encountered in cast")
    def test_special_values(self, name):
        fmt = parse_format(name)
        x = np.random.default_rng(3).standard_normal((7, 64)).astype(np.float32)
        x[0, 3], x[1, 40], x[2, 9], x[3], x[4, :32] = np.nan, np.inf, -np.inf, 0.0, -0.0
        x[5], x[6, ::2] = np.float32(1e-45), np.finfo(np.float32).max
        for found in (round_blocks(x, fmt), round_blocks(x.T.copy(), fmt, 0).T):
            assert_same(found, fmt.round(x))
        assert np.isnan(round_blocks(x, fmt)[0]).tolist() == [True] * 32 + [False] * 32

    @pytest.mark.parametrize("name", BLOCKS)
    def test_any_bits(self, name):
        x = random_floats(64_000).reshape(-1, 64)
        with np.errstate(all="ignore"):
            assert_same(round_blocks(x, parse_format(name)), parse_format(name).round(x))

    def test_by_hand(self):
        # The largest, 11, is 2.75 * 2**2: the scale is 2, and steps of e2m1 from 4 on are 2 * 2.
        x = np.array([11.0, 5.0, 2.4, -0.4, 0.6], np.float32)
        assert round_blocks(x, parse_format("mxfp4")).tolist() == [12.0, 4.0, 2.0, -0.0, 1.0]
        assert round_blocks(np.array([1.99, 0.03], np.float32), parse_format("mxint8")).tolist() == [
            127 / 64,
            2 / 64,
        ]

    def test_threads_and_missing_kernels_change_nothing(self, monkeypatch, three_threads):
        x = np.random.default_rng(4).standard_normal((40, 96, 100)).astype(np.float32)
        fmt = parse_format("mxfp6_e3m2")
        found = [round_blocks(x, fmt, axis) for axis in (1, 2)]
        monkeypatch.setattr(rounding, "_thread_count", lambda: 1)
        for axis in (1, 2):
            assert_same(round_blocks(x, fmt, axis), found[axis - 1])
        monkeypatch.setattr(rounding, "HAVE_KERNELS", False)
        for axis in (1, 2):
            assert_same(round_blocks(x, fmt, axis), found[axis - 1])

    def test_nothing_to_round(self):
        assert round_blocks(np.empty((0, 32), np.float32), parse_format("mxfp4")).shape == (0, 32)

    @pytest.mark.parametrize(("shape", "axis"), [((), -1), ((2, 3), 2), ((2, 3), -3)])
    def test_axes_that_are_not_there(self, shape, axis):
        with pytest.raises(UsageError) as error:
            round_blocks(np.ones(shape, np.float32), parse_format("mxfp4"), axis)
        assert str(error.value) == f"x of shape {shape} has no axis {axis} for the blocks of mxfp4"


class TestThreads:
    def test_rounding_does_not_depend_on_their_number(self, three_threads):
        x = random_floats(400_001)
        assert_same(round_scaled(x, E4M3, 0.3), definition(x, E4M3, np.float32(0.3)))
        rows = random_floats(7 * 60_013).reshape(7, -1)
        scale = np.linspace(0.1, 2, 7, dtype=np.float32)
        assert_same(round_scaled(rows, E4M3, scale), definition(rows, E4M3, scale[:, None]))

    @pytest.mark.parametrize("shape", [(1, 500_000), (300, 900), (7, 33_333)])
    def test_error_does_not_depend_on_their_number(self, monkeypatch, shape):
        rng = np.random.default_rng(4)
        x = rng.standard_normal(shape).astype(np.float32)
        scales = rng.uniform(0.1, 0.5, (shape[0], 6))
        results = []
        for threads in (1, 2, 5):
            monkeypatch.setattr(rounding, "_thread_count", lambda threads=threads: threads)
            results.append(quantization_error(x, E4M3, scales))
        assert (results[0] == results[1]).all()
        assert (results[0] == results[2]).all()

    @pytest.mark.parametrize(("omp", "count"), [("1", 1), ("3", 3), ("64", 5), ("", 5)])
    def test_their_number_follows_the_environment(self, monkeypatch, omp, count):
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 5)
        assert rounding._thread_count() == count

    def test_small_arrays_stay_on_one(self, monkeypatch, three_threads):
        monkeypatch.setattr(rounding, "_threads", lambda: pytest.fail("a thread was asked for"))
        round_scaled(np.ones(100_000, np.float32), E4M3)

    def test_calls_from_many_threads(self, three_threads):
        arrays = [random_floats(200_000, seed) for seed in range(8)]
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda x: round_scaled(x, E4M3, 0.3), arrays))
        for x, result in zip(arrays, results, strict=True):
            assert_same(result, definition(x, E4M3, np.float32(0.3)))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_after_a_fork(self, three_threads):
        """A child of a process whose threads are running makes its own."""
        x = random_floats(400_000)
        expected = round_scaled(x, E4M3, 0.3)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            result = pool.apply_async(round_scaled, (x, E4M3, 0.3)).get(timeout=60)
        assert_same(result, expected)


class TestWithoutNumba:
    def test_same_results(self, monkeypatch):
        x = random_floats(600).reshape(3, 200)
        scale = np.array([0.1, 1, 7], np.float32)
        expected = round_scaled(x, E4M3, scale), quantization_error(x, E4M3, scale[:, None])
        monkeypatch.setattr(rounding, "HAVE_KERNELS", False)
        assert_same(round_scaled(x, E4M3, scale), expected[0])
        np.testing.assert_allclose(quantization_error(x, E4M3, scale[:, None]), expected[1], rtol=1e-12)
        assert_same(round_scaled(np.float32(3.3), E4M3), np.asarray(np.float32(3.25)))

    @pytest.mark.parametrize(
        "disable",
        ["import sys; sys.modules['numba'] = None", "import os; os.environ['NUMBA_DISABLE_JIT'] = '1'"],
    )
    def test_missing_or_disabled(self, disable):
        code = f"{disable}\nfrom quantizers import rounding; print(rounding.HAVE_KERNELS)"
        assert self.output_of(code) == "False\n"

    def test_nowhere_to_cache(self):
        """A read-only install and home: numba then finds no place ("locator") for its cache."""
        code = (
            "from numba.core import caching; caching.CacheImpl._locator_classes = []\n"
            "from quantizers import parse_format, rounding\n"
            "print(rounding.HAVE_KERNELS, rounding.round_scaled([3.3], parse_format('e4m3')))"
        )
        assert self.output_of(code) == "True [3.25]\n"

    @staticmethod
    def output_of(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
