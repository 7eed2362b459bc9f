"""What ``dse hw`` does, without the command line: files, simulation against the reference, wrong use."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dse import hardware
from dse.hardware import ChosenBlock, Mismatch, Simulation, choose_block, emit, list_blocks, simulate
from hw.blocks import BLOCKS, Stimuli
from hw.simulation import SimulationError
from hw.verilog import made_by
from quantizers.errors import UsageError

FILES = ["mac.v", "mac_tb.v", "mac_tb_pairs.hex", "mac_tb_sums.hex"]


def mac(weights: str = "int3", activations: str | None = "uint3", *settings: str) -> ChosenBlock:
    return choose_block("mac", weights, activations, settings or ("dot_length=8",))


def emit_mac(folder: Path, *, count: int = 5, seed: int = 0, force: bool = False) -> list[Path]:
    return emit(mac(), folder, count=count, seed=seed, force=force)


def simulate_mac(chosen: ChosenBlock | None = None, **choices: Any) -> Simulation:
    defaults = {"count": None, "seed": 0, "simulator": "amaranth", "trace": None, "force": False}
    return simulate(chosen or mac(), **{**defaults, **choices})


def change_stimuli(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """From now on the reference of the mac is what *change* makes of it."""
    block = BLOCKS["mac"]

    def stimuli(*arguments: Any, **more: Any) -> Stimuli:
        right = block.stimuli(*arguments, **more)
        return dataclasses.replace(right, outputs={"sums": change(list(right.outputs["sums"]))})

    monkeypatch.setitem(BLOCKS, "mac", dataclasses.replace(block, stimuli=stimuli))


def stop_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("work has started")

    for name in ("documented_verilog", "simulate_stream", "VerilatedStream"):
        monkeypatch.setattr(hardware, name, refuse)


def test_a_choice_is_complete_and_canonical() -> None:
    chosen = choose_block("mac", "e2m1b1", None, [])
    assert chosen.as_json() == {
        "block": "mac",
        "weights": "e2m1",
        "activations": "e2m1",
        "dot_length": 4608,
        "accumulator_bits": None,
        "pipelined": False,
    }
    assert chosen.describe() == "weights e2m1, activations e2m1, dot_length 4608, pipelined false"
    wrapping = mac("int8", "int4", "dot_length=8", "accumulator_bits=6")
    assert wrapping.describe() == (
        "weights int8, activations int4, dot_length 8, accumulator_bits 6, pipelined false"
    )
    unit = choose_block("mvu", "int4", None, ["has_bias=true"])
    assert "overflow error, has_bias true, multiplier_bits 16" in unit.describe()
    assert wrapping.build().accumulator_bits == 6
    pipelined = mac("int8", "int4", "dot_length=8", "pipelined=true")
    assert pipelined.describe() == "weights int8, activations int4, dot_length 8, pipelined true"


@pytest.mark.parametrize(
    ("name", "weights", "activations", "settings", "message"),
    [
        ("mca", "int8", None, [], "unknown block 'mca' (did you mean 'mac'?); expected one of: "),
        ("mac", "int99", None, [], "no format 'int99': "),
        ("mac", "int8", "mxfp4", [], "'mxfp4' shares scales between elements; "),
        (
            "mac",
            "int8",
            "e4m3fn",
            [],
            "activations has codes for NaN or infinity, which this datapath cannot carry: e4m3fn",
        ),
        ("mac", "int8", None, ["dot_length=0"], "dot_length must be a positive integer, not 0"),
        (
            "mac",
            "int8",
            None,
            ["dots=3"],
            "unknown parameter of block 'mac' 'dots' (did you mean 'dot_length'?); ",
        ),
    ],
)
def test_wrong_choices(
    name: str, weights: str, activations: str | None, settings: list[str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        choose_block(name, weights, activations, settings)
    assert str(caught.value).startswith(message)


def test_the_list_has_every_block_and_its_defaults() -> None:
    blocks = {block["name"]: block for block in list_blocks()}
    assert list(blocks) == list(BLOCKS)
    assert blocks["mac"] == {
        "name": "mac",
        "meaning": "multiply-accumulate unit with an exact fixed-point accumulator",
        "parameters": [
            {"name": "dot_length", "default": 4608, "meaning": "pairs in the longest dot"},
            {
                "name": "accumulator_bits",
                "default": None,
                "meaning": "accumulator width; the exact one where not set",
            },
            {
                "name": "pipelined",
                "default": False,
                "meaning": "more registers, for a higher clock frequency",
            },
        ],
    }


def uniform_writer() -> ChosenBlock:
    return choose_block("kv_uniform_writer", None, None, ["head_dim=16", "group=16", "lanes=4"])


def test_a_block_without_formats() -> None:
    chosen = uniform_writer()
    assert chosen.as_json() == {
        "block": "kv_uniform_writer",
        "head_dim": 16,
        "bits": 4,
        "group": 16,
        "lanes": 4,
        "word_bits": 32,
        "per_channel": False,
    }
    assert chosen.describe() == "head_dim 16, bits 4, group 16, lanes 4, word_bits 32, per_channel false"
    with pytest.raises(UsageError) as caught:
        choose_block("kv_uniform_writer", "int8", None, [])
    assert str(caught.value).startswith(
        "block 'kv_uniform_writer' takes no formats, but weights 'int8' were given; its parameters are: head_dim, "
    )
    blocks = {block["name"]: block for block in list_blocks()}
    assert blocks["kv_uniform_writer"]["formats"] == []
    assert {name for name in blocks if "formats" in blocks[name]} == {
        name for name in BLOCKS if not BLOCKS[name].formats
    }


def test_files_of_a_block_with_two_output_streams(tmp_path: Path) -> None:
    emit(uniform_writer(), tmp_path, count=6, seed=0, force=False)
    files = ["", "_tb", "_tb_inputs", "_tb_ranges", "_tb_words"]
    assert sorted(path.stem for path in tmp_path.iterdir()) == [f"kv_uniform_writer{end}" for end in files]
    verilog = (tmp_path / "kv_uniform_writer.v").read_text().splitlines()
    assert verilog[3] == f"// Parameters: {uniform_writer().describe()}"
    lengths = {
        name: len((tmp_path / f"kv_uniform_writer_tb_{name}.hex").read_text().splitlines()) - 1
        for name in ("inputs", "words", "ranges")
    }
    # Groups of 16 codes of 4 bits are two words.
    assert lengths == {"inputs": 12, "words": 6, "ranges": 3}


@pytest.mark.parametrize("simulator", ["verilator", "amaranth"])
def test_outputs_of_all_streams_are_compared(monkeypatch: pytest.MonkeyPatch, simulator: str) -> None:
    result = simulate_mac(uniform_writer(), count=10, simulator=simulator)
    assert (result.checked, result.mismatches) == (15, 0)
    block = BLOCKS["kv_uniform_writer"]

    def wrong(*arguments: Any, **more: Any) -> Stimuli:
        stimuli = block.stimuli(*arguments, **more)
        stimuli.outputs["ranges"][3] ^= 1
        stimuli.outputs["words"][8] ^= 1
        return stimuli

    monkeypatch.setitem(BLOCKS, "kv_uniform_writer", dataclasses.replace(block, stimuli=wrong))
    result = simulate_mac(uniform_writer(), count=10, simulator=simulator)
    assert (result.checked, result.mismatches) == (15, 2)
    assert [(m.label, m.position, m.expected ^ m.got) for m in result.first_mismatches] == [
        ("output of words", 8, 1),
        ("output of ranges", 3, 1),
    ]
    assert str(Mismatch(7, 255, 18, "output of words")) == (
        "output of words 7: expected ff, got 12 (hexadecimal)"
    )


def test_emitted_files(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert emit_mac(folder) == [folder / name for name in FILES]
    assert sorted(path.name for path in folder.iterdir()) == FILES
    verilog = (folder / "mac.v").read_text().splitlines()
    latency = mac().build().latency
    assert verilog[:6] == [
        made_by(),
        "//",
        "// mac: multiply-accumulate unit with an exact fixed-point accumulator",
        "// Parameters: weights int3, activations uint3, dot_length 8, pipelined false",
        f"// Latency: {latency} cycles, from the one in which the last pair is taken to the first in which "
        "its sum is offered",
        "// Throughput: one pair a cycle, without a gap between dot products",
    ]
    assert "//   sums: sum of the products, in units of 2**0" in verilog
    assert any(line.startswith("module mac(") for line in verilog)
    assert "module mac_tb;" in (folder / "mac_tb.v").read_text().splitlines()
    assert len((folder / "mac_tb_sums.hex").read_text().splitlines()) == 1 + 5


def test_the_vectors_are_those_of_the_seed(tmp_path: Path) -> None:
    for folder, seed in (("first", 0), ("again", 0), ("other", 1)):
        emit_mac(tmp_path / folder, seed=seed)
    first, again, other = (
        [(tmp_path / folder / name).read_text() for name in FILES] for folder in ("first", "again", "other")
    )
    assert first == again
    assert first[0] == other[0]
    assert first[2:] != other[2:]
    rng = np.random.default_rng(1)
    stimuli = BLOCKS["mac"].stimuli(mac().build(), rng, 5, **mac().arguments())
    assert other[3].splitlines()[1:] == [f"{output:x}" for output in stimuli.outputs["sums"]]


def test_existing_files_need_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emit_mac(tmp_path)
    before = [(tmp_path / name).read_text() for name in FILES]
    with monkeypatch.context() as patch:
        stop_work(patch)
        with pytest.raises(UsageError) as caught:
            emit_mac(tmp_path, seed=1)
    assert str(caught.value) == f"'{tmp_path / 'mac.v'}' exists already; --force overwrites it"
    assert [(tmp_path / name).read_text() for name in FILES] == before
    emit_mac(tmp_path, seed=1, force=True)
    assert (tmp_path / "mac_tb_sums.hex").read_text() != before[3]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["mac.v", "mac_tb_sums.hex"])
def test_files_of_others_are_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, force: bool
) -> None:
    (tmp_path / name).write_text("module mac; endmodule\n")
    stop_work(monkeypatch)
    with pytest.raises(UsageError) as caught:
        emit_mac(tmp_path, force=force)
    assert str(caught.value) == (
        f"'{tmp_path / name}' exists and was not written by dse, which does not overwrite it"
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "module mac; endmodule\n"


@pytest.mark.parametrize("inside", [".", "deeper"])
def test_an_output_folder_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    (tmp_path / "file").write_text("")
    stop_work(monkeypatch)
    folder = tmp_path / "file" / inside
    with pytest.raises(UsageError) as caught:
        emit_mac(folder)
    assert str(caught.value) == f"cannot write to the output folder '{folder}': Not a directory"


def test_an_output_folder_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_work(monkeypatch)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UsageError) as caught:
        emit_mac(tmp_path / "new")
    assert str(caught.value) == f"cannot write to the output folder '{tmp_path / 'new'}': Permission denied"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the third file."""
    emit_mac(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    write_text, written = Path.write_text, []

    def write_two(path: Path, text: str) -> int:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write_text(path, text)

    with monkeypatch.context() as patch:
        # Yosys' own input is written by the same method.
        patch.setattr(hardware, "documented_verilog", lambda *arguments, **more: "new text")
        patch.setattr(Path, "write_text", write_two)
        with pytest.raises(UsageError) as caught:
            emit_mac(tmp_path, seed=1, force=True)
    assert str(caught.value) == f"cannot write to the output folder '{tmp_path}': No space left on device"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("simulator", ["verilator", "amaranth"])
@pytest.mark.parametrize("formats", [("int3", "uint3"), ("e4m3", "int8"), ("ternary", "e2m1")])
def test_simulations_agree_with_the_reference(simulator: str, formats: tuple[str, str]) -> None:
    chosen = mac(*formats)
    result = simulate_mac(chosen, count=40, simulator=simulator)
    assert (result.chosen, result.simulator) == (chosen, simulator)
    assert (result.checked, result.mismatches, result.first_mismatches) == (40, 0, ())
    # Both sides stall in a quarter of the cycles.
    pairs = len(
        BLOCKS["mac"]
        .stimuli(chosen.build(), np.random.default_rng(0), 40, **chosen.arguments())
        .inputs["pairs"]
    )
    assert pairs / 0.75 < result.cycles < pairs / 0.75**2 * 1.3
    assert result.cycles_per_second > 0
    assert result.as_json() == {
        "checked": 40,
        "mismatches": 0,
        "cycles": result.cycles,
        "cycles_per_second": result.cycles_per_second,
    }


def test_the_seed_sets_stimuli_and_stalls() -> None:
    first, again, other = (simulate_mac(count=30, seed=seed).cycles for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize(("simulator", "count"), [("verilator", 1000), ("amaranth", 50)])
def test_default_counts(simulator: str, count: int) -> None:
    chosen = mac("int3", "int3", "dot_length=1")
    assert simulate_mac(chosen, simulator=simulator).checked == count


def test_verilator_is_the_default() -> None:
    assert simulate_mac(simulator=None, count=3).simulator == "verilator"


@pytest.mark.parametrize("simulator", ["verilator", "amaranth"])
def test_mismatches_are_counted_and_the_first_ones_shown(
    monkeypatch: pytest.MonkeyPatch, simulator: str
) -> None:
    right: list[int] = []

    def change(outputs: list[int]) -> list[int]:
        right[:] = outputs
        return [output ^ (position % 2) for position, output in enumerate(outputs)]

    change_stimuli(monkeypatch, change)
    result = simulate_mac(count=40, simulator=simulator)
    assert (result.checked, result.mismatches) == (40, 20)
    assert result.first_mismatches == tuple(
        Mismatch(position, right[position] ^ 1, right[position]) for position in range(1, 21, 2)
    )
    assert str(Mismatch(7, 255, 18)) == "output 7: expected ff, got 12 (hexadecimal)"


def test_waveforms(tmp_path: Path) -> None:
    trace = tmp_path / "new" / "mac.vcd"
    result = simulate_mac(simulator=None, count=3, trace=trace)
    assert (result.simulator, result.checked, result.mismatches) == ("amaranth", 3, 0)
    assert result.cycles == simulate_mac(count=3).cycles
    text = trace.read_text()
    assert "pairs__payload" in text
    assert "sums__valid" in text
    assert [path.name for path in trace.parent.iterdir()] == ["mac.vcd"]
    with pytest.raises(UsageError) as caught:
        simulate_mac(count=3, trace=trace)
    assert str(caught.value) == f"'{trace}' exists already; --force overwrites it"
    simulate_mac(count=8, trace=trace, force=True)
    assert len(trace.read_text()) > len(text)


def test_waveforms_of_a_simulation_that_was_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_stimuli(monkeypatch, lambda outputs: [*outputs, 0])
    with pytest.raises(SimulationError, match=r"^MultiplyAccumulate gave 3 of 4 outputs in \d+ cycles$"):
        simulate_mac(count=3, trace=tmp_path / "mac.vcd")
    assert [path.name for path in tmp_path.iterdir()] == ["mac.vcd"]
    assert "sums__valid" in (tmp_path / "mac.vcd").read_text()


def test_wrong_simulations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    stop_work(monkeypatch)
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"simulator": "verilater"},
            "unknown simulator 'verilater' (did you mean 'verilator'?); expected one of: verilator, amaranth",
        ),
        (
            {"simulator": "verilator", "trace": tmp_path / "t.vcd"},
            "--trace needs Amaranth's simulator: leave --simulator verilator out",
        ),
        (
            {"trace": tmp_path / "notes.txt", "force": True},
            f"'{tmp_path / 'notes.txt'}' exists and was not written by dse, which does not overwrite it",
        ),
        (
            {"trace": tmp_path, "force": True},
            f"'{tmp_path}' exists and was not written by dse, which does not overwrite it",
        ),
        (
            {"trace": tmp_path / "notes.txt" / "t.vcd"},
            f"cannot write to the output folder '{tmp_path / 'notes.txt'}': Not a directory",
        ),
    ]
    for choices, message in cases:
        with pytest.raises(UsageError) as caught:
            simulate_mac(**choices)
        assert str(caught.value) == message
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
