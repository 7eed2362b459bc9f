from __future__ import annotations

import json
import sys

import pytest

from costmodel.token_rate import STANDARD
from dse import cli
from dse.estimates import estimate
from quantizers.errors import UsageError


@pytest.fixture
def dse(monkeypatch, capfd):
    """Run the command line in this process; gives (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dse", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


def test_the_standard_list() -> None:
    found = estimate(None, None, part="xc7z020")
    assert [(row.rate.model, row.rate.weights) for row in found] == list(STANDARD)
    assert {row.activations for row in found} == {"int8"}
    by_ternary = estimate(None, "ternary", part="xc7z020")
    assert [row.rate.model for row in by_ternary] == list(dict.fromkeys(model for model, _ in STANDARD))


def test_a_model_has_its_usual_weights_unless_others_are_asked_for() -> None:
    assert [row.rate.weights for row in estimate("Llama-2-7B", None, part="xc7z020")] == ["int2", "int4"]
    (row,) = estimate("Llama-2-7B", "ternary", part="xc7z020")
    assert row.rate.weights == "ternary"


def test_contexts_are_rows() -> None:
    rows = estimate("BitNet-3B", None, part="xc7z020", contexts="1024,8192, 131072")
    assert [row.rate.context for row in rows] == [1024, 8192, 131072]
    # 26 layers, 32 heads of 100, keys and values, a byte each.
    assert [row.rate.cache_bytes for row in rows] == [n * 166_400 for n in (1024, 8192, 131072)]
    assert [row.rate.fits for row in rows] == [True, False, False]
    assert rows[0].rate.inputs["context"].source == "given"
    (usual,) = estimate("BitNet-3B", None, part="xc7z020")
    assert usual.rate.inputs["context"].source == "assumption"


def test_given_inputs_are_marked() -> None:
    settings = ["clock=200e6", "bandwidth=1e9", "cache_bits=4.25", "stored_bits=1.6", "head_bits=8"]
    (row,) = estimate("BitNet-3B", None, part="xc7z020", settings=settings)
    inputs = row.rate.inputs
    assert {name for name, value in inputs.items() if value.source == "given"} == {
        "clock", "bandwidth", "cache_bits", "stored_bits", "head_bits",
    }  # fmt: skip
    assert (inputs["clock"].value, inputs["clock"].unit) == (200e6, "Hz")
    # Eight bits are six ternary digits.
    weights = (3_221_504_000 * 1.6 + 6 * 102_406_400 * 5 / 3) / 8
    assert row.rate.memory_bound == pytest.approx(0.8e9 / (weights + 1024 * 166_400 * 4.25 / 8))
    (usual,) = estimate("BitNet-3B", None, part="xc7z020")
    assert "measured: nextpnr, 3 lanes on a LFE5U-25F-6, not the part named; mean of 5 seeds" in (
        usual.rate.inputs["clock"].source
    )


def test_a_part_without_a_known_memory_can_be_given_one() -> None:
    memory = ["bandwidth=2e9", "capacity=2e9"]
    (row,) = estimate("BitNet-3B", None, part="xc7a100t", settings=memory)
    assert row.rate.inputs["efficiency"].source == "assumption: long bursts"
    assert row.rate.fits


def test_provenance_of_every_figure() -> None:
    (row,) = estimate("BitNet-3B", None, part="xc7z020")
    document = row.as_json()
    provenance = {name: figure["provenance"] for name, figure in document["metrics"].items()}
    assert provenance.pop("luts") == provenance.pop("lutrams") == "calibrated"
    assert set(provenance.values()) == {"analytic"}
    assert document["metrics"]["tokens_per_second"]["value"] == row.rate.tokens_per_second
    assert document["tools"]["placed_on"] == "LFE5U-25F-6"
    assert set(document["inputs"]["clock"]) == {"value", "unit", "source"}


def test_more_engine_than_memory_leaves_no_number_of_lanes_that_is_enough() -> None:
    fast = ["bandwidth=1e12", "capacity=1e12"]
    (row,) = estimate("BitNet-3B", None, part="xc7z020", settings=fast)
    assert row.rate.limit == "compute"
    assert "enough_lanes" not in row.metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": "BitNet"},
            "unknown model 'BitNet' (did you mean 'BitNet-3B'?); expected one of: MiniCPM-1.2B, MiniCPM-2.4B, "
            "MiniCPM3-4B, MiniCPM4-8B, MiniCPM4-0.5B, Llama-2-7B, Llama-3-8B, Phi-2, BitNet-3B, SmolLM2-135M, "
            "SigLIP-So400m/14, EVA-CLIP-g/14",
        ),
        (
            {"model": "EVA-CLIP-g/14"},
            "EVA-CLIP-g/14 gives no tokens; expected one of: MiniCPM-1.2B, MiniCPM-2.4B, MiniCPM3-4B, "
            "MiniCPM4-8B, MiniCPM4-0.5B, Llama-2-7B, Llama-3-8B, Phi-2, BitNet-3B, SmolLM2-135M",
        ),
        ({"model": "Phi-2"}, "say which weights Phi-2 has: --weights ternary, int2, int3 or int4"),
        (
            {"model": "Phi-2", "weights": "int8"},
            "weights must be integers of up to 4 bits or ternary, not int8",
        ),
        (
            {"settings": ["clok=1"]},
            "unknown input 'clok' (did you mean 'clock'?); expected one of: clock, bandwidth, efficiency, "
            "capacity, stored_bits, lut_share, lutram_share, head_bits, context, cache_bits, groups, group, "
            "planes, table, folds",
        ),
        ({"settings": ["clock=fast"]}, "clock must be a number of Hz, not 'fast'"),
        ({"settings": ["clock=true"]}, "clock must be a number of Hz, not True"),
        ({"settings": ["context=1.5"]}, "context must be a whole number, not 1.5"),
        ({"settings": ["clock=-1"]}, "an input must be positive and finite, not -1 Hz"),
        ({"contexts": "1k"}, "--context takes numbers of tokens, such as 1024,8192, not '1k'"),
        ({"contexts": "8,"}, "--context takes numbers of tokens, such as 1024,8192, not '8,'"),
        (
            {"contexts": "8", "settings": ["context=9"]},
            "the context is given twice: --context 8 and --set context=9",
        ),
        (
            {"part": "xc7z02"},
            "unknown part 'xc7z02' (did you mean 'xc7z020'?); expected one of: xc7z010, xc7z020, xc7z045, "
            "xc7a35t, xc7a100t, xc7a200t, xc7k325t",
        ),
        (
            {"part": "xc7a35t", "settings": ["bandwidth=1e9"]},
            "unknown part with a known memory 'xc7a35t' (did you mean 'xc7k325t'?); expected one of: xc7z010, "
            "xc7z020, xc7z045, xc7k325t",
        ),
    ],
)
def test_wrong_questions_are_answered_before_any_work(arguments, message, monkeypatch) -> None:
    monkeypatch.setattr("dse.estimates.lookup_cost", lambda *_, **__: pytest.fail("work was started"))
    with pytest.raises(UsageError) as caught:
        estimate(**{"model": None, "weights": None, "part": "xc7z020", **arguments})
    assert str(caught.value) == message


def test_the_command_lists_the_usual_models(dse) -> None:
    code, out, err = dse("estimate")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["model", "weights", "context", "lanes"]
    assert [tuple(line.split()[:2]) for line in lines[1:8]] == list(STANDARD)
    assert {line.split()[-1] for line in lines[1:8]} == {"yes", "no"}


def test_the_command_lists_the_inputs_of_a_model(dse) -> None:
    code, out, _ = dse("estimate", "BitNet-3B", "--context", "1024,8192", "--set", "clock=150e6")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert rows["clock"].split() == ["clock", "150,000,000", "Hz", "given"]
    assert rows["context"].split() == ["context", "1024,", "8192", "tokens", "given"]
    assert "UG585" in rows["capacity"]


def test_the_command_as_json(dse) -> None:
    code, out, err = dse("estimate", "MiniCPM-1.2B", "--weights", "int4", "--part", "xc7k325t", "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["estimates"]
    assert (row["model"], row["weights"], row["activations"], row["part"]) == (
        "MiniCPM-1.2B", "int4", "int8", "xc7k325t",
    )  # fmt: skip
    assert row["metrics"]["tokens_per_second"]["provenance"] == "analytic"
    assert row["inputs"]["bandwidth"] == {
        "value": 12.8e9, "unit": "bytes/s", "source": "64-bit DDR3-1600 of the KC705 board, UG810",
    }  # fmt: skip


def test_an_error_as_json(dse) -> None:
    code, out, _ = dse("estimate", "--part", "xc7a35t", "--json")
    assert code == 2
    assert json.loads(out)["expected"][0] == "xc7k325t"
