"""How well a language model predicts a text, and what is lost when its cache or its layers are quantized.

Each window of the text is a sequence of its own, and every token of the text is predicted but the first of
the window. Where a store is measured by some passes only, the predictions of these count, also those of the
exact model that it is compared with. Perplexity is exp of the mean negative log likelihood of these
predictions. Standard errors take the predictions as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dse.workloads.language.decoder import Decoder, run_passes
from dse.workloads.language.language_model import LanguageModel
from dse.workloads.language.text import Windows
from quantizers.errors import UsageError
from quantizers.kv_store import KeyValueStore, Pass

Progress = Callable[[Iterable[int], int], Iterable[int]]


@dataclass(frozen=True)
class Perplexity:
    """What was measured, and on what.

    Attributes:
        perplexity: exp of *mean_nll*.
        mean_nll: mean negative log likelihood of a token, in nats.
        standard_error: of *mean_nll*; None of a single prediction.
        predictions: tokens that were predicted.
        windows: number of them.
        window_tokens: tokens of a window, its start token included.
        text: name of the text.
        text_sha256: of its content.
    """

    perplexity: float
    mean_nll: float
    standard_error: float | None
    predictions: int
    windows: int
    window_tokens: int
    text: str
    text_sha256: str

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """A changed model against the exact one, on the same predictions.

    Attributes:
        exact: the model as it is.
        changed: with the store, or with other layers.
        ratio: perplexity changed / exact.
        log_ratio_standard_error: of log(ratio), from the paired differences: much less than the two
            perplexities' own errors suggest, since both models find mostly the same tokens hard.
        agreement: fraction of the predictions whose likeliest token is the same.
        mean_kl: mean of sum_t p(t) log(p(t) / q(t)) in nats, p exact and q changed.
    """

    exact: Perplexity
    changed: Perplexity
    ratio: float
    log_ratio_standard_error: float | None
    agreement: float
    mean_kl: float

    def as_json(self) -> dict[str, Any]:
        """The fields, nested."""
        return asdict(self)


def perplexity(
    model: LanguageModel | Decoder,
    windows: Windows,
    *,
    store: KeyValueStore | None = None,
    passes: Sequence[Pass] | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """The perplexity on *windows*.

    Args:
        model: or its decoder, or a changed copy of it.
        windows: see :func:`~.text.windows_of`.
        store: keys and values go through it; it is reset before each window.
        passes: of each window; those that count end with it. Default: the whole in one; see
            `quantizers.kv_store`.
        progress: wraps the loop over windows.
    """
    decoder = _decoder(model)
    nll = [_nll(_log_probabilities(decoder, w, store, passes), w) for w in _each(windows, passes, progress)]
    return _perplexity(torch.cat(nll), windows)


def compare(
    model: LanguageModel | Decoder,
    windows: Windows,
    *,
    store: KeyValueStore | None = None,
    changed: Decoder | None = None,
    passes: Sequence[Pass] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """*model* as it is against the same with *store*, or against *changed* (with *store* where given).

    Raises:
        UsageError: there is neither.
    """
    if store is None and changed is None:
        msg = "a comparison needs a store or a changed decoder"
        raise UsageError(msg, expected=["store", "changed"])
    reference = _decoder(model)
    other = reference if changed is None else changed
    parts = []
    for window in _each(windows, passes, progress):
        p = _log_probabilities(reference, window, None, None)
        q = _log_probabilities(other, window, store, passes)
        parts.append(_compared(p, q, window))
    exact, coded, agree, kl = (torch.cat(column) for column in zip(*parts, strict=True))
    difference = coded - exact
    return Comparison(
        exact=_perplexity(exact, windows),
        changed=_perplexity(coded, windows),
        ratio=math.exp(float(difference.mean())),
        log_ratio_standard_error=_standard_error(difference),
        agreement=float(agree.mean()),
        mean_kl=float(kl.mean()),
    )


@dataclass(frozen=True, eq=False)
class _Window:
    """One window: its tokens, (1, length), and the first position that is predicted."""

    tokens: Tensor
    first: int


def _each(windows: Windows, passes: Sequence[Pass] | None, progress: Progress | None) -> Iterable[_Window]:
    count = len(windows.tokens)
    first = max(windows.first_predicted, _first_that_counts(passes) + 1)
    for index in progress(range(count), count) if progress else range(count):
        yield _Window(windows.tokens[index : index + 1], first)


def _first_that_counts(passes: Sequence[Pass] | None) -> int:
    """Position of the first query whose prediction counts."""
    return 0 if passes is None else min(each.start for each in passes if each.counts)


def _decoder(model: LanguageModel | Decoder) -> Decoder:
    return model.decoder if isinstance(model, LanguageModel) else model


@torch.no_grad()
def _log_probabilities(
    decoder: Decoder, window: _Window, store: KeyValueStore | None, passes: Sequence[Pass] | None
) -> Tensor:
    """Of every token at each predicted position: (predictions, vocabulary)."""
    if passes is not None and store is None:
        msg = "tokens in several passes need a store"
        raise UsageError(msg, given=len(passes), expected=["no passes"])
    if store is None:
        logits = decoder(window.tokens)
    else:
        whole = (Pass(0, window.tokens.shape[1]),)
        logits = run_passes(decoder, window.tokens, store, whole if passes is None else passes)
    length = window.tokens.shape[1]
    return F.log_softmax(logits[0, window.first - 1 - length : -1], dim=-1)


def _nll(log_probabilities: Tensor, window: _Window) -> Tensor:
    """float64, shape (predictions,)."""
    targets = window.tokens[0, window.first :, None]
    return -log_probabilities.gather(1, targets)[:, 0].double()


def _compared(p: Tensor, q: Tensor, window: _Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each prediction: negative log likelihoods, whether the likeliest tokens agree, and divergence."""
    agree = (p.argmax(dim=-1) == q.argmax(dim=-1)).double()
    kl = (p.exp() * (p - q)).sum(dim=-1).double()
    return _nll(p, window), _nll(q, window), agree, kl


def _perplexity(nll: Tensor, windows: Windows) -> Perplexity:
    mean = float(nll.mean())
    return Perplexity(
        perplexity=math.exp(mean),
        mean_nll=mean,
        standard_error=_standard_error(nll),
        predictions=len(nll),
        windows=len(windows.tokens),
        window_tokens=windows.tokens.shape[1],
        text=windows.text.name,
        text_sha256=windows.text.sha256,
    )


def _standard_error(samples: Tensor) -> float | None:
    """Of the mean."""
    if len(samples) < 2:
        return None
    return float(samples.std()) / math.sqrt(len(samples))
