"""Codecs by name."""

from __future__ import annotations

import numpy as np
import pytest

from quantizers.errors import UsageError
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
        (
            "transform(bits=9)",
            "codes of 0 to 8 bits, with what is stored beside them, take 0 to 8 bits an element, not 9",
        ),
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


def test_too_many_bits_for_codes_and_words() -> None:
    with pytest.raises(UsageError) as caught:
        parse_cache_scheme("rotated(bits=6.5, allocated=true)").plan(CALIBRATION)
    assert str(caught.value) == (
        "codes of 0 to 5 bits, with what is stored beside them, take 1 to 6 bits an element, not 6.5"
    )
