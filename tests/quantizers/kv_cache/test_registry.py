"""Codecs by name."""

from __future__ import annotations

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.formats import common_formats
from quantizers.kv_cache.layer_schemes import LAYER_SCHEMES
from quantizers.kv_cache.merge_scheme import MergedLayers
from quantizers.kv_cache.registry import (
    SCHEMES,
    describe_cache_scheme,
    parse_cache_scheme,
    parse_layer_scheme,
)
from tests.quantizers.kv_cache.small_calibration import SCHEMES as SMALL_SCHEMES
from tests.quantizers.kv_cache.small_calibration import random_calibration

CALIBRATION = random_calibration()
FORMATS = ", ".join(fmt.name for fmt in common_formats())


@pytest.mark.parametrize("name", SCHEMES)
def test_every_name_is_written_as_it_is_read(name: str) -> None:
    scheme = parse_cache_scheme(f" {name} ( sinks=2 , residual=1)")
    bits = {"exact": "", "format": "", "minicache": "", "transform": "bits=3.25, "}.get(name, "bits=4, ")
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
            "format, oaken, rotated, transform, minicache",
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
        (
            "minicache(retention='proze')",
            "unknown retention of minicache 'proze' (did you mean 'prose'?); expected one of: prose, printed",
        ),
        (
            "minicache(convention='eq4')",
            "unknown convention of minicache 'eq4' (did you mean 'eq3'?); expected one of: eq3, alg2",
        ),
        ("minicache(t=1.5)", "t must be from 0 to 1, not 1.5"),
        ("minicache(step=0)", "step must be an integer from 1 to 1048576, not 0"),
        (
            "minicache(on='kivi(bits=4, group=32)')",
            "layers are merged on codecs of single tokens, since tokens are merged one by one, not of 32",
        ),
        (
            "minicache(on='minicache')",
            "unknown codec to merge layers on 'minicache'; expected one of: exact, kivi, per_token, format, "
            "oaken, rotated, transform",
        ),
        (
            "minicache(on='rotated(sinks=1)')",
            "minicache says which tokens are kept, and 'rotated(sinks=1)' below it cannot: move them out",
        ),
        ("kivi(bits=9)", "bits must be an integer from 2 to 8, not 9"),
        ("kivi(group=0)", "group must be an integer from 1 to 65536, not 0"),
        ("kivi(value_group=-1)", "value_group must be an integer from 0 to 65536, not -1"),
        ("per_token(bits=99)", "bits must be an integer from 2 to 8, not 99"),
        ("per_token(group=0)", "group must be an integer from 1 to 65536, not 0"),
        (
            "format(format='mxfp5')",
            f"unknown number format 'mxfp5' (did you mean 'mxfp4'?); expected one of: {FORMATS}",
        ),
        ("format(format='mxfp4', group=16)", "blocks of mxfp4 have 32 elements, not 16"),
        ("format(group=0)", "group must be an integer from 1 to 65536, not 0"),
        ("oaken(bits=1)", "bits must be an integer from 2 to 8, not 1"),
        ("oaken(outlier_bits=3)", "outlier_bits must be an integer from 4 to 8, not 3"),
        ("oaken(outer=nan)", "oaken: outer must be a finite number, not nan"),
        (
            "oaken(outer=0.7, inner=0.6)",
            "the fractions of outer and inner elements must be from 0 and at most 1 together, not 0.7 and 0.6",
        ),
        (
            "oaken(inner=-0.1)",
            "the fractions of outer and inner elements must be from 0 and at most 1 together, not 0.04 and -0.1",
        ),
        ("rotated(bits=nan)", "rotated: bits must be a finite number, not nan"),
        ("rotated(bits=inf)", "rotated: bits must be a finite number, not inf"),
        ("rotated(bits=3.5)", "codes that are all alike have a whole number of bits, not 3.5"),
        ("rotated(bits=0)", "bits must be from 1 to 6, not 0"),
        ("rotated(bits=7)", "bits must be from 1 to 6, not 7"),
        ("rotated(bits=99, allocated=true)", "bits must be from 0 to 16, not 99"),
        ("rotated(bits=1, lowest=2, allocated=true)", "bits must be from 2 to 16, not 1"),
        ("rotated(scale_bits=3)", "scale_bits must be an integer from 5 to 16, not 3"),
        ("rotated(seed=-1)", "seed must be an integer from 0 to 4294967295, not -1"),
        ("rotated(lowest=-1)", "lowest must be an integer from 0 to 6, not -1"),
        ("rotated(highest=0)", "highest must be an integer from 1 to 6, not 0"),
        (
            "rotated(bits=3, lowest=4, highest=2, allocated=true)",
            "lowest must be at most highest, not 4 with a highest of 2",
        ),
        ("rotated(allocated=true, tempering=nan)", "rotated: tempering must be a finite number, not nan"),
        ("rotated(allocated=true, tempering=1e9)", "tempering must be from 0 to 1, not 1000000000.0"),
        ("transform(bits=-3)", "bits must be from 0 to 8, not -3"),
        ("transform(bits=9)", "bits must be from 0 to 8, not 9"),
        ("transform(entry_bits=3)", "entry_bits must be an integer from 4 to 12, not 3"),
        ("transform(tempering=1.25)", "tempering must be from 0 to 1, not 1.25"),
        ("transform(floor=-0.5)", "floor must be from 0 to 1000000, not -0.5"),
        (f"transform(floor=1{400 * '0'})", f"transform: floor must be a finite number, not 1{400 * '0'}"),
        ("minicache(gamma=inf)", "minicache: gamma must be a finite number, not inf"),
        (
            "minicache(on='rotated(bits=4.5)')",
            "codes that are all alike have a whole number of bits, not 4.5",
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
        (
            "per_token(group=5)",
            "groups of 5 do not divide the 32 channels of a token; the nearest that do have 4",
        ),
        (
            "format(group=24)",
            "groups of 24 do not divide the 32 channels of a token; the nearest that do have 16",
        ),
        (
            "rotated(bits=6.5, allocated=true)",
            "codes of 0 to 5 bits, with what is stored beside them and in whole words of 32 bits, take 1 to 6 "
            "bits an element, not 6.5",
        ),
        (
            "rotated(bits=0.13, allocated=true)",
            "codes of 0 to 5 bits, with what is stored beside them and in whole words of 32 bits, take 1 to 6 "
            "bits an element, not 0.13",
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
    # A token's keys and its values fill whole words of 32 bits.
    assert allocated.bits_per_element == 4
    assert [stream.codec.unit_bits for streams in allocated.layers for stream in streams] == [96] * 4
    codec = allocated.layers[0][0].codec
    x = odd.samples[0, :, None, :24].astype(np.int64)
    error = np.square(codec.decode(codec.encode(x)) - x).mean()
    assert error < 0.06 * x.var(axis=0).mean()


@pytest.mark.parametrize(
    ("text", "layers", "message"),
    [
        (
            "minicache(pairs=8)",
            30,
            "minicache: a model of 30 layers has 7 pairs from layer 15 on, not 8",
        ),
        ("minicache(first=29)", 30, "minicache: a model of 30 layers has 0 pairs from layer 29 on, not 1"),
        ("minicache", 1, "minicache: a model of 1 layers has 0 pairs from layer 0 on, not 1"),
        (
            "minicache(prefill=511)",
            30,
            "a prefill of 1 to 510 tokens leaves some of a window of 512 to merge and some to predict, "
            "not one of 511",
        ),
        (
            "minicache(sinks=500, residual=10)",
            30,
            "a window of 512 tokens is too short for a prefill that leaves some to merge beside 510 that stay "
            "exact, and some to predict: expected at least 513",
        ),
        (
            "minicache(prefill=20, sinks=4, residual=16)",
            30,
            "a prefill of 21 to 510 tokens leaves some of a window of 512 to merge and some to predict, "
            "not one of 20",
        ),
    ],
)
def test_what_cannot_be_run_is_known_without_a_calibration(text: str, layers: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cache_scheme(text).check_run(layers=layers, length=512)
    assert str(caught.value) == message


def test_a_whole_window_is_checked_without_a_calibration() -> None:
    scheme = parse_cache_scheme("minicache(sinks=40, residual=10)")
    scheme.check_run(layers=30, length=41, whole_window=True)
    with pytest.raises(UsageError) as caught:
        scheme.check_run(layers=30, length=32, whole_window=True)
    assert str(caught.value) == "a window of 32 tokens, of which 40 stay exact, has none to merge"


def test_pairs_begin_in_the_middle() -> None:
    scheme = parse_cache_scheme("minicache")
    assert isinstance(scheme, MergedLayers)
    assert scheme.pairs_of(30) == [(lower, lower + 1) for lower in range(15, 29, 2)]
    assert scheme.pairs_of(5) == [(2, 3)]
    scheme = parse_cache_scheme("minicache(first=14, pairs=2)")
    assert isinstance(scheme, MergedLayers)
    assert scheme.pairs_of(30) == [(14, 15), (16, 17)]
    scheme.check_run(layers=30, length=512)


def test_every_codec_of_layers_is_tried() -> None:
    assert {text.partition("(")[0] for text in SMALL_SCHEMES} == set(LAYER_SCHEMES)


@pytest.mark.parametrize("text", SMALL_SCHEMES)
def test_units_are_known_without_a_calibration(text: str) -> None:
    scheme = parse_layer_scheme(text, who="this test")
    codecs = [codec for layer in scheme.plan(CALIBRATION).codecs for codec in layer]
    assert scheme.unit == max(codec.tokens for codec in codecs)


def test_codecs_of_each_layer_by_itself() -> None:
    with pytest.raises(UsageError) as caught:
        parse_layer_scheme("minicache(pairs=1)", who="this test")
    assert str(caught.value) == (
        "this test takes codecs that code each layer by itself, and minicache does not; expected one of: "
        "exact, kivi, per_token, format, oaken, rotated, transform"
    )


def test_description() -> None:
    assert describe_cache_scheme(SCHEMES["per_token"]) == {
        "name": "per_token",
        "what": "Keys and values per token in groups of channels.",
        "source": "arXiv 2402.02750, equation 1",
        "parameters": {"sinks": "0", "residual": "0", "means": "false", "bits": "4", "group": "64"},
    }


@pytest.mark.parametrize(
    "text", ["transform(bits=3.3)", "transform(bits=2.1, span='joint')", "rotated(bits=4.3, allocated=true)"]
)
def test_calibrated_codes_of_a_token_fill_whole_words(text: str) -> None:
    plan = parse_cache_scheme(text).plan(CALIBRATION)
    sizes = [stream.codec.unit_bits for streams in plan.layers for stream in streams]
    assert all(size % 32 == 0 for size in sizes)
    wanted = float(text.partition("bits=")[2].partition(",")[0].rstrip(")"))
    elements = 2 * CALIBRATION.channels * CALIBRATION.layers
    assert sum(sizes) == int(wanted * elements / 32) * 32


def test_limits_of_bits_are_those_of_whole_words() -> None:
    """A head of 24 channels in vectors of 32: keys and values each of 168 bits, 5 words of 32, at most."""
    one = random_calibration(heads=1, head_dim=24)
    message = (
        "codes of 1 to 5 bits, with what is stored beside them and in whole words of 32 bits, take 2.6667 to "
        "6.6666 bits an element, not "
    )
    for bits in (2.66, 7.5):
        with pytest.raises(UsageError) as caught:
            parse_cache_scheme(f"rotated(bits={bits}, allocated=true, lowest=1)").plan(one)
        assert str(caught.value) == f"{message}{bits}"
    # 2 layers: 8 words at least, 20 at most; what is said in four digits is not below the least.
    for bits, words in ((2.6667, 8), (6.6666, 19), (6.6667, 20)):
        plan = parse_cache_scheme(f"rotated(bits={bits}, allocated=true, lowest=1)").plan(one)
        assert sum(codec.unit_bits for codecs in plan.codecs for codec in codecs) == 32 * words


def test_codes_that_fill_no_whole_word() -> None:
    with pytest.raises(UsageError) as caught:
        parse_cache_scheme("rotated(bits=2, allocated=true, lowest=1, highest=1)").plan(
            random_calibration(heads=1, head_dim=16)
        )
    assert str(caught.value) == (
        "codes of 1 to 1 bits, with what is stored beside them, take 24 to 24 bits of a token, between which "
        "there is no whole number of words of 32 bits"
    )


def test_decimals_a_hair_below_a_whole_number_of_words() -> None:
    """29 words: 2.32 * 400 / 32 is 28.999999999999996 in floats."""
    plan = parse_cache_scheme("transform(bits=2.32)").plan(random_calibration(layers=5, heads=5))
    assert plan.bits_per_element == 2.32


def test_no_bits_for_any_code() -> None:
    """Scales alone: what is read are the means."""
    plan = parse_cache_scheme("rotated(bits=1, allocated=true)").plan(CALIBRATION)
    codec = plan.layers[0][0].codec
    x = CALIBRATION.samples[0, :5, None, :32].astype(np.int64)
    read = codec.decode(codec.encode(x))
    assert np.array_equal(read[:, 0], np.tile(np.rint(CALIBRATION.means[0, :32]), (5, 1)))
