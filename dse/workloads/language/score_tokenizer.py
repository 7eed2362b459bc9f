"""Byte-pair encoding by scores, as SentencePiece models are exported for llama2.c.

The file is an int32 (length of the longest token), then for each token its float32 score, its length as an
int32 and its bytes. Ids 0, 1 and 2 are unknown, start and end; ids 3 to 258 are the single bytes.
"""

from __future__ import annotations

import heapq
import re
import struct
from pathlib import Path

from quantizers.errors import UsageError

START = 1
_FIRST_BYTE = 3
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


class ScoreTokenizer:
    """Joins the two neighbouring tokens whose union has the highest score, the leftmost of equals, until no
    union is a token.

    Args:
        tokens: the bytes of each token, by id.
        scores: one each; a union with a higher score is made earlier.
    """

    def __init__(self, tokens: list[bytes], scores: list[float]) -> None:
        self.start: int | None = START
        self._tokens = tokens
        self._scores = scores
        self._ids: dict[bytes, int] = {}
        for index, token in enumerate(tokens):
            self._ids.setdefault(token, index)

    @classmethod
    def from_file(cls, path: Path, count: int) -> ScoreTokenizer:
        """The *count* tokens in *path*.

        Raises:
            UsageError: the file is shorter or longer than *count* tokens.
        """
        content = path.read_bytes()
        tokens, scores, offset = [], [], 4
        try:
            for _ in range(count):
                score, length = struct.unpack_from("<fi", content, offset)
                (token,) = struct.unpack_from(f"{length}s", content, offset + 8)
                offset += 8 + length
                tokens.append(token)
                scores.append(score)
        except struct.error as error:
            msg = f"{path.name} ends after {len(tokens)} of {count} tokens"
            raise UsageError(msg, given=len(tokens), expected=[str(count)]) from error
        if offset != len(content):
            msg = f"{path.name} holds more than {count} tokens"
            raise UsageError(msg, given=path, expected=[str(count)])
        return cls(tokens, scores)

    def encode(self, text: str) -> list[int]:
        """The token ids of *text*, which is taken as if a blank stood before it."""
        if not text:
            return []
        pieces: list[int] = []
        for character in " " + text:
            encoded = character.encode()
            known = self._ids.get(encoded)
            pieces += [known] if known is not None else [_FIRST_BYTE + byte for byte in encoded]
        return _Merging(self._tokens, self._scores, self._ids, pieces).result()

    def decode(self, tokens: list[int]) -> str:
        """The text of *tokens*, without the blank before it; bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(self._bytes(token) for token in tokens).decode(errors="replace")
        return text.removeprefix(" ")

    def _bytes(self, token: int) -> bytes:
        if token <= 2:  # no text of their own
            return b""
        single = _BYTE.fullmatch(self._tokens[token])
        return bytes.fromhex(single[1].decode()) if single else self._tokens[token]


class _Merging:
    """One text: a linked list of tokens and a heap of the unions that are possible."""

    def __init__(
        self, tokens: list[bytes], scores: list[float], ids: dict[bytes, int], pieces: list[int]
    ) -> None:
        self._tokens, self._scores, self._ids = tokens, scores, ids
        self._pieces: list[int | None] = list(pieces)
        self._next = list(range(1, len(pieces) + 1))
        self._previous = list(range(-1, len(pieces) - 1))
        self._heap: list[tuple[float, int, int, int, int]] = []
        for left in range(len(pieces) - 1):
            self._offer(left)

    def result(self) -> list[int]:
        while self._heap:
            _, left, union, first, second = heapq.heappop(self._heap)
            right = self._next[left]
            if right < len(self._pieces) and (self._pieces[left], self._pieces[right]) == (first, second):
                self._join(left, right, union)
        return [piece for piece in self._pieces if piece is not None]

    def _offer(self, left: int) -> None:
        """Puts the union of the token at *left* and the one after it on the heap, if it is a token."""
        right = self._next[left] if left >= 0 else len(self._pieces)
        if right == len(self._pieces):
            return
        first, second = self._pieces[left], self._pieces[right]
        if first is None or second is None:
            return
        union = self._ids.get(self._tokens[first] + self._tokens[second])
        if union is not None:
            heapq.heappush(self._heap, (-self._scores[union], left, union, first, second))

    def _join(self, left: int, right: int, union: int) -> None:
        self._pieces[left], self._pieces[right] = union, None
        after = self._next[right]
        self._next[left] = after
        if after < len(self._pieces):
            self._previous[after] = left
        self._offer(left)
        self._offer(self._previous[left])
