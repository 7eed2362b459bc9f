"""Codecs by name."""

from __future__ import annotations

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.registry import SCHEMES, describe_cache_scheme, parse_cache_scheme
from tests.quantizers.kv_cache.small_calibration import random_calibration

CALIBRATION = random_calibration()


@pytest.mark.parametrize("name", SCHEMES)
def test_every_name_is_written_as_it_is_read(name: str) -> None:
    scheme = parse_cache_scheme(f" {name} ( sinks=2 , residual=1)")
    bits = {"exact": "", "format": "", "transform": "bits=3.25, "}.get(name, "bits=4, ")
    assert str(scheme) == f"{name}({bits}sinks=2, residual=1)"
    assert parse_cache_scheme(str(scheme)) == scheme


def test_parameters_are_toml() -> None:
    scheme = parse_cache_scheme("rotated(bits=3.25, allocated=true, means=false)")
    assert (scheme.bits, scheme.allocated, scheme.means) == (3.25, True, False)
    assert str(scheme) == "rotated(bits=3.25, allocated=true, means=false)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kivy(bits=4)",
            "unknown cache codec 'kivy' (did you mean 'kivi'?); expected one of: exact, kivi, per_token, "
            "format, oaken, rotated, transform",
        ),
        (
            "kivi(bit=4)",
            "unknown parameter of kivi 'bit' (did you mean 'bits'?); expected one of: sinks, residual, "
            "means, bits, group, value_group",
        ),
        ("kivi(bits=4.0)", "kivi: bits must be of type int, not 4.0"),
        ("exact(sinks=-1)", "sinks must be an integer from 0 to 65536, not -1"),
        (
            "transform(span='all')",
            "unknown span of transform 'all'; expected one of: head, side, joint",
        ),
        ("kivi 4", "a cache codec is written name or name(parameter=value, ...), not 'kivi 4'"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cache_scheme(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kivi(bits=9)", "bits must be an integer from 2 to 8, not 9"),
        (
            "per_token(group=5)",
            "groups of 5 do not divide the 32 channels of a token; the nearest that do have 4",
        ),
        ("rotated(bits=3.5)", "codes that are all alike have a whole number of bits, not 3.5"),
        ("transform(bits=9)", "total must be an integer from 0 to 1024, not 1152"),
        ("format(format='mxfp4', group=16)", "blocks of mxfp4 have 32 elements, not 16"),
        (
            "oaken(outer=0.7, inner=0.6)",
            "the fractions of outer and inner elements must be from 0 and at most 1 together, not 0.7 and 0.6",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_said(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cache_scheme(text).plan(CALIBRATION)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("exact", 16),
        ("kivi(bits=4, group=32)", 5),
        ("kivi(bits=4, group=128, value_group=32)", 4.625),
        ("per_token(bits=2, group=16)", 4),
        ("format(format='mxfp4')", 4.25),
        ("format(format='e3m2', group=32, scale='power')", 6.25),
        ("rotated(bits=4)", 5),
        ("rotated(bits=3.25, allocated=true)", 3.25),
        ("transform(bits=2.5)", 2.5),
        # 32 channels: 5 bits of index, 1 of group and 1 of code for each outlier; 6 of count, 96 of ranges.
        ("oaken(outer=0.1, inner=0.15)", 4 + 0.25 * 7 + (6 + 96) / 32),
    ],
)
def test_bits_per_element(text: str, bits: float) -> None:
    assert parse_cache_scheme(text).plan(CALIBRATION).bits_per_element == pytest.approx(bits, abs=1e-12)


def test_heads_of_no_power_of_two_are_filled_up_and_counted() -> None:
    odd = random_calibration(heads=2, head_dim=12)
    alike = parse_cache_scheme("rotated(bits=3)").plan(odd)
    assert alike.bits_per_element == (16 * 3 + 8) / 12
    allocated = parse_cache_scheme("rotated(bits=4.25, allocated=true)").plan(odd)
    assert allocated.bits_per_element == 4.25
    codec = allocated.layers[0][0].codec
    x = odd.samples[0, :, None, :24].astype(np.int64)
    error = np.square(codec.decode(codec.encode(x)) - x).mean()
    assert error < 0.06 * x.var(axis=0).mean()


def test_description() -> None:
    assert describe_cache_scheme(SCHEMES["per_token"]) == {
        "name": "per_token",
        "what": "Keys and values per token in groups of channels.",
        "source": "arXiv 2402.02750, equation 1",
        "parameters": {"sinks": "0", "residual": "0", "means": "false", "bits": "4", "group": "64"},
    }
