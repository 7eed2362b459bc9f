from pathlib import Path

import pytest

from dse.verification import verify_layer
from quantizers.errors import UsageError

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260K.bin"


@pytest.mark.parametrize(
    ("workload", "layer", "weights", "activations", "matrix"),
    [
        ("fmnist-resnet", "blocks.0.conv1", "int8", "int8", (1, 24, 144)),
        ("fmnist-mobilenet", "blocks.1.depthwise.0", "int8", "int8", (96, 1, 9)),
        ("fmnist-mobilenet", "blocks.1.depthwise.0", "e2m1", "e2m1", (96, 1, 9)),
        ("fmnist-mobilenet", "blocks.1.project.0", "int4", "int4", (1, 24, 96)),
        ("fmnist-vit", "blocks.0.attention.query", "e2m1", "int8", (1, 64, 64)),
        ("fmnist-vit", "blocks.0.attention.out_proj", "e4m3", "e4m3", (1, 64, 64)),
        ("fmnist-vit", "blocks.0.fc2", "int4", "e4m3", (1, 64, 256)),
    ],
)
def test_hardware_gives_the_integers_of_the_software(workload, layer, weights, activations, matrix):
    found = verify_layer(workload, layer, weights=weights, activations=activations, vectors=16)
    assert (found.groups, found.rows, found.columns) == matrix
    assert found.checked == 2 * 16 * matrix[0] * matrix[1]
    assert found.mismatches == 0
    assert found.largest_scale_error < 2**-15
    assert found.rounding_differences <= found.checked / 1000
    assert found.cycles > 0


@pytest.mark.parametrize(
    ("workload", "layer", "weights", "activations", "sizes"),
    [
        ("fmnist-vit", "blocks.0.attention.query", "int4", "int8", {"lanes": 6, "groups": 3}),
        ("fmnist-vit", "blocks.0.fc2", "int2", "e4m3", {}),
        ("fmnist-vit", "blocks.0.fc1", "ternary", "int8", {}),
        ("fmnist-mobilenet", "blocks.1.depthwise.0", "int3", "int4", {}),
    ],
)
def test_tables_give_the_integers_of_the_software(workload, layer, weights, activations, sizes):
    formats = {"weights": weights, "activations": activations}
    found = verify_layer(workload, layer, **formats, vectors=8, block="lut_kernel", parameters=sizes)
    assert found.checked == 8 * found.groups * found.rows
    assert found.mismatches == 0
    assert found.rounding_differences is None
    assert "largest_scale_error" not in found.as_json()
    assert found.parameters == {"lanes": min(8, found.rows), "groups": 4, **sizes}


@pytest.mark.skipif(not STORIES.exists(), reason=f"no {STORIES.name} beside the checkout")
@pytest.mark.parametrize(
    ("weights", "activations", "block"),
    [("int2", "int8", "lut_kernel"), ("ternary", "e4m3", "lut_kernel"), ("int4", "int8", "mvu")],
)
def test_a_layer_of_a_language_model(weights, activations, block):
    found = verify_layer(
        "stories260k",
        "layers.1.feed_forward.down",
        weights=weights,
        activations=activations,
        block=block,
        vectors=8,
        data=STORIES.parent,
    )
    assert (found.groups, found.rows, found.columns, found.kind) == (1, 64, 172, "linear")
    assert found.checked == 8 * 64 * (2 if block == "mvu" else 1)
    assert found.mismatches == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"block": "lut_kernal"},
            "unknown block 'lut_kernal' (did you mean 'lut_kernel'?); expected one of: mvu, lut_kernel",
        ),
        ({"parameters": {"lanes": 4}}, "unknown parameter of block 'mvu' 'lanes'; expected one of: pe, simd"),
        ({"parameters": {"pe": 0}}, "pe must be a positive integer, not 0"),
        ({"block": "lut_kernel"}, "weights must be integers of up to 4 bits or ternary, not int8n"),
    ],
)
def test_wrong_units(changes, message):
    with pytest.raises(UsageError) as error:
        verify_layer("fmnist-vit", "blocks.0.fc1", weights="int8", activations="int8", **changes)
    assert str(error.value) == message


def test_a_wrong_sum_is_a_mismatch(monkeypatch):
    from dse import verification

    exact = verification._layer_data

    def off_by_one(*arguments):
        data = exact(*arguments)
        data.sums[0, 3, 2] += 1
        return data

    monkeypatch.setattr(verification, "_layer_data", off_by_one)
    found = verify_layer("fmnist-vit", "blocks.0.fc1", weights="int4", activations="int4", vectors=4)
    assert 1 <= found.mismatches <= 2


def test_an_unknown_layer_names_the_nearest():
    with pytest.raises(UsageError) as error:
        verify_layer("fmnist-vit", "blocks.0.fc3", weights="int4", activations="int4")
    assert str(error.value).startswith("unknown layer 'blocks.0.fc3' (did you mean 'blocks.0.fc2'?)")


def test_a_product_of_activations_is_refused():
    with pytest.raises(UsageError) as error:
        verify_layer("fmnist-vit", "blocks.0.attention.scores", weights="int4", activations="int4")
    assert str(error.value) == (
        "layer 'blocks.0.attention.scores' multiplies two activations; this hardware multiplies by weights"
    )
    assert "blocks.0.attention.query" in error.value.expected
