"""Folders in the form of Hugging Face, written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dse.workloads.language import language_fingerprint, load_language_model
from quantizers.errors import UsageError
from tests.dse.workloads_language.tiny_decoder import random_tokens
from tests.dse.workloads_language.tiny_folder import decoder_of_config, tensors_of, write_folder

tokenizers = pytest.importorskip("tokenizers", reason="bitfront[language] is not installed")


@pytest.mark.parametrize(
    ("written", "changes"),
    [
        ({}, {}),
        ({"tie_word_embeddings": False}, {"tied_embeddings": False}),
        ({"tie_word_embeddings": "absent"}, {"tied_embeddings": False}),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, {}),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32768}, {"attention_bias": True}),
        ({"num_key_value_heads": "absent"}, {"kv_heads": 6}),
        ({"head_dim": None}, {"head_dim": 4}),
        ({"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {}),
    ],
    ids=str,
)
def test_the_model_is_what_was_written(
    tmp_path: Path, written: dict[str, Any], changes: dict[str, Any]
) -> None:
    original = decoder_of_config(**changes)
    model = load_language_model(write_folder(tmp_path / "m", tensors_of(original), **written))
    assert model.decoder.config == original.config
    tokens = random_tokens(2, 17)
    assert torch.equal(model.decoder(tokens), original(tokens))
    assert not model.decoder.training
    assert not any(p.requires_grad for p in model.decoder.parameters())


def test_tokenizer_does_not_cut_or_fill(tmp_path: Path) -> None:
    name = write_folder(tmp_path / "m", tensors_of(decoder_of_config()))
    tokenizer = load_language_model(name).tokenizer
    assert tokenizer.encode("ab, cdef") == [0, 1, 28, 26, 2, 3, 4, 5]
    assert tokenizer.encode("b") == [1]
    assert tokenizer.decode([0, 1, 28, 26, 2]) == "ab, c"
    assert tokenizer.start is None


def test_start_token_is_found_and_not_encoded(tmp_path: Path) -> None:
    name = write_folder(tmp_path / "m", tensors_of(decoder_of_config()), start=True)
    tokenizer = load_language_model(name).tokenizer
    assert (tokenizer.start, tokenizer.encode("ab")) == (30, [0, 1])


def test_weights_in_several_files_and_in_bfloat16(tmp_path: Path) -> None:
    original = decoder_of_config()
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(original).items()}
    name = write_folder(tmp_path / "m", tensors)
    (tmp_path / "m" / "model.safetensors").unlink()
    half = len(tensors) // 2
    save_file(dict(list(tensors.items())[:half]), tmp_path / "m" / "model-00001-of-00002.safetensors")
    save_file(dict(list(tensors.items())[half:]), tmp_path / "m" / "model-00002-of-00002.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "m" / "consolidated.safetensors")
    loaded = load_language_model(name).decoder.state_dict()
    for key, tensor in original.state_dict().items():
        assert loaded[key].dtype == torch.float32
        assert torch.equal(loaded[key], tensor.bfloat16().float())


def test_tied_output_layer_and_frequencies_in_the_file_are_left_out(tmp_path: Path) -> None:
    original = decoder_of_config()
    tensors = tensors_of(original)
    tensors["lm_head.weight"] = original.head.weight.clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    decoder = load_language_model(write_folder(tmp_path / "m", tensors)).decoder
    assert decoder.head.weight is decoder.embedding.weight


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    tensors = tensors_of(decoder_of_config())
    first, second = (language_fingerprint(write_folder(tmp_path / name, tensors)) for name in "ab")
    tensors["model.norm.weight"][0] += 1
    third = language_fingerprint(write_folder(tmp_path / "c", tensors))
    assert first == second != third


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "unknown architecture in {config} 'GPT2LMHeadModel'; expected one of: LlamaForCausalLM, "
            "MistralForCausalLM, Qwen2ForCausalLM",
        ),
        (
            {"architectures": "absent"},
            "unknown architecture in {config} 'None'; expected one of: LlamaForCausalLM, MistralForCausalLM, "
            "Qwen2ForCausalLM",
        ),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' in {config} is not supported, expected 'silu'"),
        ({"attention_bias": True}, "attention_bias = True in {config} is not supported, expected False"),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 4096},
            "sliding_window = 4096 in {config} is not supported, expected None",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "RoPE of type 'llama3' in {config} is not supported, expected 'default'",
        ),
        ({"vocab_size": "33"}, "vocab_size in {config} must be a positive integer, not '33'"),
        (
            {"num_hidden_layers": "absent"},
            "num_hidden_layers in {config} must be a positive integer, not None",
        ),
        ({"num_key_value_heads": 4}, "query heads must be a multiple of the 4 KV heads, not 6"),
        (
            {"intermediate_size": 41},
            "m: tensor layers.0.feed_forward.gate.weight has shape (40, 24), expected shape (41, 24)",
        ),
        (
            {"num_hidden_layers": 1},
            "m: tensor layers.1.attention_norm.weight has shape (24,), expected no such tensor",
        ),
        ({"tie_word_embeddings": False}, "m: tensor head.weight is missing, expected shape (33, 24)"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, written: dict[str, Any], message: str) -> None:
    name = write_folder(tmp_path / "m", tensors_of(decoder_of_config()), **written)
    with pytest.raises(UsageError) as caught:
        load_language_model(name)
    assert str(caught.value) == message.format(config=tmp_path / "m" / "config.json")


def test_foreign_tensor(tmp_path: Path) -> None:
    tensors = {**tensors_of(decoder_of_config()), "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}
    with pytest.raises(UsageError) as caught:
        load_language_model(write_folder(tmp_path / "m", tensors))
    assert str(caught.value) == (
        "model.safetensors: tensor model.layers.0.self_attn.q_norm.weight belongs to no part of a "
        "LlamaForCausalLM or MistralForCausalLM or Qwen2ForCausalLM"
    )


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files(tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "m"
    name = write_folder(folder, tensors_of(decoder_of_config()))
    (folder / missing).unlink()
    with pytest.raises(UsageError) as caught:
        load_language_model(name)
    assert str(caught.value) == (
        f"{folder} holds no *.safetensors; other kinds of weight files are not read"
        if missing == "model.safetensors"
        else f"{folder / missing} not found: {name} needs a folder with config.json, tokenizer.json and model*.safetensors"
    )


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("config.json", "{path} cannot be read: Expecting value"),
        ("tokenizer.json", "{path} is not a tokenizer of the library tokenizers: "),
        ("model.safetensors", "{path} cannot be read as safetensors: "),
    ],
)
def test_damaged_files(tmp_path: Path, damaged: str, message: str) -> None:
    name = write_folder(tmp_path / "m", tensors_of(decoder_of_config()))
    path = tmp_path / "m" / damaged
    path.write_bytes(b"cut short")
    with pytest.raises(UsageError) as caught:
        load_language_model(name)
    assert str(caught.value).startswith(message.format(path=path))


def test_data_beside_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_language_model("hf:somewhere", tmp_path)
    assert str(caught.value) == f"hf:somewhere names its folder; --data {tmp_path} would have no effect"
