"""Codecs of the cache of keys and values: stored bits against perplexity, on SmolLM2-135M.

Run from the root of the checkout:
``BITFRONT_TEXT=FILE python tests/benchmarks/bench_kv_cache.py [CODEC ...]``. The first six windows of 512
tokens are evaluated; codecs are calibrated on the windows after them, and with ``--python`` on the Python
language reference instead. ``--fast`` evaluates two windows and calibrates on four. The model is fetched once
into the cache folder. Bits are those of a long sequence, and those that queries of a window see on average,
sinks and open units counted. Where layers are merged, only predictions after the prefill count.
Prints for each codec: bits, perplexity, ratio with its paired standard error, agreement of the likeliest
token, seconds of the evaluation, of which four minutes on two cores are the limit.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from dse.workloads.language import LanguageModel, Text, Windows, compare, load_language_model, load_text
from quantizers.errors import BitfrontError
from quantizers.kv_cache.calibration import Calibration, calibrate
from quantizers.kv_cache.registry import parse_cache_scheme

_LENGTH = 512
_WHOLE = "whole "
_CODECS = (
    "exact",
    "whole kivi(bits=4, group=128, value_group=64)",
    "kivi(bits=4, group=128, value_group=64)",
    "kivi(bits=4, group=32)",
    "per_token(bits=4, group=64)",
    "format(format='mxfp4', means=true, sinks=1)",
    "oaken(means=true, sinks=1)",
    "rotated(bits=4, sinks=1)",
    "rotated(bits=3, sinks=1)",
    "rotated(bits=4.27, allocated=true, lowest=3, sinks=1)",
    "rotated(bits=3.27, allocated=true, lowest=2, sinks=1)",
    "transform(bits=4.27, sinks=1)",
    "transform(bits=3.27, floor=0.03, sinks=1)",
    "transform(bits=2.27, sinks=1)",
    "transform(bits=2.27, span='side', sinks=1)",
    "transform(bits=2.27, span='joint', sinks=1)",
    "minicache(pairs=1)",
    "minicache(pairs=7)",
)
_LIMIT_SECONDS = 240


def evaluated_and_rest(
    model: LanguageModel, text: Text, count: int, calibration: int
) -> tuple[Windows, torch.Tensor]:
    """The first *count* windows, and as calibration windows the tokens after them."""
    ids = model.tokenizer.encode(text.content)[: (count + calibration) * _LENGTH]
    tokens = torch.tensor(ids).view(count + calibration, _LENGTH)
    return Windows(text, tokens[:count], model.tokenizer.start), tokens[count:]


def calibrated(model: LanguageModel, tokens: torch.Tensor, name: str) -> Calibration:
    start = time.perf_counter()
    for parameter in model.decoder.parameters():
        parameter.requires_grad_(False)
    found = calibrate(model.decoder, tokens, text=name)
    print(
        f"calibrated on {found.text}, {tokens.numel()} tokens: {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return found


def report(model: LanguageModel, windows: Windows, calibration: Calibration, written: str) -> None:
    plan = parse_cache_scheme(written.removeprefix(_WHOLE)).plan(calibration)
    store = plan.store(whole_window=written.startswith(_WHOLE))
    start = time.perf_counter()
    found = compare(model, windows, store=store, passes=store.passes(_LENGTH))
    seconds = time.perf_counter() - start
    bits = store.bits(_LENGTH)
    late = "" if seconds < _LIMIT_SECONDS else f"  beyond the limit of {_LIMIT_SECONDS} s"
    print(
        f"{written:58s} {bits.per_element:6.3f} {bits.per_element_seen:6.3f} "
        f"{found.changed.perplexity:9.3f} {100 * (found.ratio - 1):+8.2f} % "
        f"+- {100 * found.log_ratio_standard_error:.2f} {100 * found.agreement:6.1f} % {seconds:5.0f} s{late}",
        flush=True,
    )


def main(codecs: list[str], *, fast: bool, python: bool) -> None:
    path = os.environ.get("BITFRONT_TEXT")
    if path is None:
        print("skipped: BITFRONT_TEXT names no text file, such as that of WikiText-2")
        return
    try:
        model = load_language_model("smollm2-135m")
        text = load_text(Path(path))
    except BitfrontError as error:
        print(f"skipped: {error}")
        return
    count, some = (2, 4) if fast else (6, 24)
    windows, rest = evaluated_and_rest(model, text, count, some)
    name = f"{text.name} from token {count * _LENGTH}"
    if python:
        reference = load_text()
        _, rest = evaluated_and_rest(model, reference, 0, some)
        name = reference.name
    calibration = calibrated(model, rest, name)
    print(f"{count} windows of {_LENGTH} tokens of {text.name}; {torch.get_num_threads()} threads")
    print(f"{'codec':58s} {'bits':>6s} {'seen':>6s} perplexity    ratio  paired  agreement")
    for written in codecs or _CODECS:
        report(model, windows, calibration, written)


if __name__ == "__main__":
    flags = {argument for argument in sys.argv[1:] if argument.startswith("--")}
    main(
        [argument for argument in sys.argv[1:] if argument not in flags],
        fast="--fast" in flags,
        python="--python" in flags,
    )
