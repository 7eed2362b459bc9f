import json
from pathlib import Path

import pytest

from dse.accuracy import Source, quality_of, settings_of
from dse.study import Study
from dse.workloads import workload_fingerprint
from quantizers.errors import UsageError

MINIMAL = """
name = "t"
[[workloads]]
name = "fmnist-resnet"
[formats]
families = ["integer"]
bits = [4, 8]
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Study:
    file = tmp_path / "study.toml"
    file.write_text(text)
    return Study.load(file, overrides)


def message(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path), "DIR")


def test_equal_pairing_has_every_signed_split_once(tmp_path):
    text = MINIMAL.replace('["integer"]', '["integer", "minifloat"]').replace("[4, 8]", "[3, 4, 8]")
    pairs = load(tmp_path, text).formats.resolve()
    names = [
        "int3",
        "int4",
        "int8",
        "e1m1",
        "e2m0",
        "e1m2",
        "e2m1",
        "e3m0",
        "e1m6",
        "e2m5",
        "e3m4",
        "e4m3",
        "e5m2",
    ]
    assert pairs == [(name, name) for name in names]


def test_activations_have_at_least_the_bits_of_the_weights(tmp_path):
    text = (
        MINIMAL.replace('["integer"]', '["integer", "minifloat"]')
        + 'pairing = "activations_at_least_weights"'
    )
    pairs = load(tmp_path, text).formats.resolve()
    assert pairs[:3] == [("int4", "int4"), ("int4", "int8"), ("int8", "int8")]
    # 3 splits of 4 bits, 5 of 8: 3 x 3 + 3 x 5 + 5 x 5, within the family only.
    assert len(pairs) == 3 + 9 + 15 + 25
    assert ("e2m1", "e4m3") in pairs
    assert ("e4m3", "e2m1") not in pairs
    assert ("int4", "e4m3") not in pairs


def test_explicit_pairs_and_swept_choices(tmp_path):
    text = """
    name = "t"
    [[workloads]]
    name = "fmnist-resnet"
    evaluation_images = 50
    [formats]
    pairs = [["int4", "int8"], ["e2m1", "e4m3"], ["int4", "int8"]]
    [quantization]
    activation_scale = ["mse", "percentile"]
    percentile = 99.9
    """
    points = load(tmp_path, text).points()
    assert [(p.label, p.activation_scale, p.percentile, p.family) for p in points] == [
        ("int4/int8", "mse", None, "integer"),
        ("int4/int8", "percentile", 99.9, "integer"),
        ("e2m1/e4m3", "mse", None, "minifloat"),
        ("e2m1/e4m3", "percentile", 99.9, "minifloat"),
    ]
    assert {p.evaluation_images for p in points} == {50}


def test_recipes_and_seeds_are_swept_in_the_order_that_shares_most(tmp_path):
    text = MINIMAL.replace('name = "t"', 'name = "t"\nseed = [3, 1]') + (
        """[quantization]\nrecipe = ["round", "equalize + gptq( damping = 0.02 ,order='activation')", "round"]\n"""
    )
    points = load(tmp_path, text).points()
    gptq = "equalize + gptq(damping=0.02)"
    assert [(p.seed, p.recipe, p.weights) for p in points] == [
        (seed, recipe, weights)
        for seed in (3, 1)
        for recipe in ("round", gptq)
        for weights in ("int4", "int8")
    ]


def test_overrides_are_toml_values_or_text(tmp_path):
    study = load(
        tmp_path,
        MINIMAL,
        "hardware.dot_length=64",
        "workloads.0.data=some/folder",
        "formats.bits=[3]",
        "name=u",
    )
    assert (study.hardware.dot_length, study.workloads[0].data, study.name) == (64, "some/folder", "u")
    assert study.formats.resolve() == [("int3", "int3")]


def test_the_resolved_study_is_the_same_study(tmp_path):
    study = load(tmp_path, MINIMAL)
    file = tmp_path / "study.json"
    file.write_text(json.dumps(study.model_dump(mode="json")))
    assert Study.load(file) == study


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (MINIMAL.replace("bits = [4, 8]", ""), [],
         "DIR/study.toml: formats: 'families' and 'bits' belong together; 'bits' is missing"),
        (MINIMAL + 'pairs = [["int4", "int4"]]', [],
         "DIR/study.toml: formats: give either 'pairs' or both 'families' and 'bits', not both and not neither"),
        (MINIMAL.replace("bits", "bitz"), [],
         "DIR/study.toml: formats: unknown key 'bitz' (did you mean 'bits'?); "
         "expected one of: families, bits, pairing, pairs"),
        (MINIMAL, ["formats.families=['intger']"],
         "DIR/study.toml: formats.families.0: unknown families 'intger' (did you mean 'integer'?); "
         "expected one of: integer, minifloat"),
        (MINIMAL, ["formats.bits=[12]"],
         "DIR/study.toml: formats.bits.0: must be 8 or less, not 12"),
        (MINIMAL, ["quantization.percentile=99.9"],
         "DIR/study.toml: quantization: 'percentile' is given but activation_scale is not 'percentile'; "
         "it would have no effect"),
        (MINIMAL, ["quantization.recipe=gtpq"],
         "DIR/study.toml: quantization.recipe.0: unknown recipe step 'gtpq' (did you mean 'gptq'?); expected one of: "
         "equalize, smoothquant, gptq, gpfq, qronos, learned_rounding, coordinate_descent, gain_correction, bias_correction, round"),
        (MINIMAL, ["quantization.recipe=bias_correction + gptq"],
         "DIR/study.toml: quantization.recipe.0: gptq comes before bias_correction in a recipe, not after it: "
         "bias_correction + gptq"),
        (MINIMAL, ["fronts=[{x='luts',y='luts'}]"],
         "DIR/study.toml: fronts.0: a front needs two different metrics, not 'luts' twice"),
        (MINIMAL, ["nonsense"],
         "--set needs key=value, such as hardware.dot_length=1024, not 'nonsense'"),
        (MINIMAL, ["workloads.3.data=x"], "--set 'workloads.3.data=x': the study has no place 'workloads.3.data'"),
        ("name = ", [], "DIR/study.toml is not valid TOML: Invalid value (at end of document)"),
        (MINIMAL + '[[workloads]]\nname = "fmnist-resnet"', [],
         "DIR/study.toml: study: workload 'fmnist-resnet' is listed twice"),
        ("name = 't'\n[formats]\nfamilies=['integer']\nbits=[3]", [], "DIR/study.toml: workloads: is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_message(tmp_path, text, overrides, expected):
    assert message(tmp_path, text, *overrides) == expected


@pytest.mark.parametrize(
    ("override", "beginning"),
    [
        ("formats={pairs=[['int4','e9m9']]}", "formats.pairs.0.1: no format 'e9m9': minifloats have 1 to 5"),
        (
            "hardware.part=xc7z02",
            "hardware.part: unknown part 'xc7z02' (did you mean 'xc7z020'?); expected one of",
        ),
        (
            "fronts=[{x='lutz',y='accuracy'}]",
            "fronts.0.x: unknown metric 'lutz' (did you mean 'luts'?); expected",
        ),
        (
            "hardware.block=mca",
            "hardware.block: unknown block 'mca' (did you mean 'mac'?); expected one of: best_mac, mac, binned_mac",
        ),
    ],
)
def test_names_are_checked_when_the_study_is_read(tmp_path, override, beginning):
    assert message(tmp_path, MINIMAL, override).startswith(f"DIR/study.toml: {beginning}")


def test_all_problems_are_told_at_once(tmp_path):
    text = message(tmp_path, MINIMAL, "formats.bits=[12]", "hardware.part=x")
    assert text.startswith("DIR/study.toml has 2 problems:\n  - formats.bits.0: ")
    assert "\n  - hardware.part: unknown part 'x'; expected one of: " in text


NAME_RULE = "must be letters, digits, '.', '_' and '-', the first a letter or a digit, not"
A_PAIR = "must be a pair of format names, [weights, activations], not"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=my study", f"name: {NAME_RULE} 'my study' (did you mean 'my-study'?)"),
        ("name=-", f"name: {NAME_RULE} '-'"),
        ("name=3", "name: must be text in quotes, not 3"),
        ("formats.bits=[]", "formats.bits: must be a list of at least one entry, not []"),
        ("formats.bits=4", "formats.bits: must be a list, such as [4], not 4"),
        ("formats.bits=[4.5]", "formats.bits.0: must be a whole number, not 4.5"),
        ("formats.bits=[1]", "formats.bits.0: must be 2 or more, not 1"),
        ("formats.pairing=equl",
         "formats.pairing: unknown pairing 'equl' (did you mean 'equal'?); "
         "expected one of: equal, activations_at_least_weights"),
        ("formats={pairs=[['int4','int4','int4']]}", f"formats.pairs.0: {A_PAIR} ['int4', 'int4', 'int4']"),
        ("formats={pairs=[['int4']]}", f"formats.pairs.0: {A_PAIR} ['int4']"),
        ("formats={pairs=[[]]}", f"formats.pairs.0: {A_PAIR} []"),
        ("formats={pairs=['int4']}", f"formats.pairs.0: {A_PAIR} 'int4'"),
        ("formats={pairs='int4'}", "formats.pairs: must be a list, not 'int4'"),
        ("workloads=[]", "workloads: must be a list of at least one entry, not []"),
        ("workloads=['fmnist-resnet']",
         "workloads.0: must be a table of keys and values, not 'fmnist-resnet'"),
        ("quantization.unsigned_activations=maybe",
         "quantization.unsigned_activations: must be true or false, not 'maybe'"),
        ("point_timeout_s=0", "point_timeout_s: must be more than 0, not 0"),
        ("point_timeout_s=long", "point_timeout_s: must be a number, not 'long'"),
    ],
)  # fmt: skip
def test_wrong_types_and_bounds_are_said_in_words(tmp_path, override, expected):
    assert message(tmp_path, MINIMAL, override) == f"DIR/study.toml: {expected}"


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "quickstart.toml").write_text(MINIMAL)
    with pytest.raises(UsageError) as caught:
        Study.load(tmp_path / "quick.toml")
    neighbour = tmp_path / "quickstart.toml"
    assert str(caught.value) == f"no study file '{tmp_path / 'quick.toml'}'; study files there: {neighbour}"
    assert caught.value.expected == [str(neighbour)]


def test_unknown_workload_is_found_before_work_starts(tmp_path):
    with pytest.raises(
        UsageError, match=r"^unknown workload 'fmnist-resnt' \(did you mean 'fmnist-resnet'\?\)"
    ):
        load(tmp_path, MINIMAL, "workloads.0.name=fmnist-resnt").check()


@pytest.mark.parametrize("name", ["quickstart", "anchor"])
def test_shipped_studies_resolve(name):
    study = Study.load(Path(__file__).parents[2] / "sweeps" / f"{name}.toml")
    # Integers 6 and minifloats 2+3+4+5+5+5 alone; 21 + 340 pairs of the anchor study on three networks, by six recipes.
    assert len(study.points()) == {"quickstart": 30, "anchor": 3 * (21 + 340) * 6}[name]


PAIRS = """
name = "t"
[[workloads]]
name = "fmnist-vit"
[formats]
pairs = [["int4", "int8"]]
[quantization]
"""


def test_scales_within_a_layer_are_swept(tmp_path):
    text = PAIRS + 'weight_group = ["channel", 64]\nactivation_granularity = ["tensor", "token"]'
    points = load(tmp_path, text).points()
    assert [(p.label, p.weight_group, p.activation_granularity, p.has_integer_sums) for p in points] == [
        ("int4/int8", None, "tensor", True),
        ("int4/int8t", None, "token", True),
        ("int4g64/int8", 64, "tensor", False),
        ("int4g64/int8t", 64, "token", False),
    ]
    scales = (
        'weight_scale = ["max", "mse_power_of_two"]\nactivation_scale = "mse_power_of_two"\nweight_group = 32'
    )
    points = load(tmp_path, PAIRS + scales, "fronts=[{x='weight_bits',y='accuracy'}]").points()
    assert [(p.weight_scale, p.activation_scale, p.weight_group) for p in points] == [
        ("max", "mse_power_of_two", 32),
        ("mse_power_of_two", "mse_power_of_two", 32),
    ]


def test_block_formats_and_ternary_means(tmp_path):
    text = PAIRS.replace('["int4", "int8"]', '["mxfp4", "mxfp6_e2m3"], ["e2m1", "e4m3"]')
    points = load(tmp_path, text).points()
    assert [(p.label, p.family, p.has_integer_sums) for p in points] == [
        ("mxfp4/mxfp6_e2m3", "mx", False),
        ("e2m1/e4m3", "minifloat", True),
    ]
    text = PAIRS.replace("int4", "ternary") + 'weight_scale = ["mse", "mean"]'
    assert [p.weight_scale for p in load(tmp_path, text).points()] == ["mse", "mean"]


NO_COST = (
    "DIR/study.toml: study: no point has 'luts' for the front: all have several scales within a sum "
    "(weight groups or block formats), and such a datapath is not costed"
)
ONE_SCALE = "gain_correction gives each channel's one scale a factor of its own; it does not go with"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["quantization.weight_group=0"],
         "DIR/study.toml: quantization.weight_group.0: weight_group must be 'channel' or a positive number of "
         "features, not 0"),
        (["quantization.weight_group=true"],
         "DIR/study.toml: quantization.weight_group.0: weight_group must be 'channel' or a positive number of "
         "features, not True"),
        (["quantization.activation_granularity=row"],
         "DIR/study.toml: quantization.activation_granularity.0: unknown activation_granularity 'row'; "
         "expected one of: tensor, token"),
        (["formats.pairs=[['mxfp4','int8']]", "quantization.weight_group=['channel',64]"],
         "DIR/study.toml: study: weight_group 64 does not go with weights mxfp4: its blocks of 32 have scales of "
         "their own"),
        (["formats.pairs=[['int4','mxfp4']]", "quantization.activation_granularity=token"],
         "DIR/study.toml: study: activation_granularity 'token' does not go with activations mxfp4: its blocks of "
         "32 have scales of their own"),
        (["quantization.weight_scale=mean"],
         "DIR/study.toml: study: weight_scale 'mean' is for ternary weights, not int4"),
        (["quantization.edge_format=mxfp4"],
         "DIR/study.toml: quantization.edge_format: 'mxfp4' shares scales between elements; a scalar format is "
         "needed here, such as 'e4m3'"),
        (["quantization.weight_group=32"], NO_COST),
        (["formats.pairs=[['mxfp4','mxfp4'],['int4','mxint8']]"], NO_COST),
        (["quantization.weight_group=['channel',32]", "quantization.recipe=gain_correction"],
         f"DIR/study.toml: study: {ONE_SCALE} weights int4 in groups of 32"),
        (["formats.pairs=[['mxfp4','int8'],['int4','int8']]", "quantization.recipe=gptq + gain_correction"],
         f"DIR/study.toml: study: {ONE_SCALE} weights mxfp4"),
        (["quantization.weight_scale=mse_power_of_two", "quantization.recipe=gain_correction"],
         f"DIR/study.toml: study: {ONE_SCALE} weight_scale 'mse_power_of_two'"),
    ],
)  # fmt: skip
def test_choices_that_contradict_each_other_are_refused_when_read(tmp_path, overrides, expected):
    assert message(tmp_path, PAIRS, *overrides) == expected


def test_formats_without_a_datapath_pass_the_check(tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr("dse.study.check_workload", lambda *_, **__: None)
    monkeypatch.setattr("dse.study.check_point", lambda point: checked.append(point.label))
    text = PAIRS.replace('["int4", "int8"]', '["mxfp4", "mxfp4"], ["e2m1", "e4m3"]')
    load(tmp_path, text).check()
    assert checked == ["e2m1/e4m3"]


def test_a_number_is_no_format_and_nothing_is_swept_by_an_empty_list(tmp_path):
    text = """
        name = "t"
        [[workloads]]
        name = "fmnist-resnet"
        [formats]
        pairs = [["int4", 4]]
        [quantization]
        bias = []
    """
    with pytest.raises(UsageError) as error:
        load(tmp_path, text)
    assert str(error.value).partition(" has ")[2] == (
        "2 problems:\n"
        "  - formats.pairs.0.1: a format is a name in quotes, such as 'int8' or 'e4m3', not 4\n"
        "  - quantization.bias: must be a list of at least one entry, not []"
    )


def test_residual_adds_are_in_float_unless_a_format_is_given(tmp_path):
    assert load(tmp_path, PAIRS).quantization.residual_format == "float"
    formats = []
    for override in ([], ["quantization.residual_format=float"], ["quantization.residual_format=e4m3"]):
        (point,) = load(tmp_path, PAIRS, *override).points()
        residuals = settings_of(point).residuals
        formats.append((point.residual_format, residuals and residuals.name))
    assert formats == [(None, None), (None, None), ("e4m3", "e4m3")]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mxfp4", "quantization.residual_format: 'mxfp4' shares scales between elements; a scalar format is needed "
         "here, such as 'e4m3'"),
        ("8", "quantization.residual_format: a format is a name in quotes, such as 'int8' or 'e4m3', not 8"),
        ("ternary", "study: residuals cannot be ternary, which is for weights"),
        ("uint8", "study: residuals cannot be uint8: give the signed format; inputs never negative lose the sign "
         "bit"),
    ],
)  # fmt: skip
def test_a_wrong_residual_format_is_told(tmp_path, override, expected):
    assert (
        message(tmp_path, PAIRS, f"quantization.residual_format={override}") == f"DIR/study.toml: {expected}"
    )


def test_quantized_residual_adds_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "cache"))
    text = PAIRS.replace('"fmnist-vit"', '"fmnist-vit"\ncalibration_images = 32\nevaluation_images = 40')
    source = Source(None, workload_fingerprint("fmnist-vit"))
    counts = []
    for residual in ("float", "int8"):
        (point,) = load(tmp_path, text, f"quantization.residual_format={residual}").points()
        quality = quality_of(point, source)
        counts.append(quality.details.get("residual_adds_quantized"))
        assert (quality.weight_pairs, quality.activation_pairs) == (
            [("int4n", "int8")],
            [("int8", "int8"), ("int8", "uint8")],
        )
    assert counts == [None, 8]
