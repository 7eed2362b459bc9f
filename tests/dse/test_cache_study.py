from pathlib import Path

import pytest

from dse.any_study import load_study
from dse.cache_study import CacheStudy
from dse.design import CachePoint
from dse.sweep import load_run, run
from quantizers.errors import UsageError
from reports import write_report
from tests.dse.cache_codecs import cache_codecs

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


def test_a_sweep(run_of_caches):
    result = run_of_caches
    assert [error.error for error in result.failed] == []
    table = result.table()
    kivi = table[table["design"] == "KIVI"]
    # Codes, and of each group of 8 a minimum and a span of 16 bits.
    assert list(kivi["bits_per_element"]) == [6, 6, 8, 8]
    assert (kivi["bits_per_element_seen"] > kivi["bits_per_element"]).all()
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
    assert {point.design for point in study.points()} >= {"KIVI", "rotated", "transform of a head"}
