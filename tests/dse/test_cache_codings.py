from __future__ import annotations

import numpy as np
import pytest

from costmodel.geometries import Decoder, find_geometry
from dse.cache_codings import codings
from dse.estimates import USUAL_CACHES
from quantizers.errors import UsageError
from quantizers.kv_cache.cache import Kept
from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.layer_schemes import LAYER_SCHEMES
from quantizers.kv_cache.registry import parse_cache_scheme

SMALL = Decoder(
    name="small", layers=2, hidden=24, ffn=48, source="this test", query_heads=4, kv_heads=2, head_dim=12,
    vocabulary=30,
)  # fmt: skip


def some_calibration() -> Calibration:
    """Statistics of random keys and values of two layers."""
    random = np.random.default_rng(5)
    layers, both = SMALL.layers, 2 * SMALL.kv_heads * SMALL.head_dim
    samples = random.normal(0, 900, (layers, 400, both)).round().astype(np.int16)
    gradients = random.normal(size=(layers, 400, both))
    return Calibration(
        text="this test",
        heads=SMALL.kv_heads,
        head_dim=SMALL.head_dim,
        rope=False,
        fractions=np.full((layers, 2), 8),
        means=samples.mean(axis=1),
        covariances=np.stack([np.cov(rows.T) for rows in samples]),
        importances=np.einsum("lti,ltj->lij", gradients, gradients) / 400,
        samples=samples,
    )


@pytest.mark.parametrize(
    "name",
    [
        "exact", "kivi", "kivi(bits=2, group=16, value_group=8)", "per_token(bits=3, group=12, means=true)",
        "format(group=12)", "format(format='int4', group=24, scale='power')", "oaken", "rotated",
        "rotated(bits=3, scale_bits=10)", "rotated(bits=4.5, allocated=true)", "transform(bits=3.5)",
        "transform(bits=3.5, span='joint')",
    ],
)  # fmt: skip
def test_the_bits_are_those_of_the_codecs_fitted_to_a_text(name: str) -> None:
    (coding,) = codings(SMALL, [name])
    plan = parse_cache_scheme(name).plan(some_calibration())
    # Bits that are shared out fill words of 32 bits: less than one of them is left over in all layers.
    is_shared_out = "allocated" in name or "transform" in name
    left_over = 32 / (SMALL.layers * 2 * SMALL.kv_heads * SMALL.head_dim) if is_shared_out else 1e-9
    assert -1e-9 < coding.bits - plan.bits_per_element < left_over
    assert coding.keys.unit == plan.layers[0][0].codec.tokens
    assert coding.values.unit == plan.layers[0][-1].codec.tokens
    assert coding.name == name


def test_every_codec_can_be_asked_for() -> None:
    names = {name.partition("(")[0] for name in USUAL_CACHES} | {"format", "oaken"}
    assert names == set(LAYER_SCHEMES)


def test_the_usual_ones_fit_the_published_models() -> None:
    usual = codings(find_geometry("MiniCPM4-8B"), USUAL_CACHES)
    assert [coding.bits for coding in usual] == [16, 5, 3, 4.5, 4 + 8 / 128, 3 + 8 / 128, 3.25]
    # A head of 100 is filled up to 128 before it is rotated.
    (padded,) = codings(find_geometry("BitNet-3B"), ["rotated(bits=4)"])
    assert padded.bits == (4 * 128 + 8) / 100
    for model in ("MiniCPM-1.2B", "MiniCPM-2.4B", "Llama-2-7B", "Llama-3-8B", "Phi-2", "SmolLM2-135M"):
        assert len(codings(find_geometry(model), USUAL_CACHES)) == len(USUAL_CACHES)


def test_what_is_kept_and_where_the_bits_come_from() -> None:
    kivi, shared, oaken = codings(SMALL, ["kivi(residual=128, sinks=1)", "transform", "oaken(outer=0.02)"])
    assert kivi.kept == Kept(sinks=1, residual=128)
    assert kivi.keys.unit == 32
    assert kivi.keys.bits.source == "the codec's own count for 2 KV heads of 12"
    assert shared.keys.bits.source == ("the codec's parameter: so many are shared out among the coefficients")
    assert oaken.keys.bits.source.endswith("; a mean, with its fraction of outliers")


def test_a_codec_is_listed_once() -> None:
    assert [coding.name for coding in codings(SMALL, ["exact", " exact", "oaken"])] == ["exact", "oaken"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "kivy",
            "unknown cache codec 'kivy' (did you mean 'kivi'?); expected one of: exact, kivi, per_token, "
            "format, oaken, rotated, transform, minicache",
        ),
        (
            "per_token(group=7)",
            "groups of 7 do not divide the 24 channels of a token; the nearest that do have 6",
        ),
        (
            "minicache(pairs=1)",
            "an estimate without a text takes codecs that code each layer by itself, and minicache does not; "
            "expected one of: exact, kivi, per_token, format, oaken, rotated, transform",
        ),
        ("rotated(bits=3.5)", "codes that are all alike have a whole number of bits, not 3.5"),
    ],
)
def test_what_does_not_fit_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        codings(SMALL, [name])
    assert str(caught.value) == message
