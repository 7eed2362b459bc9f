"""Studies of hardware alone: their points, what is refused, and a whole sweep."""

import json

import pytest

from dse import console
from dse.any_study import load_study
from dse.hardware_study import HardwareStudy
from dse.study import Study
from dse.sweep import load_run, run
from quantizers.errors import UsageError
from reports import write_report

DOCUMENT = {
    "name": "units",
    "designs": [
        {"name": "exact", "block": "mac", "weights": ["int2", "e2m0"], "parameters": {"dot_length": [8, 64]}},
        {
            "name": "unit",
            "block": "mvu",
            "weights": "int2",
            "activations": ["int2", "uint2"],
            "parameters": {"rows": 4, "columns": 8, "pe": 2, "simd": 2},
        },
    ],
    "fronts": [{"x": "luts", "y": "logic_delay_ns"}],
}
TOML = """
name = "units"
fronts = [{ x = "luts", y = "logic_delay_ns" }]
[[designs]]
name = "exact"
block = "mac"
weights = "int2"
"""


def with_design(**changes):
    return {**DOCUMENT, "designs": [{**DOCUMENT["designs"][0], **changes}]}


def test_every_combination_is_a_point():
    points = HardwareStudy.parse(DOCUMENT).points()
    assert [(point.design, point.label) for point in points] == [
        ("exact", "int2 dot_length=8"),
        ("exact", "int2 dot_length=64"),
        ("exact", "e2m0 dot_length=8"),
        ("exact", "e2m0 dot_length=64"),
        ("unit", "int2"),
        ("unit", "int2/uint2"),
    ]
    assert json.loads(points[1].parameters) == {
        "dot_length": 64,
        "accumulator_bits": None,
        "pipelined": False,
    }
    assert {point.workload for point in points} == {"units"}
    assert {point.part for point in points} == {"xc7z020"}
    assert points[0].key(tools={}, data="") != points[1].key(tools={}, data="")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            with_design(block="macs"),
            "study: designs.0.block: unknown block 'macs' (did you mean 'mac'?); expected one of: ",
        ),
        (with_design(weights=["int99"]), "study: designs.0: "),
        (
            with_design(parameters={"dot_lenght": 8}),
            "study: designs.0: unknown parameter of block 'mac' 'dot_lenght' (did you mean 'dot_length'?); expected one of: ",
        ),
        (
            with_design(parameters={"dot_length": [8, 0]}),
            "study: designs.0: dot_length must be a positive integer, not 0",
        ),
        (with_design(colour="red"), "designs.0: unknown key 'colour'"),
        (
            {**DOCUMENT, "designs": DOCUMENT["designs"][:1] * 2},
            "study: study: design 'exact' is listed twice",
        ),
        ({**DOCUMENT, "designs": []}, "study: designs: must be a list of at least one entry, not []"),
    ],
)
def test_mistakes(document, message):
    with pytest.raises(UsageError) as caught:
        HardwareStudy.parse(document)
    assert message in str(caught.value)


def test_what_a_block_cannot_do_is_refused_with_its_place():
    study = HardwareStudy.parse(
        with_design(name="narrow", block="mvu", weights=["int2"], parameters={"rows": 2, "pe": [2, 3]})
    )
    with pytest.raises(UsageError) as caught:
        study.check()
    assert str(caught.value) == "narrow, int2 pe=3: pe must be at most rows (2), not 3"


def test_the_kind_of_a_file(tmp_path):
    file = tmp_path / "units.toml"
    file.write_text(TOML)
    study = load_study(file, ["designs.0.weights=int3", "part=xc7a100t"])
    assert isinstance(study, HardwareStudy)
    assert [(point.weights, point.part) for point in study.points()] == [("int3", "xc7a100t")]
    file.write_text(
        'name = "a"\nworkloads = [{name = "fmnist-resnet"}]\nformats = {pairs = [["int8", "int8"]]}\n'
    )
    assert isinstance(load_study(file), Study)


def test_a_sweep(tmp_path):
    study = HardwareStudy.parse(DOCUMENT)
    result = run(study, tmp_path)
    table = result.table()
    assert list(table["design"]) == ["exact"] * 4 + ["unit"] * 2
    assert result.failed == []
    assert result.missing == 0
    units = table[table["design"] == "unit"]
    assert list(units["cycles_per_vector"]) == [8, 8]
    assert list(units["weight_bits_per_cycle"]) == [8, 8]
    assert list(units["luts_per_weight_bit_cycle"]) == list(units["luts"] / 8)
    assert list(units["luts_per_weight_cycle"] * units["weights_per_cycle"]) == list(units["luts"])
    assert set(units["cycles_per_vector_provenance"]) == {"analytic"}
    assert table["weight_bits_per_cycle"].isna().sum() == 4

    again = run(study, tmp_path)
    assert list(again.table()["finished_at"]) == list(table["finished_at"])
    assert load_run(tmp_path).study == study
    page = write_report(again).read_text()
    assert "<td>unit</td>" in page.replace("\n", "")
    assert "Bars are 95 % intervals" not in page
    assert (tmp_path / "figures" / "units_logic_delay_ns_luts.svg").is_file()


MIXED = {
    "name": "mixed",
    "designs": [
        {"name": "mac", "block": "mac", "weights": "int2", "parameters": {"dot_length": 8}},
        {
            "name": "transform",
            "block": "hadamard",
            "parameters": {"size": 8, "lanes": [1, 8], "input_bits": 1},
        },
    ],
    "fronts": [{"x": "luts", "y": "logic_delay_ns"}],
}
ALONE = {**MIXED, "designs": MIXED["designs"][1:], "fronts": [{"x": "luts", "y": "elements_per_cycle"}]}


def test_points_without_formats():
    points = HardwareStudy.parse(MIXED).points()
    assert [(point.design, point.label) for point in points] == [
        ("mac", "int2"),
        ("transform", "lanes=1"),
        ("transform", "lanes=8"),
    ]
    assert [point.formats for point in points] == [{"weights": "int2", "activations": "int2"}, {}, {}]
    assert list(points[1].as_dict()) == ["workload", "design", "variant", "block", "parameters", "part"]
    design = {"name": "transform", "block": "hadamard"}
    (point,) = HardwareStudy.parse({**MIXED, "designs": [design]}).points()
    assert point.label == "hadamard"


@pytest.mark.parametrize(
    ("design", "message"),
    [
        (
            {"block": "hadamard", "weights": "int8"},
            "block 'hadamard' takes no formats, but weights 'int8' were given; "
            "its parameters are: size, lanes, input_bits",
        ),
        (
            {"block": "hadamard", "activations": ["int8"]},
            "block 'hadamard' takes no formats, but activations 'int8' were given; "
            "its parameters are: size, lanes, input_bits",
        ),
        ({"block": "mac"}, "block 'mac' needs weights: the name of a format, or a list of names"),
        (
            {"block": "mac", "activations": "int8"},
            "block 'mac' needs weights: the name of a format, or a list of names",
        ),
    ],
)
def test_formats_that_are_missing_or_too_many(design, message):
    with pytest.raises(UsageError) as caught:
        HardwareStudy.parse({**MIXED, "designs": [{"name": "a", **design}]})
    assert str(caught.value) == f"study: designs.0: {message}"


@pytest.mark.parametrize("document", [MIXED, ALONE], ids=["mixed", "alone"])
def test_a_sweep_without_formats(tmp_path, capsys, document):
    study = HardwareStudy.parse(document)
    result = run(study, tmp_path)
    assert (result.failed, result.missing) == ([], 0)
    table = result.table()
    units = table[table["design"] == "transform"]
    assert list(units["elements_per_cycle"]) == [1, 8]
    assert list(units["luts_per_element_cycle"] * units["elements_per_cycle"]) == list(units["luts"])
    if document is ALONE:
        assert not {"weights", "activations"} & set(table)
    else:
        assert list(table["weights"].isna()) == [False, True, True]

    again = run(study, tmp_path)
    assert list(again.table()["finished_at"]) == list(table["finished_at"])
    assert load_run(tmp_path).study == study
    for front in again.fronts():
        text = json.dumps(front.as_json(), allow_nan=False)
        assert text.count('"weights"') == sum(design == "mac" for design in front.rows["design"])
    console.show_run(again)
    shown = capsys.readouterr().out
    assert "lanes=8" in shown
    assert "nan" not in shown
    page = write_report(again).read_text()
    assert "lanes=1" in page
    assert "weights nan" not in page
    assert "<td>nan</td>" not in page.replace("\n", "")
