from __future__ import annotations

import pytest

from costmodel.geometries import (
    GEOMETRIES,
    Decoder,
    Geometry,
    LatentDecoder,
    Matrix,
    VisionEncoder,
    find_geometry,
)
from quantizers.errors import UsageError


def decoder(name: str) -> Decoder:
    geometry = find_geometry(name)
    assert isinstance(geometry, Decoder)
    return geometry


@pytest.mark.parametrize(
    ("name", "parameters"), [("MiniCPM-1.2B", 1_247_442_432), ("MiniCPM-2.4B", 2_442_057_984)]
)
def test_published_parameters_without_embeddings(name: str, parameters: int) -> None:
    assert decoder(name).non_embedding_parameters == parameters


# Published sizes; Llama and BitNet have an embedding beside the head, Phi-2 biases and norms too.
@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("Llama-2-7B", 6_738_415_616),
        ("Llama-3-8B", 8_030_261_248),
        ("SmolLM2-135M", 134_515_008),
    ],
)
def test_published_parameters_with_embeddings(name: str, total: int) -> None:
    model = decoder(name)
    tied = name == "SmolLM2-135M"
    assert model.non_embedding_parameters + (1 if tied else 2) * model.head_weights == total


@pytest.mark.parametrize(
    ("name", "billions"),
    [("BitNet-3B", 3.32), ("MiniCPM4-8B", 7.9), ("MiniCPM4-0.5B", 0.434), ("Phi-2", 2.65)],
)
def test_weights_with_the_head_are_about_the_published_size(name: str, billions: float) -> None:
    model = decoder(name)
    assert (model.layer_weights + model.head_weights) / 1e9 == pytest.approx(billions, rel=0.005)


def test_matrices_of_grouped_query_attention() -> None:
    llama = decoder("Llama-3-8B")
    assert llama.attention_matrices == (
        Matrix(name="q", rows=4096, columns=4096),
        Matrix(name="k", rows=1024, columns=4096),
        Matrix(name="v", rows=1024, columns=4096),
        Matrix(name="o", rows=4096, columns=4096),
    )
    assert [m.name for m in llama.feed_forward_matrices] == ["gate", "up", "down"]
    assert llama.cached_values == 2 * 32 * 8 * 128


def test_matrices_of_latent_attention() -> None:
    model = find_geometry("MiniCPM3-4B")
    assert isinstance(model, LatentDecoder)
    assert [(m.rows, m.columns) for m in model.attention_matrices] == [
        (768, 2560), (3840, 768), (288, 2560), (5120, 256), (2560, 2560),
    ]  # fmt: skip
    assert model.cached_values == 62 * 288
    assert (model.layer_weights + model.head_weights) / 1e9 == pytest.approx(4.07, abs=0.01)


def test_matrices_of_a_vision_encoder() -> None:
    model = find_geometry("SigLIP-So400m/14")
    assert isinstance(model, VisionEncoder)
    assert model.layer_weights == 27 * (4 * 1152 * 1152 + 2 * 1152 * 4304)


def test_matrices_that_multiply_the_same_vector_are_one_product() -> None:
    assert decoder("Llama-3-8B").products == (
        Matrix(name="q+k+v", rows=6144, columns=4096),
        Matrix(name="o", rows=4096, columns=4096),
        Matrix(name="gate+up", rows=2 * 14336, columns=4096),
        Matrix(name="down", rows=4096, columns=14336),
    )
    assert [m.name for m in find_geometry("MiniCPM3-4B").products] == [
        "q_down+kv_down", "q_up", "kv_up", "o", "gate+up", "down",
    ]  # fmt: skip
    assert [m.name for m in find_geometry("Phi-2").products] == ["q+k+v", "o", "up", "down"]


@pytest.mark.parametrize("geometry", list(GEOMETRIES.values()))
def test_products_have_the_weights_of_the_matrices(geometry: Geometry) -> None:
    assert geometry.layers * sum(m.weights for m in geometry.products) == geometry.layer_weights


def test_every_geometry_has_a_source_and_its_own_name() -> None:
    assert len(GEOMETRIES) == 12
    for name, geometry in GEOMETRIES.items():
        assert geometry.name == name
        assert geometry.source


def test_only_gated_models_have_all_their_parameters_counted() -> None:
    with pytest.raises(UsageError, match=r"^the parameters of Phi-2 besides its matrices are not modelled$"):
        _ = decoder("Phi-2").non_embedding_parameters


def test_unknown_model_lists_the_choices() -> None:
    with pytest.raises(UsageError) as caught:
        find_geometry("llama-2-7b")
    assert str(caught.value) == (
        "unknown model 'llama-2-7b' (did you mean 'Llama-2-7B'?); expected one of: "
        "MiniCPM-1.2B, MiniCPM-2.4B, MiniCPM3-4B, MiniCPM4-8B, MiniCPM4-0.5B, Llama-2-7B, Llama-3-8B, "
        "Phi-2, BitNet-3B, SmolLM2-135M, SigLIP-So400m/14, EVA-CLIP-g/14"
    )
