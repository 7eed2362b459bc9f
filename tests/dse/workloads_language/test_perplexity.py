"""Perplexity, comparison, windows and texts, against sums written out."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dse.workloads.language import Text, compare, load_text, perplexity, windows_of
from dse.workloads.language.text import PYTHON_REFERENCE
from quantizers.errors import UsageError
from quantizers.kv_store import ExactStore, HistoryStore, Pass, Seen, steps
from tests.dse.workloads_language.plain_decoder import logits
from tests.dse.workloads_language.tiny_decoder import random_decoder, tiny_model

SENTENCE = "the quick brown fox jumps over the lazy dog.\nTHE END, "
TEXT = Text("fox", SENTENCE.replace("END", "THE") * 3)


class Rounded(HistoryStore):
    """Whole numbers only."""

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        return Seen.always(keys.round(), values.round())


def _log_probability(row: Tensor, token: int) -> float:
    return float(row[token] - row.exp().sum().log())


def _expected_nll(windows: list[list[int]], first: int) -> list[float]:
    decoder = random_decoder()
    nll = []
    for window in windows:
        rows = torch.from_numpy(logits(decoder, window))
        nll += [-_log_probability(rows[i - 1], window[i]) for i in range(first, len(window))]
    return nll


def test_perplexity_is_that_of_the_predictions_written_out() -> None:
    model = tiny_model()
    windows = windows_of(model, TEXT, length=20, count=3)
    ids = model.tokenizer.encode(TEXT.content)
    nll = _expected_nll([ids[:20], ids[20:40], ids[40:60]], first=1)
    measured = perplexity(model, windows)
    mean = sum(nll) / 57
    deviation = math.sqrt(sum((x - mean) ** 2 for x in nll) / 56)
    assert (measured.predictions, measured.windows, measured.window_tokens) == (57, 3, 20)
    assert measured.mean_nll == pytest.approx(mean, abs=1e-4)
    assert measured.perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    assert measured.standard_error == pytest.approx(deviation / math.sqrt(57), rel=1e-4)
    assert measured.as_json() == {
        "perplexity": measured.perplexity,
        "mean_nll": measured.mean_nll,
        "standard_error": measured.standard_error,
        "predictions": 57,
        "windows": 3,
        "window_tokens": 20,
        "text": "fox",
        "text_sha256": TEXT.sha256,
    }


def test_a_start_token_begins_each_window_and_is_not_predicted() -> None:
    model = tiny_model(start=30)
    windows = windows_of(model, TEXT, length=20, count=2)
    ids = model.tokenizer.encode(TEXT.content)
    assert windows.tokens.tolist() == [[30, *ids[:19]], [30, *ids[19:38]]]
    nll = _expected_nll(windows.tokens.tolist(), first=2)
    measured = perplexity(model, windows)
    assert measured.predictions == len(nll) == 36
    assert measured.mean_nll == pytest.approx(sum(nll) / 36, abs=1e-4)


def test_a_store_is_reset_for_each_window() -> None:
    model = tiny_model()
    windows = windows_of(model, TEXT, length=20, count=3)
    exact = perplexity(model, windows)
    for passes in (None, steps(20, 1), steps(20, 7)):
        stored = perplexity(model, windows, store=ExactStore(), passes=passes)
        assert stored.mean_nll == pytest.approx(exact.mean_nll, abs=1e-5)


def test_only_passes_that_count_are_measured() -> None:
    """Also in the exact model; a pass may begin the window again, for a store that can."""
    model = tiny_model(start=30)
    windows = windows_of(model, TEXT, length=20, count=2)
    late = sum(_expected_nll(windows.tokens.tolist(), first=9)) / 22
    prefilled = (Pass(0, 8, counts=False), *steps(20, 5, start=8))
    found = compare(model, windows, store=ExactStore(), passes=prefilled)
    assert (found.exact.predictions, found.changed.predictions) == (22, 22)
    assert found.exact.mean_nll == pytest.approx(late, abs=1e-4)
    assert found.changed.mean_nll == pytest.approx(late, abs=1e-4)

    class Again(ExactStore):
        def update(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> Seen:
            return self.see(layer, keys, values)

    twice = (Pass(0, 20, counts=False), Pass(0, 20))
    found = compare(model, windows, store=Again(), passes=twice)
    assert found.changed.predictions == 36
    assert found.exact == perplexity(model, windows)
    assert found.changed.mean_nll == pytest.approx(found.exact.mean_nll, abs=1e-5)


def test_comparison_is_paired() -> None:
    model = tiny_model()
    windows = windows_of(model, TEXT, length=20, count=2)
    found = compare(model, windows, store=Rounded())
    assert found.exact == perplexity(model, windows)
    assert found.changed == perplexity(model, windows, store=Rounded())
    assert found.ratio == pytest.approx(found.changed.perplexity / found.exact.perplexity)
    with torch.no_grad():
        p = torch.cat([model.decoder(w[None])[0, :-1] for w in windows.tokens]).double().softmax(-1)
        q = (
            torch.cat([model.decoder(w[None], Rounded())[0, :-1] for w in windows.tokens])
            .double()
            .softmax(-1)
        )
    agree = [int(p[i].argmax()) == int(q[i].argmax()) for i in range(38)]
    assert 0 < sum(agree) < 38
    assert found.agreement == pytest.approx(sum(agree) / 38)
    assert found.mean_kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    targets = windows.tokens[:, 1:].reshape(-1, 1)
    difference = (p.gather(1, targets) / q.gather(1, targets)).log()
    assert found.log_ratio_standard_error == pytest.approx(float(difference.std()) / math.sqrt(38), rel=1e-3)
    assert found.as_json()["changed"]["perplexity"] == found.changed.perplexity


def test_the_same_model_loses_nothing() -> None:
    model = tiny_model()
    windows = windows_of(model, TEXT, length=20, count=2)
    found = compare(model, windows, changed=random_decoder())
    assert (found.ratio, found.log_ratio_standard_error, found.agreement, found.mean_kl) == (
        1.0,
        0.0,
        1.0,
        0.0,
    )
    assert compare(model, windows, changed=random_decoder(seed=8)).mean_kl > 0.1


def test_one_prediction_has_no_error() -> None:
    model = tiny_model()
    windows = windows_of(model, TEXT, length=2, count=1)
    assert perplexity(model, windows).standard_error is None
    assert compare(model, windows, store=Rounded()).log_ratio_standard_error is None


def test_progress_goes_over_the_windows() -> None:
    model = tiny_model()
    seen: list[tuple[list[int], int]] = []
    perplexity(
        model,
        windows_of(model, TEXT, length=10, count=3),
        progress=lambda items, total: (seen.append((list(items), total)), items)[1],
    )
    assert seen == [([0, 1, 2], 3)]


def test_what_a_comparison_needs() -> None:
    model = tiny_model()
    windows = windows_of(model, TEXT, length=10, count=1)
    with pytest.raises(UsageError) as caught:
        compare(model, windows)
    assert str(caught.value) == "a comparison needs a store or a changed decoder"
    with pytest.raises(UsageError) as caught:
        perplexity(model, windows, passes=steps(10, 3))
    assert str(caught.value) == "tokens in several passes need a store"


@pytest.mark.parametrize(
    ("start", "length", "count", "message"),
    [
        (None, 65, 1, "windows of tiny hold 2 to 64 tokens, not 65"),
        (None, 1, 1, "windows of tiny hold 2 to 64 tokens, not 1"),
        (3, 2, 1, "windows of tiny hold 3 to 64 tokens, not 2"),
        (None, 10, 0, "the number of windows must be positive, not 0"),
        (None, 50, 4, "fox has 162 tokens of tiny, too few for 4 windows of 50; it has 3"),
        (3, 51, 4, "fox has 162 tokens of tiny, too few for 4 windows of 50; it has 3"),
    ],
)
def test_wrong_windows(start: int | None, length: int, count: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        windows_of(tiny_model(start), TEXT, length=length, count=count)
    assert str(caught.value) == message


def test_line_ends_of_a_file_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("one\r\ntwø\n".encode())
    text = load_text(file)
    assert (text.name, text.content) == ("a.txt", "one\ntwø\n")
    length = len(text.content.encode()).to_bytes(8, "little")
    assert text.sha256 == hashlib.sha256(length + text.content.encode()).hexdigest()


def test_the_default_text_is_english_and_comes_with_python() -> None:
    text = load_text()
    assert text.name == PYTHON_REFERENCE
    assert len(text.content) > 100_000
    assert text.content.count(" the ") > 3000


def test_unreadable_texts(tmp_path: Path) -> None:
    missing, binary, empty = (tmp_path / name for name in ("missing", "binary", "empty"))
    binary.write_bytes(b"\xff\xfe\x00")
    empty.touch()
    with pytest.raises(UsageError) as caught:
        load_text(missing)
    assert str(caught.value).startswith(f"text {missing} cannot be read as UTF-8: [Errno 2]")
    with pytest.raises(UsageError) as caught:
        load_text(binary)
    assert str(caught.value).startswith(f"text {binary} cannot be read as UTF-8: 'utf-8' codec")
    with pytest.raises(UsageError) as caught:
        load_text(empty)
    assert str(caught.value) == f"text {empty} is empty"
