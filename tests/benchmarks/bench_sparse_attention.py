"""What a language model loses when each query attends only to the blocks that it selects (InfLLM v2).

Run from the root of the checkout, with a text: ``python tests/benchmarks/bench_sparse_attention.py TEXT
[windows] [tokens]``. SmolLM2-135M-Instruct; for each window of tokens one pass with all tokens, and one for each
setting:
``selected`` in float64, ``integers`` as the hardware selects (``means`` with compressed keys of 8 bits), and
``sliding``: the first block and the newest ones, as many of them. ``ratio`` is the perplexity against that
with all tokens, with its standard error from the paired differences; ``agree`` the part of the predictions whose
likeliest token is the same; ``choices`` the part of the freely chosen blocks that float64 chooses too. ``late``
is the ratio in the second half of the window.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor

from dse.workloads.language import LanguageModel, load_language_model, load_text, windows_of
from dse.workloads.language.sparse import IntegerSelection, SelectedBlocks, sliding_window
from quantizers.kv_store import KeyValueStore
from quantizers.sparse_attention import BlockSelection

_SETTINGS = tuple(
    BlockSelection(window=window, topk=topk, dense_length=0)
    for window, topk in ((256, 8), (512, 12), (512, 16), (512, 20))
)
_WITH_INTEGERS = 16


class _Predictions(NamedTuple):
    """Negative log likelihoods, and the likeliest tokens."""

    nll: Tensor
    best: Tensor


def _stores() -> dict[str, SelectedBlocks]:
    stores: dict[str, SelectedBlocks] = {}
    for selection in _SETTINGS:
        name = f"{selection.topk} blocks, window {selection.window}"
        stores[f"selected {name}"] = SelectedBlocks(selection)
        if selection.topk == _WITH_INTEGERS:
            stores[f"integers {name}"] = SelectedBlocks(selection, IntegerSelection())
            stores[f"means    {name}"] = SelectedBlocks(selection, IntegerSelection(dropped_bits=5))
        stores[f"sliding  {selection.topk} blocks"] = SelectedBlocks(sliding_window(selection))
    return stores


@torch.no_grad()
def _predict(model: LanguageModel, tokens: Tensor, store: KeyValueStore | None) -> _Predictions:
    if store is not None:
        store.reset()
    logits = model.decoder(tokens, store)[0, :-1]
    nll = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    return _Predictions(nll.double(), logits.argmax(dim=-1))


def _print(name: str, dense: list[_Predictions], sparse: list[_Predictions], store: SelectedBlocks) -> None:
    difference = torch.cat([s.nll - d.nll for s, d in zip(sparse, dense, strict=True)])
    late = torch.cat([(s.nll - d.nll)[len(d.nll) // 2 :] for s, d in zip(sparse, dense, strict=True)])
    agree = torch.cat([(s.best == d.best).double() for s, d in zip(sparse, dense, strict=True)]).mean()
    choices = "" if store.agreement is None else f"{store.agreement:.4f}"
    print(
        f"{name:34}{math.exp(torch.cat([s.nll for s in sparse]).mean()):>9.3f}{math.exp(difference.mean()):>9.4f}"
        f"{difference.std() / math.sqrt(len(difference)):>8.4f}{math.exp(late.mean()):>9.4f}{agree:>8.4f}"
        f"{store.kept_fraction:>7.3f}{choices:>9}",
        flush=True,
    )


def main() -> None:
    text, given = Path(sys.argv[1]), [int(argument) for argument in sys.argv[2:4]]
    count, length = given + [2, 2048][len(given) :]
    model = load_language_model("smollm2-135m")
    windows = windows_of(model, load_text(text), length=length, count=count).tokens
    dense = [_predict(model, window[None], None) for window in windows]
    print(f"{count} windows of {length} tokens of {text.name}, all tokens: ", end="")
    print(f"{math.exp(torch.cat([d.nll for d in dense]).mean()):.3f}")
    print(f"{'':34}{'ppl':>9}{'ratio':>9}{'+-':>8}{'late':>9}{'agree':>8}{'kept':>7}{'choices':>9}")
    for name, store in _stores().items():
        _print(name, dense, [_predict(model, window[None], store) for window in windows], store)


if __name__ == "__main__":
    main()
