"""A tiny random decoder, and a tokenizer of characters, for tests that need no trained model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dse.workloads.language import Decoder, DecoderConfig, LanguageModel

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,\nTHE"
SETTINGS: dict[str, Any] = {
    "layers": 2,
    "hidden": 24,
    "ffn": 40,
    "query_heads": 6,
    "kv_heads": 2,
    "head_dim": 8,
    "vocabulary": len(ALPHABET),
    "context": 64,
}


class CharacterTokenizer:
    """One token a character of `ALPHABET`."""

    def __init__(self, start: int | None = None) -> None:
        self.start = start

    def encode(self, text: str) -> list[int]:
        return [ALPHABET.index(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(ALPHABET[token] for token in tokens)


def random_decoder(seed: int = 7, **changes: Any) -> Decoder:
    """Weights large enough that attention is far from uniform; norms that are not all one."""
    decoder = Decoder(DecoderConfig(**{**SETTINGS, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.4 * noise)
    return decoder.eval().requires_grad_(False)


def random_tokens(batch: int, count: int) -> Tensor:
    return torch.randint(len(ALPHABET), (batch, count), generator=torch.Generator().manual_seed(11))


def tiny_model(start: int | None = None, **changes: Any) -> LanguageModel:
    decoder = random_decoder(**changes)
    return LanguageModel("tiny", "random", "this test", decoder, CharacterTokenizer(start), "0" * 64)
