"""A cache whose adjacent layers are merged, as a store that a language model runs with.

The first pass of a sequence is the prefill: its queries see both layers of a pair as 16-bit integers, and at
its end the pair is merged and the tokens to retain are chosen (arXiv 2405.14366, section 3). Later passes are
decoding: a query sees the tokens of earlier passes merged and those of its own pass in 16 bits, since the
lower layer's vectors wait for the upper layer's. Tokens of later passes are merged when the pass ends, and
never retained. First and newest tokens that are kept stay as they are.

*Whole window*: the first pass is a prefill of the whole window, and in a second one every query sees all of
its tokens as the first pass left them in the cache, all layers of it: the lower layer's merged tokens depend
on the upper layer's, so one pass cannot show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from quantizers.errors import UsageError
from quantizers.kv_cache.stores import StoredBits
from quantizers.kv_store import HistoryStore, Pass, Seen

if TYPE_CHECKING:
    from quantizers.kv_cache.merge_plan import MergePlan

IntegerArray = npt.NDArray[Any]


class MergedStore(HistoryStore):
    """Merges a plan's pairs of layers after each pass; other layers go through their codecs.

    Args:
        plan: pairs, settings and codecs.
        whole_window: a window is run twice, see above. Default: streaming.
    """

    def __init__(self, plan: MergePlan, *, whole_window: bool = False) -> None:
        super().__init__()
        self.plan = plan
        self.rope_before_store = plan.rope
        self._whole_window = whole_window
        self._alone = plan.layers.store(whole_window=whole_window)
        self._merged: dict[int, IntegerArray] = {}
        self._is_paired = {layer for pair in plan.pairs for layer in pair}
        # Of all sequences so far: vectors that were retained, of each pair, and those that could have been.
        self._retained = np.zeros(len(plan.pairs), np.int64)
        self._candidates = 0
        self._most_retained = 0

    @property
    def most_retained(self) -> int:
        """Rows of one head's keys or values: the most of any pair and any sequence so far."""
        return self._most_retained

    def reset(self) -> None:
        """Forget all tokens; what was retained of them stays counted."""
        super().reset()
        self._merged.clear()

    def update(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> Seen:
        """See `HistoryStore`; where a whole window is run again, its first pass is shown.

        Raises:
            UsageError: *positions* do not continue the tokens that are stored, or are not all of them again.
        """
        if not (self._whole_window and self._merged):
            return super().update(layer, keys, values, positions)
        stored = self._keys[layer].shape[2]
        if int(positions[0]) != 0 or len(positions) != stored:
            msg = f"the second pass takes the {stored} tokens of the first, not {positions.tolist()}"
            raise UsageError(msg, given=positions.tolist(), expected=[f"0 to {stored - 1}"])
        return self.see(layer, self._keys[layer], self._values[layer])

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        """See `HistoryStore`; batches of one sequence.

        Raises:
            NotFiniteError: a key or value is NaN or infinite.
            UsageError: another geometry than the plan's, or several sequences.
        """
        if layer not in self._is_paired:
            return self._alone.see(layer, keys, values)
        rows = self.plan.layers.to_rows(layer, keys, values)
        if layer in self._merged:
            first = self.plan.layers.kept.sinks
            rows[first : first + len(self._merged[layer])] = self._merged[layer]
        return Seen.always(*self.plan.layers.to_tensors(layer, rows, keys.dtype))

    def finish(self) -> None:
        """Merges the tokens of the pass, those that are not kept.

        Raises:
            UsageError: the model has not both layers of a pair.
        """
        for index, pair in enumerate(self.plan.pairs):
            if any(layer not in self._keys for layer in pair):
                msg = f"layers {pair[0]} and {pair[1]} are to be merged, and the model has not both"
                raise UsageError(msg, given=pair)
            self._merge(index, pair)

    def passes(self, length: int) -> tuple[Pass, ...]:
        """See :class:`~.stores.PlannedStore`: a prefill and steps, or the whole window twice.

        Raises:
            UsageError: the window leaves nothing to merge, or nothing to predict from what is merged.
        """
        return self.plan.schedule.passes(length, self.plan.layers.kept, whole_window=self._whole_window)

    def bits(self, length: int) -> StoredBits:
        """See :class:`~.stores.PlannedStore`; of a long sequence, all of it a prefill, of which as many
        vectors are retained as on average so far.

        Raises:
            UsageError: nothing has been merged.
        """
        if not self._candidates:
            msg = "nothing has been merged yet: bits are counted after the first pass"
            raise UsageError(msg)
        shares = [float(count) / self._candidates for count in self._retained]
        prefill, *others = self.passes(length)
        choices = self._mergeable(prefill.stop)
        used = elements = 0.0
        for each in others:
            for tokens in range(each.start + 1, each.stop + 1):
                merged = self._mergeable(tokens if self._whole_window else each.start)
                vectors = self.plan.vectors * min(merged, choices)
                used += self.plan.bits_used(tokens, merged, [share * vectors for share in shares])
                elements += tokens * self.plan.elements
        return StoredBits(self.plan.bits_per_element(shares), used / elements, is_measured=True)

    def _mergeable(self, tokens: int) -> int:
        """How many of *tokens* tokens are not kept."""
        kept = self.plan.layers.kept
        return max(0, tokens - kept.sinks) if self._whole_window else kept.coded_units(tokens, 1)

    def _merge(self, index: int, pair: tuple[int, int]) -> None:
        done = len(self._merged[pair[0]]) if pair[0] in self._merged else 0
        first = self.plan.layers.kept.sinks + done
        count = self._mergeable(self._keys[pair[0]].shape[2]) - done
        if count < 1:
            return
        lower, upper = (self._rows(layer, first, first + count) for layer in pair)
        found = self.plan.merge(index, lower, upper, choose=not done)
        if not done:
            self._retained[index] += found.retained.sum()
            self._most_retained = max(self._most_retained, int(found.retained.sum(axis=0).max()))
            self._candidates += found.retained.size if index == 0 else 0
        for layer, rows in zip(pair, (found.lower, found.upper), strict=True):
            before = [self._merged[layer]] if done else []
            self._merged[layer] = np.concatenate([*before, rows])

    def _rows(self, layer: int, first: int, last: int) -> IntegerArray:
        parts = (x[layer][:, :, first:last] for x in (self._keys, self._values))
        return self.plan.layers.to_rows(layer, *parts)
