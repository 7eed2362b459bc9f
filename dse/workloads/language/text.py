"""Texts to measure a language model on, cut into windows."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dse.workloads.hashing import text_sha256
from dse.workloads.language.language_model import LanguageModel
from quantizers.errors import UsageError

PYTHON_REFERENCE = "Python language reference (pydoc_data.topics)"


@dataclass(frozen=True)
class Text:
    """A text with its name.

    Attributes:
        name: quote it with every figure.
        content: the text itself.
        sha256: of the content as it is here, in hex.
    """

    name: str
    content: str = field(repr=False)

    @property
    def sha256(self) -> str:
        return text_sha256(self.content)


@dataclass(frozen=True, eq=False)
class Windows:
    """The first windows of a text as a model's tokenizer splits it.

    Attributes:
        text: where they come from.
        tokens: int64, shape (windows, length); each window is a sequence of its own.
        start_token: id that every window begins with, or None.
    """

    text: Text
    tokens: Tensor
    start_token: int | None

    @property
    def first_predicted(self) -> int:
        """The first position in a window that counts: the one after the first token of the text."""
        return 1 if self.start_token is None else 2


def load_text(path: Path | None = None) -> Text:
    """The UTF-8 text in *path*, every line end as a line feed.

    Without a path the Python language reference that comes with every Python. It differs between Python
    versions; its hash tells them apart.

    Raises:
        UsageError: the file cannot be read as UTF-8, or is empty.
    """
    if path is None:
        topics = importlib.import_module("pydoc_data.topics").topics
        return Text(PYTHON_REFERENCE, "\n".join(topics[name] for name in sorted(topics)))
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"text {path} cannot be read as UTF-8: {error}"
        raise UsageError(msg, given=path) from error
    if not content:
        msg = f"text {path} is empty"
        raise UsageError(msg, given=path)
    return Text(path.name, content)


def windows_of(model: LanguageModel, text: Text, *, length: int = 512, count: int = 6) -> Windows:
    """The first *count* windows of *length* tokens, one after the other, of the whole text's tokens.

    Where the model's sequences begin with a start token, each window does, and holds one token of the text
    less.

    Raises:
        UsageError: *length* is out of range, or the text has too few tokens.
    """
    start = model.tokenizer.start
    used = 0 if start is None else 1
    _check_size(model, length, count, used)
    ids = model.tokenizer.encode(text.content)
    taken = length - used
    if len(ids) < count * taken:
        there = len(ids) // taken
        msg = (
            f"{text.name} has {len(ids)} tokens of {model.name}, too few for {count} windows of {taken}; "
            f"it has {there}"
        )
        raise UsageError(msg, given=count, expected=[f"at most {there} windows"])
    tokens = torch.tensor(ids[: count * taken]).view(count, taken)
    if start is not None:
        tokens = torch.cat([torch.full((count, 1), start), tokens], dim=1)
    return Windows(text, tokens, start)


def _check_size(model: LanguageModel, length: int, count: int, used: int) -> None:
    """*used* tokens of a window are not of the text."""
    context = model.decoder.config.context
    if not used + 2 <= length <= context:
        msg = f"windows of {model.name} hold {used + 2} to {context} tokens, not {length}"
        raise UsageError(msg, given=length, expected=[f"{used + 2} to {context}"])
    if count < 1:
        msg = f"the number of windows must be positive, not {count}"
        raise UsageError(msg, given=count)
