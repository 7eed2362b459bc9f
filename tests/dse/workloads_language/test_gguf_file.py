"""GGUF files written here with the library itself are read as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dse.workloads.language import Decoder
from dse.workloads.language.gguf_file import GgufFile, halves_apart
from quantizers.errors import MissingExtraError, UsageError
from tests.dse.workloads_language.tiny_decoder import random_decoder, random_tokens

gguf = pytest.importorskip("gguf", reason="bitfront[language] is not installed")
pytest.importorskip("tokenizers", reason="bitfront[language] is not installed")

NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}
# The byte alphabet of GPT-2 writes a blank as G with a dot and a line feed as C with a dot.
TOKENS = ["<|end|>", *"abcdehilnortw0123456789", "Ġ", "Ċ", "he", "Ġt", "Ġthe", "10", "Ã", "©"]
MERGES = ["h e", "Ġ t", "Ġt he", "1 0"]
GEOMETRY: dict[str, Any] = {
    "hidden": 32,
    "ffn": 64,
    "query_heads": 4,
    "rope_theta": 300.0,
    "norm_eps": 0.0625,
    "vocabulary": len(TOKENS),
}


def their_name(name: str) -> str:
    if name.startswith("layers."):
        _, index, module = name.split(".", 2)
        module, _, kind = module.rpartition(".")
        return f"blk.{index}.{NAMES[module]}.{kind}"
    return {
        "embedding.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "head.weight": "output.weight",
    }[name]


def pairs_together(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row i of the first half of a head, then row i of the second half, and so on."""
    head_dim = len(rows) // heads
    order = [
        h * head_dim + i + half
        for h in range(heads)
        for i in range(head_dim // 2)
        for half in (0, head_dim // 2)
    ]
    return rows[order]


def write_file(path: Path, decoder: Decoder, *, q8: bool = False, skip: str = "", **changes: Any) -> Path:
    config = decoder.config
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.query_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_context_length(config.context)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if "scaling" in changes:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(changes.get("starts", False))
    for name, tensor in decoder.state_dict().items():
        if name == skip or (name == "head.weight" and config.tied_embeddings):
            continue
        values = tensor.numpy()
        for part, heads in (("query", config.query_heads), ("key", config.kv_heads)):
            values = pairs_together(values, heads) if f".{part}." in name else values
        kind = gguf.GGMLQuantizationType.Q8_0 if q8 and values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(their_name(name), gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False}, {"kv_heads": 4}], ids=str)
def test_the_model_is_what_was_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    original = random_decoder(**{**GEOMETRY, **changes})
    decoder = GgufFile(write_file(tmp_path / "m.gguf", original)).decoder()
    assert decoder.config == original.config
    tokens = random_tokens(2, 17) % len(TOKENS)
    assert torch.equal(decoder(tokens), original(tokens))


def test_quantized_tensors(tmp_path: Path) -> None:
    """Q8_0: blocks of 32 share a float16 scale, the largest magnitude / 127."""
    original = random_decoder(**GEOMETRY)
    loaded = GgufFile(write_file(tmp_path / "m.gguf", original, q8=True)).decoder().state_dict()
    for name, tensor in original.state_dict().items():
        if tensor.dim() == 1:
            assert torch.equal(loaded[name], tensor)
            continue
        blocks = tensor.reshape(-1, 32)
        scale = blocks.abs().amax(1, keepdim=True) / 127
        error = (loaded[name].reshape(-1, 32) - blocks).abs()
        assert (error <= 0.5 * scale + 127 * scale * 2**-11).all()
        assert error.max() > 0


def test_rows_go_back_to_where_they_were() -> None:
    rows = torch.arange(12.0)[:, None]
    stored = torch.from_numpy(pairs_together(rows.numpy(), 2))
    assert stored[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(halves_apart(stored, 2), rows)


def test_tokenizer(tmp_path: Path) -> None:
    file = GgufFile(write_file(tmp_path / "m.gguf", random_decoder(**GEOMETRY)))
    tokenizer = file.tokenizer()
    tokens = tokenizer.encode("a the<|end|>he\né10")
    assert [TOKENS[token] for token in tokens] == ["a", "Ġthe", "<|end|>", "he", "Ċ", "Ã", "©", "1", "0"]
    assert tokenizer.decode(tokens) == "a the<|end|>he\né10"
    assert tokenizer.start is None


def test_digits_that_stay_together_and_a_start_token(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.gguf", random_decoder(**GEOMETRY), pre="gpt-2", starts=True)
    tokenizer = GgufFile(path).tokenizer()
    assert [TOKENS[token] for token in tokenizer.encode("a10")] == ["a", "10"]
    assert tokenizer.start == 0


def _read(path: Path) -> None:
    file = GgufFile(path)
    file.decoder()
    file.tokenizer()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, "unknown architecture in m.gguf 'gpt2'; expected one of: llama"),
        ({"scaling": True}, "m.gguf scales its rotary positions, which is not supported"),
        ({"tokenizer": "llama"}, "unknown tokenizer model in m.gguf 'llama'; expected one of: gpt2"),
        ({"pre": "qwen2"}, "unknown tokenizer.ggml.pre in m.gguf 'qwen2'; expected one of: smollm, gpt-2"),
        (
            {"skip": "layers.1.feed_forward.up.weight"},
            "m.gguf: tensor layers.1.feed_forward.up.weight is missing, expected shape (64, 32)",
        ),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_file(tmp_path / "m.gguf", random_decoder(**GEOMETRY), **changes)
    with pytest.raises(UsageError) as caught:
        _read(path)
    assert str(caught.value) == message


@pytest.mark.parametrize("length", [0, 9, 40, 2000])
def test_damaged_files(tmp_path: Path, length: int) -> None:
    path = write_file(tmp_path / "m.gguf", random_decoder(**GEOMETRY))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError) as caught:
        GgufFile(path)
    assert str(caught.value).startswith(f"{path} cannot be read as a GGUF file: ")


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError) as caught:
        GgufFile(tmp_path / "m.gguf")
    assert str(caught.value) == "reading m.gguf needs the package gguf: pip install 'bitfront[language]'"
