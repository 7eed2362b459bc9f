from __future__ import annotations

import json
import sys

import pytest

from costmodel.token_rate import STANDARD
from dse import cli
from dse.estimates import USUAL_CACHES, Caches, estimate
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


def test_caches_are_rows() -> None:
    rows = estimate("MiniCPM4-8B", None, part="xc7z020", caches=Caches())
    lengths = (1024, 8192, 32_768, 131_072)
    asked = [(n, name, blocks) for n in lengths for name in USUAL_CACHES for blocks in (False, True)]
    found = [(row.as_json()["context"], row.as_json()["cache"], row.as_json()["blocks"]) for row in rows]
    assert found == asked
    assert rows[0].inputs["context"].source == "assumption"
    by_choice = dict(zip(asked, rows, strict=True))

    def metric(name: str, *choice) -> float:
        return by_choice[choice].metrics[name].value

    # 32 layers, 2 KV heads of 128: 8192 keys and 8192 values a token.
    exact = (131_072, "exact")
    assert metric("stored_cache_bytes", *exact, False) == metric("cache_bytes", *exact, False) == 2**32
    assert metric("compressed_key_bytes", *exact, True) == 8191 * 8192 * 2
    assert metric("stored_cache_bytes", *exact, True) == 2**32 + 8191 * 8192 * 2
    assert metric("cache_bytes", *exact, True) == 96 * 64 * 32_768 + 8191 * 8192 * 2
    assert metric("read_tokens", *exact, True) == 6144
    kivi = (131_072, "kivi(bits=2, group=32)")
    assert metric("bits_per_element", *kivi, False) == 3
    assert metric("cache_bytes", *kivi, False) == 2**32 * 3 / 16
    short = (1024, "exact")
    assert metric("cache_bytes", *short, True) == metric("cache_bytes", *short, False)
    assert [by_choice[(n, "exact", True)].as_json()["dense"] for n in lengths] == [True, False, False, False]
    rates = [
        metric("tokens_per_second", *choice) for choice in ((*exact, False), (*kivi, False), (*kivi, True))
    ]
    assert rates == sorted(rates)


def test_figures_of_a_cache_hang_together() -> None:
    (row,) = estimate(
        "Llama-3-8B",
        "int4",
        part="xc7z020",
        contexts="32768",
        caches=Caches(["rotated(bits=3)"], blocks=False),
    )
    document = row.as_json()
    figures = {name: figure["value"] for name, figure in document["metrics"].items()}
    assert {figure["provenance"] for figure in document["metrics"].values()} == {"analytic", "calibrated"}
    rate = figures["tokens_per_second"]
    assert rate == min(figures["compute_tokens_per_second"], figures["memory_tokens_per_second"])
    assert figures["bytes_per_second"] == pytest.approx(rate * figures["bytes_per_token"])
    elements = 32_768 * 2 * 32 * 8 * 128
    assert figures["reader_elements_per_second"] == pytest.approx(rate * elements)
    clock = document["inputs"]["clock"]["value"]
    assert figures["reader_lanes"] - 1 < rate * elements / clock <= figures["reader_lanes"]
    assert figures["reader_tokens_per_second"] == pytest.approx(8 * clock / elements)
    assert figures["burst_reader_lanes"] >= figures["reader_lanes"]
    assert document["inputs"]["reader_lanes"]["unit"] == "elements a cycle"
    assert document["inputs"]["key_bits"]["value"] == 3 + 8 / 128
    assert "cache_bits" not in document["inputs"]


def test_without_caches_nothing_of_them_is_said() -> None:
    (row,) = estimate("BitNet-3B", None, part="xc7z020")
    assert not {"cache", "blocks", "dense"} & row.as_json().keys()
    assert not {"reader_lanes", "stored_cache_bytes"} & row.metrics.keys()


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ((False, [], None), None),
        ((True, [], None), Caches()),
        ((True, ["oaken"], True), Caches(["oaken"], True)),
        ((False, ["oaken", "kivi"], False), Caches(["oaken", "kivi"], False)),
    ],
)
def test_which_caches_options_ask_for(asked, wanted) -> None:
    assert Caches.asked(*asked) == wanted


def test_blocks_need_a_cache() -> None:
    with pytest.raises(UsageError) as caught:
        Caches.asked(False, [], blocks=False)
    assert str(caught.value) == "--no-blocks is of caches: add --caches, or --kv-codec with a codec"


def test_selections_that_are_asked_for() -> None:
    names = [
        ["blocks" if selection else "dense" for selection in Caches(blocks=blocks).selections]
        for blocks in (None, True, False)
    ]
    assert names == [["dense", "blocks"], ["blocks"], ["dense"]]


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
            {"caches": Caches(), "settings": ["cache_bits=4"]},
            "the caches have bits of their own: --set cache_bits=4 is in the way",
        ),
        (
            {"model": "MiniCPM3-4B", "weights": "int4", "caches": Caches()},
            "MiniCPM3-4B caches latent vectors; codecs and blocks are for keys and values of heads",
        ),
        (
            {"model": "SmolLM2-135M", "weights": "int4", "caches": Caches(["per_token(group=128)"])},
            "groups of 128 do not divide the 192 channels of a token; the nearest that do have 96",
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


def test_the_command_lists_caches(dse) -> None:
    code, out, _ = dse(
        "estimate", "MiniCPM4-8B", "--context", "8192,131072", "--kv-codec", "kivi(bits=2, group=32)",
        "--kv-codec", "exact", "--set", "capacity=8e9",
    )  # fmt: skip
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("MiniCPM4-8B on xc7z020: ternary weights of 1768 MB; ")
    assert lines[1].split() == [
        "context", "cache", "blocks", "bits", "stored", "read", "GB/s", "tokens/s", "limit", "fits", "reader",
    ]  # fmt: skip
    table = [line.replace("(bits=2, group=32)", "").split() for line in lines[2:10]]
    assert [row[:4] for row in table] == [
        [context, cache, blocks, bits]
        for context in ("8192", "131072")
        for cache, bits in (("kivi", "3.00"), ("exact", "16.00"))
        for blocks in ("no", "yes")
    ]
    assert max(map(len, lines[1:10])) <= 120
    assert [row[9] for row in table] == ["yes"] * 8
    rows = {tuple(line.split()[:1]): line for line in lines}
    assert "arXiv 2506.07900" in rows["selection_topk",]
    assert rows["context",].split()[-1] == "given"
    assert any(line.split()[:2] == ["exact", "key_bits"] for line in lines)


def test_the_command_lists_the_usual_caches_of_all_models(dse) -> None:
    code, out, _ = dse("estimate", "--caches", "--no-blocks", "--context", "1024")
    assert code == 0
    titles = [line.partition(" on ")[0] for line in out.splitlines() if " weights of " in line]
    assert titles == [model for model, _ in STANDARD]
    assert sum(line.split()[1:2] == ["exact"] for line in out.splitlines()) == len(STANDARD)


def test_an_error_as_json(dse) -> None:
    code, out, _ = dse("estimate", "--part", "xc7a35t", "--json")
    assert code == 2
    assert json.loads(out)["expected"][0] == "xc7k325t"
