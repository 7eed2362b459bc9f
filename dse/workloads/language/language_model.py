"""What a language workload is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dse.workloads.language.decoder import Decoder


class Tokenizer(Protocol):
    """Text to token ids and back; adds no token that is not in the text.

    Attributes:
        start: id of the token that sequences begin with, where the model was trained so; else None.
    """

    start: int | None

    def encode(self, text: str) -> list[int]:
        """The token ids of *text*, without the start token."""

    def decode(self, tokens: list[int]) -> str:
        """The text of *tokens*."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A trained causal language model with its tokenizer.

    Attributes:
        name: what :func:`~.registry.load_language_model` was given.
        description: the model in a few words.
        source: where the weights come from.
        decoder: float32, in eval mode, no parameter requires gradients.
        tokenizer: of the same source.
        fingerprint: hex sha256 of the files, for cache keys.
    """

    name: str
    description: str
    source: str
    decoder: Decoder = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    fingerprint: str
