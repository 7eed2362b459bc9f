"""Tokenizers that the library ``tokenizers`` runs (extra ``language``)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from quantizers.errors import MissingExtraError, UsageError


def import_extra(package: str, what: str) -> ModuleType:
    """The module *package* of the extra ``language``.

    Raises:
        MissingExtraError: it is not installed; *what* is what needs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        msg = f"{what} needs the package {package}: pip install 'bitfront[language]'"
        raise MissingExtraError(msg) from error


class LibraryTokenizer:
    """A ``tokenizers.Tokenizer``, asked for the tokens of the text only."""

    def __init__(self, inner: Any, start: int | None = None) -> None:
        self._inner = inner
        self.start = start

    def encode(self, text: str) -> list[int]:
        """The token ids of *text*."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """The text of *tokens*, special ones included."""
        text: str = self._inner.decode(tokens, skip_special_tokens=False)
        return text

    @classmethod
    def from_file(cls, path: Path) -> LibraryTokenizer:
        """A ``tokenizer.json``; the start token is what it puts before a text by itself.

        Raises:
            UsageError: it is not one.
            MissingExtraError: the library is not installed.
        """
        library = import_extra("tokenizers", f"the tokenizer {path.name}")
        try:
            inner = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            msg = f"{path} is not a tokenizer of the library tokenizers: {error}"
            raise UsageError(msg, given=path) from error
        inner.no_truncation()
        inner.no_padding()
        plain, complete = (inner.encode("a", add_special_tokens=added).ids for added in (False, True))
        begins = len(complete) > len(plain) and complete[1 : len(plain) + 1] == plain
        return cls(inner, complete[0] if begins else None)


def byte_level_tokenizer(
    tokens: Sequence[str], merges: Sequence[str], special: Sequence[str], *, single_digits: bool
) -> LibraryTokenizer:
    """Byte-pair encoding over the byte alphabet of GPT-2.

    Args:
        tokens: the vocabulary, in the order of the ids.
        merges: pairs ``"left right"``, the most urgent first.
        special: tokens that are matched in the text as a whole.
        single_digits: whether each digit is a word of its own.
    """
    library = import_extra("tokenizers", "the tokenizer of a GGUF file")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    left_right = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    inner = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=left_right))
    words = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if single_digits:
        digits = library.pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = library.pre_tokenizers.Sequence([digits, words])
    else:
        inner.pre_tokenizer = words
    inner.decoder = library.decoders.ByteLevel()
    inner.add_special_tokens([library.AddedToken(token, normalized=False, special=True) for token in special])
    return LibraryTokenizer(inner)
