import numpy as np
import pytest

from dse import cache_verification
from dse.cache_engines import SimulatedCodec
from dse.cache_verification import verify_cache
from dse.caches import CacheText
from quantizers.errors import UsageError
from tests.dse.workloads_language.tiny_folder import tiny_model_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model with heads of 64 channels."""
    model, text = tiny_model_folder(tmp_path_factory.mktemp("model"), head_dim=64)
    sizes = {"windows": 1, "length": 40, "calibration_windows": 2}
    return CacheText.of(f"hf:{model}", data=None, text=text, **sizes)


@pytest.mark.parametrize(
    ("codec", "tokens"),
    [
        ("kivi(bits=3, group=16)", 40 + 32),
        ("per_token(bits=4, group=64, sinks=2)", 2 * 38),
        ("per_token(bits=3, group=4)", 2 * 40),
        ("rotated(bits=4, sinks=1)", 2 * 39),
        ("rotated(bits=3, means=false)", 2 * 40),
        ("rotated(bits=4.25, allocated=true, lowest=3)", 2 * 40),
        ("transform(bits=3.25)", 2 * 40),
        ("transform(bits=3.25, span='side', means=false)", 2 * 40),
    ],
)
def test_hardware_gives_the_keys_and_values_of_the_software(source, codec, tokens):
    """Tokens of keys and of values that are coded: not those of the last, open group."""
    found = verify_cache(source, codec)
    assert found.checked == 2 * 2 * 64 * tokens
    assert found.mismatches == 0
    assert found.perplexity == found.software_perplexity != found.exact_perplexity
    assert found.as_json()["layers"] == 2


def test_a_wrong_element_is_a_mismatch(source, monkeypatch):
    class Wrong(SimulatedCodec):
        def run(self, units, *, seed=0):
            found = super().run(units, seed=seed)
            found.units[0, 0, 3] ^= 1
            return found

    monkeypatch.setattr(cache_verification, "SimulatedCodec", Wrong)
    found = verify_cache(source, "per_token(bits=4, group=64)")
    assert found.mismatches == 2
    assert "perplexity" not in found.as_json()
    assert np.isfinite(found.software_perplexity)


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        ("oaken", "SplitOutliers has no hardware here"),
        ("exact", "Exact has no hardware here"),
    ],
)
def test_codecs_without_hardware(source, codec, reason):
    with pytest.raises(UsageError) as caught:
        verify_cache(source, codec)
    assert str(caught.value) == f"{reason}; there is some of kivi, per_token, rotated and transform"


def test_merged_layers_are_refused_before_the_model_runs():
    with pytest.raises(UsageError) as caught:
        verify_cache(CacheText.of("hf:nowhere", data=None, text=None, windows=1, length=40), "minicache")
    assert str(caught.value) == (
        "a check of writers against readers takes codecs that code each layer by itself, and minicache does "
        "not; expected one of: exact, kivi, per_token, format, oaken, rotated, transform"
    )
