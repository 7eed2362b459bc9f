"""What stands between a language model and its cache of keys and values.

A decoder hands the new keys and values of a layer to a `KeyValueStore` and computes its attention from what
the store gives back. A codec is measured by wrapping it in a store::

    class Rounded(HistoryStore):
        def see(self, layer, keys, values):
            return Seen.always(my_codec(keys), my_codec(values))

**Time.** The query at position p runs after token p was appended, as hardware does it: it sees tokens 0 to p.
What it sees of token j may depend on p, since a codec may hold new tokens in full until a group of them is
complete. A store therefore gives `Version` objects: a tensor of all tokens, and for each token the positions
of the queries that see it in this form. One pass over a window of n tokens then computes exactly what n
decoding steps would, at the price of one attention product a version.

**Two measurements.** *Whole window*: the store transforms all tokens of the window at once and shows every
query the result (`Seen.always`); groups may then hold tokens later than the query. *Streaming*: what a query
at position p sees depends on tokens 0 to p only. A store whose `HistoryStore.see` is honest in that sense
gives the same logits in one pass over a window and token by token; tests compare the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from quantizers.errors import UsageError

# Later than any position.
NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True, eq=False)
class Version:
    """Keys, or values, in one form, and which queries see them so.

    Attributes:
        tensor: float32, shape (batch, kv_heads, tokens, head_dim), for tokens 0 to the newest.
        since: int64, shape (tokens,): position of the first query that sees the token in this form; None
            where it is the token's own.
        until: int64, shape (tokens,): position of the first query that does not see it so any more; None
            where there is no such query. ``until <= since`` is a token that nobody sees in this form.
    """

    tensor: Tensor
    since: Tensor | None = None
    until: Tensor | None = None

    @property
    def always(self) -> bool:
        """Whether every token is seen in this form by every query from its own position on."""
        return self.since is None and self.until is None

    def visible(self, positions: Tensor) -> Tensor:
        """Which query sees which token in this form: bool, shape (len(positions), tokens)."""
        tokens = torch.arange(self.tensor.shape[2])
        query = positions[:, None]
        seen = tokens[None, :] <= query
        if self.since is not None:
            seen = seen & (self.since <= query)
        if self.until is not None:
            seen = seen & (query < self.until)
        return seen


@dataclass(frozen=True, eq=False)
class Seen:
    """The keys and the values that the queries of one update see.

    No query may see a token in two versions of the keys, nor in two of the values. A token that a query sees
    in no version is not there for it (evicted); keys and values must agree in that.
    """

    keys: Sequence[Version]
    values: Sequence[Version]

    @classmethod
    def always(cls, keys: Tensor, values: Tensor) -> Seen:
        """One form of all tokens, (batch, kv_heads, tokens, head_dim) each, for all queries."""
        return cls([Version(keys)], [Version(values)])


def replaced(exact: Tensor, coded: Tensor, at: Tensor) -> list[Version]:
    """Each token as in *exact* until the query at position *at* of it, and as in *coded* from that query on.

    Args:
        exact: shape (batch, kv_heads, tokens, head_dim).
        coded: the same shape; tokens that are never coded may hold anything finite.
        at: int64, shape (tokens,); `NEVER` for tokens that stay as they are.
    """
    return [Version(exact, until=at), Version(coded, since=at)]


@dataclass(frozen=True)
class Pass:
    """New tokens that a decoder takes at once.

    Attributes:
        start: position of the first; where it is not where the pass before ended, the sequence begins again.
        stop: one past the last.
        counts: whether what its queries predict is what the store is measured by.
    """

    start: int
    stop: int
    counts: bool = True


def steps(length: int, step: int, *, start: int = 0) -> tuple[Pass, ...]:
    """Passes of *step* tokens, the last one of what is left, from *start* to *length*."""
    return tuple(Pass(first, min(first + step, length)) for first in range(start, length, step))


class KeyValueStore(Protocol):
    """Holds keys and values of all layers, for one batch of sequences that have the same length.

    For each pass over new tokens the decoder calls `update` once a layer, layer 0 first, and then `finish`.

    Attributes:
        rope_before_store: whether the keys are to be rotated by their position before the store sees them.
            False: it gets and gives keys before RoPE, and the decoder rotates what it gives.
    """

    rope_before_store: bool

    def update(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> Seen:
        """Append new tokens of one layer and show their queries what is stored.

        Args:
            layer: index of the layer, from 0.
            keys: float32, shape (batch, kv_heads, new, head_dim).
            values: the same shape.
            positions: int64, shape (new,): consecutive, and the first is the number of tokens stored so far.

        Returns:
            All tokens from position 0 to the last new one, for queries at *positions*.
        """

    def finish(self) -> None:
        """All layers have been updated: what needs several layers at once can be done here."""

    def reset(self) -> None:
        """Forget all tokens: a new sequence begins."""


@runtime_checkable
class SelectsTokens(Protocol):
    """What a `KeyValueStore` has beside its methods where each query attends to some tokens only."""

    def select(self, layer: int, queries: Tensor, seen: Seen, start: int) -> Tensor:
        """Which tokens, of those that it sees, each query attends to.

        Args:
            layer: index of the layer.
            queries: shape (batch, query_heads, new, head_dim), rotated by their positions; a KV head serves
                consecutive query heads.
            seen: what `KeyValueStore.update` showed, with rotated keys.
            start: position of the first query.

        Returns:
            bool, shape (batch, kv_heads, new, tokens); a query must keep a token that it sees.
        """


class HistoryStore(ABC):
    """A store that keeps all keys and values as they came; what is shown of them is a pure function.

    A subclass gives `see`. Memory and time are those of a measurement and not of a cache: the codec's work is
    done again for all tokens at each update.
    """

    rope_before_store: bool = False

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @abstractmethod
    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        """What queries see of *keys* and *values*, (batch, kv_heads, tokens, head_dim) from position 0 on."""

    def update(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> Seen:
        """Append, and show what `see` makes of all tokens.

        Raises:
            UsageError: *positions* do not continue the tokens that are stored.
        """
        stored = self._keys[layer].shape[2] if layer in self._keys else 0
        if int(positions[0]) != stored or int(positions[-1]) != stored + keys.shape[2] - 1:
            msg = (
                f"layer {layer} holds {stored} tokens, so the next positions are {stored} to "
                f"{stored + keys.shape[2] - 1}, not {int(positions[0])} to {int(positions[-1])}"
            )
            raise UsageError(msg, given=positions.tolist())
        if stored:
            keys = torch.cat([self._keys[layer], keys], dim=2)
            values = torch.cat([self._values[layer], values], dim=2)
        self._keys[layer], self._values[layer] = keys, values
        return self.see(layer, keys, values)

    def finish(self) -> None:  # noqa: B027 -- most codecs treat each layer by itself
        """Nothing to do."""

    def reset(self) -> None:
        """Forget all tokens."""
        self._keys.clear()
        self._values.clear()


class ExactStore(HistoryStore):
    """Shows keys and values as they came."""

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        return Seen.always(keys, values)
