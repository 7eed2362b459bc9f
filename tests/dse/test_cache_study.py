from pathlib import Path

import pytest

from dse.any_study import load_study
from dse.cache_study import CacheStudy
from dse.caches import CacheText, measure
from dse.design import CachePoint
from dse.sweep import load_run, run
from quantizers.errors import UsageError
from reports import write_report
from tests.dse.cache_codecs import cache_codecs
from tests.dse.workloads_language.tiny_folder import tiny_model_folder

CODECS = cache_codecs()
FRONT = {"x": "bits_per_element_seen", "y": "perplexity"}


def document(**changes):
    language = {"model": "hf:nowhere", "windows": 2, "length": 32, "calibration_windows": 2}
    return {"name": "cache", "language": language, "codecs": CODECS, "fronts": [FRONT], **changes}


def test_points():
    study = CacheStudy.parse(document())
    assert [(point.family, point.codec, point.evaluation) for point in study.points()] == [
        ("KIVI", "kivi(bits=2, group=8)", "streaming"),
        ("KIVI", "kivi(bits=2, group=8)", "window"),
        ("KIVI", "kivi(bits=4, group=8)", "streaming"),
        ("KIVI", "kivi(bits=4, group=8)", "window"),
        ("transform", "transform(bits=3.25, sinks=1)", "streaming"),
    ]
    assert study.points()[0] == CachePoint(
        workload="hf:nowhere",
        design="KIVI",
        codec="kivi(bits=2, group=8)",
        evaluation="streaming",
        windows=2,
        length=32,
        skip=0,
        calibration_windows=2,
        rope=False,
        part="xc7z020",
    )


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ({"codec": "kivy"}, "unknown cache codec 'kivy' (did you mean 'kivi'?)"),
        (
            {"codec": "kivi", "parameters": {"bit": 2}},
            "unknown parameter of kivi 'bit' (did you mean 'bits'?)",
        ),
        ({"codec": "kivi", "evaluation": "stream"}, "unknown evaluation 'stream'"),
        (
            {"codec": "kivi(bits=2)"},
            "a codec's parameters go into a table of their own, not into its name: 'kivi(bits=2)'",
        ),
    ],
)
def test_wrong_codecs(codec, message):
    with pytest.raises(UsageError) as caught:
        CacheStudy.parse(document(codecs=[{"name": "a", **codec}]))
    assert message in str(caught.value)


def test_a_codec_twice():
    with pytest.raises(UsageError) as caught:
        CacheStudy.parse(document(codecs=[CODECS[1], CODECS[1]]))
    assert str(caught.value) == "study: study: codec 'transform' is listed twice"


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(UsageError) as caught:
        run(CacheStudy.parse(document()), tmp_path / "run")
    assert "nowhere" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pairs": 2}, "minicache: a model of 2 layers has 0 pairs from layer 1 on, not 2"),
        (
            {"first": 0, "prefill": 40},
            "a prefill of 1 to 30 tokens leaves some of a window of 32 to merge and some to predict, "
            "not one of 40",
        ),
    ],
)
def test_layers_and_windows_that_do_not_fit(tmp_path, parameters, message):
    model, text = tiny_model_folder(tmp_path)
    language = {"model": f"hf:{model}", "text": text, "windows": 2, "length": 32, "calibration_windows": 2}
    codec = {"name": "merged", "codec": "minicache", "parameters": parameters}
    with pytest.raises(UsageError) as caught:
        run(CacheStudy.parse(document(language=language, codecs=[codec])), tmp_path / "run")
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


def test_merged_layers(tmp_path):
    """Measured on the predictions after the prefill; the exact cache too."""
    model, text = tiny_model_folder(tmp_path, head_dim=8)
    source = CacheText.of(f"hf:{model}", data=None, text=text, windows=2, length=32, calibration_windows=2)
    codec = "minicache(first=0, prefill=12, step=5, gamma=0)"
    found = measure(source, codec)
    assert [(each.start, each.stop, each.counts) for each in found.passes[:3]] == [
        (0, 12, False),
        (12, 17, True),
        (17, 22, True),
    ]
    assert found.comparison.exact.predictions == found.comparison.changed.predictions == 2 * 19
    # A direction of 8 elements and two magnitudes of 17 bits for two layers.
    assert found.bits.per_element == (8 * 16 + 2 * 17) / 16
    whole = measure(source, codec, whole_window=True)
    assert whole.comparison.changed.predictions == 2 * 31
    assert whole.comparison.mean_kl > 0
    # Nothing is merged where all tokens that are there are kept.
    kept = measure(source, "minicache(first=0, prefill=12, residual=11, sinks=0, step=1, gamma=1)")
    assert kept.comparison.mean_kl < found.comparison.mean_kl


def test_merged_layers_in_a_sweep(tmp_path):
    model, text = tiny_model_folder(tmp_path, head_dim=16)
    language = {"model": f"hf:{model}", "text": text, "windows": 2, "length": 32, "calibration_windows": 2}
    merged = {"name": "merged", "codec": "minicache", "parameters": {"first": 0}}
    on = {"name": "on formats", "codec": "minicache", "parameters": {"first": 0, "on": "format(group=16)"}}
    codecs = [{**merged, "evaluation": ["streaming", "window"]}, on]
    result = run(CacheStudy.parse(document(language=language, codecs=codecs)), tmp_path / "run")
    assert [error.error for error in result.failed] == []
    streaming, window, formats = (row for _, row in result.table().iterrows())
    assert (streaming["prefill"], streaming["step"]) == (16, 16)
    assert window["passes"] == "a prefill of all 32 tokens, then all of them with its cache"
    assert streaming["bits_per_element_provenance"] == "measured"
    assert 8 < streaming["bits_per_element"] < streaming["bits_per_element_seen"] < 16
    assert streaming["luts"] > 1000
    assert streaming["dsps"] > 0
    assert "merge_keys" in streaming["engine"]
    assert "luts" not in formats.dropna()
    assert formats["engine"].startswith("InFormat has no hardware here")


def test_a_sweep(run_of_caches):
    result = run_of_caches
    assert [error.error for error in result.failed] == []
    table = result.table()
    kivi = table[table["design"] == "KIVI"]
    # Codes, and of each group of 8 a minimum and a span of 16 bits.
    assert list(kivi["bits_per_element"]) == [6, 6, 8, 8]
    # A stream has open groups; a whole window of 32 tokens has none.
    streamed = kivi["evaluation"] == "streaming"
    assert ((kivi["bits_per_element_seen"] > kivi["bits_per_element"]) == streamed).all()
    assert (
        table["perplexity"] / table["float_perplexity"] - 1 - table["perplexity_increase"]
    ).abs().max() < 1e-6
    assert (table["perplexity_low"] < table["perplexity"]).all()
    assert kivi["luts"].notna().all()
    again = run(result.study, result.folder)
    assert list(again.table()["finished_at"]) == list(table["finished_at"])
    assert load_run(result.folder).study == result.study
    page = write_report(again).read_text()
    assert "transform(bits=3.25, sinks=1)" in page


def test_the_study_that_ships():
    study = load_study(Path(__file__).parents[2] / "sweeps" / "kv_cache.toml")
    assert isinstance(study, CacheStudy)
    designs = {"KIVI", "rotated", "transform of a head", "merged layers, seven pairs on rotated"}
    assert {point.design for point in study.points()} >= designs
