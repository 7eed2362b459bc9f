"""Llama-style models with byte-level tokenizers from GGUF files, read with the library ``gguf``.

Weights are dequantized to float32 by that library. GGUF files hold the rows of query and key projections in
an order for which RoPE turns neighbouring channels; they are put back into the order of the original model,
whose pairs are half a head apart, so that it has the same keys whichever file it was read from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dse.workloads.language.decoder import Decoder, DecoderConfig
from dse.workloads.language.loading import decoder_of
from dse.workloads.language.tokenizer import LibraryTokenizer, byte_level_tokenizer, import_extra
from quantizers.errors import UsageError, unknown_choice

# Of ``tokenizer.ggml.pre``: whether each digit is a word of its own.
_SINGLE_DIGITS = {"smollm": True, "gpt-2": False}
_CONTROL_TOKEN = 3  # of ``tokenizer.ggml.token_type``

_LAYER_TENSORS = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_norm": "feed_forward_norm",
    "ffn_gate": "feed_forward.gate",
    "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.down",
}
_TENSORS = {"token_embd": "embedding", "output_norm": "norm", "output": "head"}


class GgufFile:
    """One file, opened.

    Raises:
        UsageError: it is not a GGUF file, or not one of a Llama-style model.
        MissingExtraError: the library ``gguf`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = import_extra("gguf", f"reading {path.name}")
        try:
            self._reader = self._library.GGUFReader(path)
        except (OSError, ValueError, IndexError) as error:
            msg = f"{path} cannot be read as a GGUF file: {error}"
            raise UsageError(msg, given=path) from error
        architecture = self._value("general.architecture")
        if architecture != "llama":
            raise unknown_choice(f"architecture in {path.name}", architecture, ["llama"])

    def config(self) -> DecoderConfig:
        """The geometry that the metadata gives.

        Raises:
            UsageError: a value is missing, or RoPE is scaled.
        """
        if self._value("llama.rope.scaling.type", "none") != "none":
            msg = f"{self.path.name} scales its rotary positions, which is not supported"
            raise UsageError(msg, given=self._value("llama.rope.scaling.type"), expected=["none"])
        hidden, heads = self._value("llama.embedding_length"), self._value("llama.attention.head_count")
        return DecoderConfig(
            layers=self._value("llama.block_count"),
            hidden=hidden,
            ffn=self._value("llama.feed_forward_length"),
            query_heads=heads,
            kv_heads=self._value("llama.attention.head_count_kv", heads),
            head_dim=self._value("llama.rope.dimension_count", hidden // heads),
            vocabulary=len(self._value("tokenizer.ggml.tokens")),
            context=self._value("llama.context_length"),
            rope_theta=self._value("llama.rope.freq_base", 10000.0),
            norm_eps=self._value("llama.attention.layer_norm_rms_epsilon"),
            tied_embeddings="output.weight" not in {tensor.name for tensor in self._reader.tensors},
        )

    def decoder(self) -> Decoder:
        """The model, in float32.

        Raises:
            UsageError: a tensor is missing, unknown or of a wrong shape.
        """
        config = self.config()
        tensors = {self._module_name(t.name): self._tensor(t, config) for t in self._reader.tensors}
        return decoder_of(config, tensors, self.path.name)

    def tokenizer(self) -> LibraryTokenizer:
        """The tokenizer that the metadata gives; sequences begin with a token where they say so.

        Raises:
            UsageError: it is not byte-level BPE with a known splitting into words.
        """
        model = self._value("tokenizer.ggml.model")
        if model != "gpt2":
            raise unknown_choice(f"tokenizer model in {self.path.name}", model, ["gpt2"])
        splitting = self._value("tokenizer.ggml.pre", "gpt-2")
        if splitting not in _SINGLE_DIGITS:
            raise unknown_choice(f"tokenizer.ggml.pre in {self.path.name}", splitting, _SINGLE_DIGITS)
        tokens, types = self._value("tokenizer.ggml.tokens"), self._value("tokenizer.ggml.token_type")
        special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
        merges = self._value("tokenizer.ggml.merges")
        tokenizer = byte_level_tokenizer(tokens, merges, special, single_digits=_SINGLE_DIGITS[splitting])
        if self._value("tokenizer.ggml.add_bos_token", False):
            tokenizer.start = self._value("tokenizer.ggml.bos_token_id")
        return tokenizer

    _REQUIRED = object()

    def _value(self, key: str, default: Any = _REQUIRED) -> Any:
        field = self._reader.fields.get(key)
        if field is not None:
            return field.contents()
        if default is GgufFile._REQUIRED:
            msg = f"{self.path.name} has no {key}: expected the GGUF file of a Llama-style language model"
            raise UsageError(msg, given=self.path, expected=[key])
        return default

    def _module_name(self, name: str) -> str:
        """``blk.3.attn_q.weight`` as ``layers.3.attention.query.weight``."""
        parts = name.split(".")
        if parts[0] == "blk" and len(parts) == 4 and parts[2] in _LAYER_TENSORS:
            return f"layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.{parts[3]}"
        if len(parts) == 2 and parts[0] in _TENSORS:
            return f"{_TENSORS[parts[0]]}.{parts[1]}"
        raise unknown_choice(f"tensor in {self.path.name}", name, [*_TENSORS, *_LAYER_TENSORS])

    def _tensor(self, tensor: Any, config: DecoderConfig) -> Tensor:
        values = self._library.dequantize(tensor.data, tensor.tensor_type)
        weights = torch.from_numpy(values.copy())
        if ".attn_q." in tensor.name:
            return halves_apart(weights, config.query_heads)
        return halves_apart(weights, config.kv_heads) if ".attn_k." in tensor.name else weights


def halves_apart(rows: Tensor, heads: int) -> Tensor:
    """Rows of *heads* heads, from neighbouring pairs (2i, 2i+1) to pairs (i, i + head_dim/2)."""
    pairs = rows.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()
