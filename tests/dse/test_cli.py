import json
import sys

import pytest

from dse import cli


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


def test_tables_name_units_and_tools(dse):
    code, out, _ = dse("cost", "--weights", "int3", "--set", "dot_length=16")
    assert code == 0
    assert (
        "block mac, weights int3, activations int3, dot_length 16, part xc7z020; no dsps, brams, lutrams"
        in out
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
         "expected one of: dot_length, accumulator_bits"),
        (["cost", "x.v", "--top", "t"], "files and --top belong to --verilog, which is missing"),
        (["cost", "--verilog", "x.v"], "--verilog needs --top NAME: which module is to be costed"),
        (["cost", "--verilog", "x.v", "--top", "t", "--weights", "int8"],
         "--weights choose one of our blocks; with --verilog only --top and --part apply"),
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
    code, out, err = dse("cst")
    assert (code, out) == (2, "")
    assert "No such command 'cst'" in err
    code, out, err = dse("cost", "--wieghts", "int8", "--json")
    assert code == 2
    assert "No such option" in json.loads(out)["error"]


def test_sweep_refuses_before_it_writes(dse, tmp_path):
    out_folder = tmp_path / "run"
    missing = tmp_path / "nowhere"
    cases = [
        ("fmnist-resnt", "", "unknown workload 'fmnist-resnt' (did you mean 'fmnist-resnet'?)"),
        (
            "efficientnet-lite0",
            f'data = "{missing}"',
            f"image folder {missing} not found: efficientnet-lite0 needs one with labels.csv",
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
