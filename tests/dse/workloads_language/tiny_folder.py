"""A tiny random decoder as a folder in the form of Hugging Face, and a text of its alphabet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from dse.workloads.language import Decoder
from tests.dse.workloads_language.tiny_decoder import ALPHABET, random_decoder, random_tokens

tokenizers = pytest.importorskip("tokenizers", reason="bitfront[language] is not installed")

NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": len(ALPHABET),
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-4,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


def their_name(name: str) -> str:
    if name.startswith("layers."):
        _, index, module = name.split(".", 2)
        module, _, kind = module.rpartition(".")
        return f"model.layers.{index}.{NAMES[module]}.{kind}"
    return (
        name.replace("embedding.", "model.embed_tokens.")
        .replace("norm.", "model.norm.")
        .replace("head.", "lm_head.")
    )


def tensors_of(decoder: Decoder) -> dict[str, Tensor]:
    found = {their_name(name): tensor.clone() for name, tensor in decoder.state_dict().items()}
    if decoder.config.tied_embeddings:
        del found["lm_head.weight"]
    return found


def write_folder(folder: Path, tensors: dict[str, Tensor], start: bool = False, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {character: index for index, character in enumerate(ALPHABET)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.decoder = tokenizers.decoders.Fuse()
    inner.enable_truncation(4)
    inner.enable_padding(length=3)
    if start:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="T $A", special_tokens=[("T", 30)]
        )
    inner.save(str(folder / "tokenizer.json"))
    return f"hf:{folder}"


def decoder_of_config(**changes: Any) -> Decoder:
    return random_decoder(rope_theta=500.0, norm_eps=1e-4, **changes)


def tiny_model_folder(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A model's folder and the file of a text, in *folder*; *changes* are called alike in both forms."""
    write_folder(folder / "model", tensors_of(decoder_of_config(**changes)), **changes)
    text = folder / "text.txt"
    text.write_text("".join(ALPHABET[token] for token in random_tokens(1, 400)[0]))
    return folder / "model", text
