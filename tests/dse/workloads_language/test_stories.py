"""stories260K tells its story; checkpoints of llama2.c written here are read as they were written."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dse.workloads.language import (
    Decoder,
    LanguageModel,
    Text,
    language_fingerprint,
    load_language_model,
    perplexity,
    windows_of,
)
from dse.workloads.language.loading import decoder_of
from dse.workloads.language.score_tokenizer import ScoreTokenizer
from dse.workloads.language.stories import CHECKPOINT, VOCABULARY, read_checkpoint
from quantizers.errors import UsageError
from quantizers.kv_store import ExactStore
from tests.dse.workloads_language.tiny_decoder import random_decoder, random_tokens

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
needs_stories = pytest.mark.skipif(
    not (SHARED / CHECKPOINT).is_file(), reason="../shared/data/stories260K.bin is not there"
)

STORY = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, \
she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do."""

LAYER_ORDER = (
    "attention_norm",
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "feed_forward_norm",
    "feed_forward.gate",
    "feed_forward.down",
    "feed_forward.up",
)


def checkpoint_of(decoder: Decoder) -> bytes:
    config, state = decoder.config, decoder.state_dict()
    sizes = (config.hidden, config.ffn, config.layers, config.query_heads, config.kv_heads)
    vocabulary = config.vocabulary if config.tied_embeddings else -config.vocabulary
    layers = [state[f"layers.{i}.{name}.weight"] for name in LAYER_ORDER for i in range(config.layers)]
    angles = torch.zeros(config.context * config.head_dim)
    tensors = [state["embedding.weight"], *layers, state["norm.weight"], angles]
    if not config.tied_embeddings:
        tensors.append(state["head.weight"])
    header = struct.pack("<7i", *sizes, vocabulary, config.context)
    return header + b"".join(tensor.numpy().astype("<f4").tobytes() for tensor in tensors)


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return load_language_model("stories260k", SHARED)


@needs_stories
def test_the_most_likely_story(stories: LanguageModel) -> None:
    tokens = [1, *stories.tokenizer.encode("Once upon a time")]
    store = ExactStore()
    logits = stories.decoder(torch.tensor([tokens]), store)
    while len(stories.tokenizer.decode(tokens)) < len(STORY):
        tokens.append(int(logits[0, -1].argmax()))
        logits = stories.decoder(torch.tensor([tokens[-1:]]), store, start=len(tokens) - 1)
    assert stories.tokenizer.decode(tokens) == STORY


@needs_stories
def test_perplexity_of_its_own_story(stories: LanguageModel) -> None:
    windows = windows_of(stories, Text("story", STORY), length=106, count=1)
    measured = perplexity(stories, windows)
    assert measured.predictions == 104
    assert measured.perplexity == pytest.approx(1.5463, abs=0.0005)


@needs_stories
def test_geometry_and_size(stories: LanguageModel) -> None:
    config = stories.decoder.config
    assert (config.layers, config.hidden, config.ffn, config.context) == (5, 64, 172, 512)
    assert (config.query_heads, config.kv_heads, config.head_dim) == (8, 4, 8)
    assert sum(parameter.numel() for parameter in stories.decoder.parameters()) == 260_032
    assert stories.fingerprint == language_fingerprint("stories260k", SHARED / CHECKPOINT)


@needs_stories
@pytest.mark.parametrize("text", [STORY, "", "x", "  two  blanks ", "naïve 漢字 \U0001f600\n\n", "<0x41>"])
def test_text_comes_back(stories: LanguageModel, text: str) -> None:
    assert stories.tokenizer.decode(stories.tokenizer.encode(text)) == text


@needs_stories
def test_tokens_are_those_of_the_plain_search(stories: LanguageModel) -> None:
    """The pair with the best score is searched anew after each union, as llama2.c does."""
    tokenizer = stories.tokenizer
    assert isinstance(tokenizer, ScoreTokenizer)
    by_bytes = {token: index for index, token in reversed(list(enumerate(tokenizer._tokens)))}
    pieces = [by_bytes.get(c.encode(), 3 + ord(c)) for c in " " + STORY]
    while True:
        unions = [by_bytes.get(tokenizer._tokens[a] + tokenizer._tokens[b]) for a, b in pairwise(pieces)]
        possible = [(-tokenizer._scores[union], i) for i, union in enumerate(unions) if union is not None]
        if not possible:
            break
        _, i = min(possible)
        pieces[i : i + 2] = [unions[i]]
    assert tokenizer.encode(STORY) == pieces
    assert len(pieces) == 105


def test_bytes_without_a_token_and_equal_scores() -> None:
    tokens = [
        b"<unk>",
        b"<s>",
        b"</s>",
        *(b"<0x%02X>" % byte for byte in range(256)),
        b" ",
        b"a",
        b"aa",
        b" a",
    ]
    tokenizer = ScoreTokenizer(tokens, [0.0] * 261 + [1.0, 1.0])
    assert tokenizer.encode("aaa") == [262, 261]
    assert tokenizer.encode("é") == [259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([1, 259, 3 + 0xC3, 3 + 0xA9, 2]) == "é"


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_is_read_as_written(tmp_path: Path, tied: bool) -> None:
    geometry = {"hidden": 48, "rope_pairing": "interleaved", "tied_embeddings": tied}
    original = random_decoder(**geometry)
    path = tmp_path / "model.bin"
    path.write_bytes(checkpoint_of(original))
    config, tensors = read_checkpoint(path)
    assert config == original.config
    tokens = random_tokens(1, 12)
    assert torch.equal(decoder_of(config, tensors, path.name)(tokens), original(tokens))


def test_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    whole = checkpoint_of(random_decoder(hidden=48))
    path.write_bytes(whole[:-4])
    with pytest.raises(UsageError) as caught:
        read_checkpoint(path)
    promised = len(whole) - 28
    assert str(caught.value) == (
        f"model.bin holds {promised - 4} bytes of weights, but its header promises {promised}"
    )
    path.write_bytes(np.array([48, 40, 0, 6, 2, 33, 64], "<i4").tobytes())
    with pytest.raises(UsageError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (
        "model.bin is not a checkpoint of llama2.c, version 0: its header is [48, 40, 0, 6, 2, 33, 64]"
    )


def test_damaged_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "tok.bin"
    path.write_bytes(struct.pack("<i", 1) + 2 * struct.pack("<fi1s", 0.0, 1, b"a"))
    assert ScoreTokenizer.from_file(path, 2).decode([]) == ""
    for count, message in ((3, "tok.bin ends after 2 of 3 tokens"), (1, "tok.bin holds more than 1 tokens")):
        with pytest.raises(UsageError) as caught:
            ScoreTokenizer.from_file(path, count)
        assert str(caught.value) == message


def test_files_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_language_model("stories260k")
    assert str(caught.value) == (
        "stories260k needs a folder with stories260K.bin and tok512.bin: give one as --data DIR"
    )
    (tmp_path / CHECKPOINT).write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        load_language_model("stories260k", tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / VOCABULARY} not found: stories260k needs a folder with stories260K.bin and tok512.bin"
    )
