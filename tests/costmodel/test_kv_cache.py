from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from costmodel.geometries import Decoder
from costmodel.kv_cache import CacheCoding, CachedRate, Coded, CodedCacheUse, cache_use
from costmodel.lookup_accelerator import LookupDesign
from costmodel.lookup_record import lookup_cost
from costmodel.parts import find_part
from costmodel.token_rate import MEMORIES, SETTING, Input, token_rate, weight_scheme
from quantizers.kv_cache.cache import Kept, bits_used
from quantizers.kv_cache.grouped import PerChannel, PerToken
from quantizers.sparse_attention.selection import compressed_keys, select_blocks, token_mask
from quantizers.sparse_attention.settings import BlockSelection

TINY = Decoder(
    name="tiny", layers=2, hidden=16, ffn=32, source="this test", query_heads=4, kv_heads=2, head_dim=8,
    vocabulary=30,
)  # fmt: skip
ELEMENTS = 2 * 2 * 8
"""Of the keys of a token."""

SMALL = BlockSelection(kernel=4, stride=2, block=8, initial=1, window=16, topk=6, dense_length=40)


def bits(value: float) -> Input:
    return Input(value, "bits an element", "this test")


def coding(keys: float = 16, values: float = 16, unit: int = 1, kept: Kept | None = None) -> CacheCoding:
    return CacheCoding(
        name="tiny", keys=Coded(bits(keys), unit), values=Coded(bits(values)), kept=kept or Kept()
    )


def test_a_dense_token_reads_what_is_stored() -> None:
    use = cache_use(TINY, coding(5, 3), 100)
    assert use.stored_bytes == use.read_bytes == 100 * ELEMENTS * (5 + 3) / 8
    assert (use.read_tokens, use.elements, use.compressed_bytes) == (100, 100 * 2 * ELEMENTS, 0)
    assert use.inputs == {"key_bits": bits(5), "value_bits": bits(3)}


@pytest.mark.parametrize("context", [1, 5, 31, 32, 100, 161])
@pytest.mark.parametrize("kept", [Kept(), Kept(sinks=3), Kept(residual=40), Kept(sinks=1, residual=20)])
def test_stored_bytes_are_those_of_the_codecs_caches(context: int, kept: Kept) -> None:
    keys = PerChannel(channels=16, bits=4, group=32)
    values = PerToken(channels=16, bits=2, group=16)
    coded = coding(keys.bits_per_element, values.bits_per_element, 32, kept)
    wanted = TINY.layers * sum(bits_used(codec, context, kept) for codec in (keys, values)) / 8
    assert cache_use(TINY, coded, context).stored_bytes == wanted


def selected_by_the_algorithm(context: int) -> tuple[int, int]:
    """Tokens that the newest query sees and compressed keys, of random keys."""
    random = np.random.default_rng(context)
    keys, queries = random.normal(size=(context, 8)), random.normal(size=(2, 1, 8))
    at = np.array([context - 1])
    taken = select_blocks(queries, keys, at, SMALL)
    return int(token_mask(taken, at, context, SMALL).sum()), len(compressed_keys(keys, SMALL))


@pytest.mark.parametrize("context", [3, 4, 39, 40, 47, 48, 49, 56, 57, 63, 64, 200, 513])
def test_selected_tokens_and_compressed_keys_are_those_of_the_algorithm(context: int) -> None:
    use = cache_use(TINY, coding(5, 5), context, SMALL)
    tokens, compressed = selected_by_the_algorithm(context)
    size = compressed * ELEMENTS * 16 / 8
    assert use.read_tokens == tokens
    assert use.elements == tokens * 2 * ELEMENTS
    assert use.stored_bytes == context * 2 * ELEMENTS * 5 / 8 + size
    assert use.compressed_bytes == (0 if context < 40 else size)
    assert use.read_bytes == tokens * 2 * ELEMENTS * 5 / 8 + use.compressed_bytes


def test_the_sizes_of_minicpm4() -> None:
    use = cache_use(TINY, coding(), 131_072, BlockSelection())
    assert use.read_tokens == 96 * 64
    assert use.compressed_bytes == ((131_072 - 32) // 16 + 1) * ELEMENTS * 2
    assert use.read_bytes == 96 * 64 * 2 * ELEMENTS * 2 + use.compressed_bytes
    assert cache_use(TINY, coding(), 8191, BlockSelection()).read_tokens == 8191
    assert cache_use(TINY, coding(), 8192, BlockSelection()).read_tokens == 96 * 64
    assert use.inputs["selection_topk"] == Input(96, "blocks", "InfLLM v2: arXiv 2506.07900, section 2.2")
    assert use.inputs["selection_kernel"].unit == "tokens"
    assert use.inputs["compressed_key_bits"].value == 16


@pytest.mark.parametrize(
    ("kept", "exact"),
    [
        (Kept(), 0),
        (Kept(sinks=3), 3),
        (Kept(sinks=3, residual=10), 13),
        # More sinks than the first block has: of the others it is not known whether they are taken.
        (Kept(sinks=20), 8),
        # More new tokens than the window has.
        (Kept(residual=30), 16),
        # Eight tokens are coded, so at least 40 of the 48 that are read are not.
        (Kept(residual=192), 40),
        (Kept(residual=300), 48),
    ],
)
def test_exact_tokens_among_the_selected(kept: Kept, exact: int) -> None:
    use = cache_use(TINY, coding(4, 4, kept=kept), 200, SMALL)
    assert use.read_tokens == 48
    read = (use.read_bytes - use.compressed_bytes) * 8 / (2 * ELEMENTS)
    assert read == 4 * (48 - exact) + 16 * exact


def test_exact_tokens_are_inputs() -> None:
    inputs = cache_use(TINY, coding(kept=Kept(sinks=1, residual=2)), 8).inputs
    assert inputs["exact_sinks"] == Input(1, "tokens", "of the codec, 16 bits an element")
    assert inputs["exact_residual"].value == 2
    assert "exact_sinks" not in coding(kept=Kept(residual=2)).inputs


def rate_of(
    coded: CacheCoding, context: int, selection: BlockSelection | None = None, bandwidth: float = 4e9
) -> CachedRate:
    scheme, part = weight_scheme(LookupDesign(weights="ternary")), find_part("xc7z020")
    memory = replace(
        MEMORIES["xc7z020"], bandwidth=Input(bandwidth, "bytes/s", "this test"),
        efficiency=Input(0.5, "of the peak", "this test"), capacity=Input(1e7, "bytes", "this test"),
    )  # fmt: skip
    setting = replace(
        SETTING, context=Input(context, "tokens", "this test"), clock=Input(1e8, "Hz", "this test")
    )
    use = cache_use(TINY, coded, context, selection)
    rate = token_rate(TINY, scheme, lookup_cost(scheme.design), part, memory, setting, cache=use)
    reader = Input(8, "elements a cycle", "this test")
    return CachedRate(coding=coded, selection=selection, use=use, rate=rate, reader=reader)


def test_the_token_rate_with_a_cache() -> None:
    dense, sparse = (rate_of(coding(4, 4), 65_536, selection) for selection in (None, BlockSelection()))
    assert dense.rate.cache_bytes == dense.use.read_bytes == 65_536 * ELEMENTS
    assert sparse.rate.stored_cache_bytes == sparse.use.stored_bytes
    for cached in (dense, sparse):
        assert cached.rate.memory_bound == 2e9 / (cached.rate.weight_bytes + cached.use.read_bytes)
        assert cached.rate.limit == "memory"
        assert cached.bytes_per_second == pytest.approx(2e9)
        assert cached.rate.inputs["key_bits"] is cached.coding.keys.bits
        assert "cache_bits" not in cached.rate.inputs
        assert cached.inputs["reader_lanes"] is cached.reader
    assert (dense.is_dense, sparse.is_dense) == (True, False)
    assert rate_of(coding(), 1024, BlockSelection()).is_dense


def test_what_is_stored_must_fit_not_what_is_read() -> None:
    # 65,536 tokens of 64 elements of 16 bits are 8.4 MB, compressed keys 0.3 MB; 10 MB are there.
    short, long = (rate_of(coding(), tokens, BlockSelection()).rate for tokens in (65_536, 131_072))
    assert (short.fits, long.fits) == (True, False)
    assert long.read_bytes < 2e6


def test_lanes_of_the_reader() -> None:
    cached = rate_of(coding(4, 4), 65_536)
    assert cached.elements_per_second == cached.use.elements * cached.rate.tokens_per_second
    # Half a byte an element: 4e9 elements a second at 1e8 cycles, a hair fewer with the weights between.
    assert cached.burst_reader_lanes == 40
    assert 39 < cached.elements_per_second / 1e8 < 40
    assert cached.reader_lanes == 40
    assert cached.reader_bound == 8e8 / (65_536 * 2 * ELEMENTS)
    assert cached.reader_bound < cached.rate.tokens_per_second


def test_a_reader_with_enough_lanes_does_not_limit() -> None:
    cached = rate_of(coding(), 65_536, bandwidth=4e8)
    assert cached.burst_reader_lanes == cached.reader_lanes == 1
    assert cached.reader_bound > cached.rate.tokens_per_second


def test_compressed_keys_do_not_go_through_the_reader() -> None:
    use: CodedCacheUse = rate_of(coding(4, 4), 65_536, BlockSelection()).use
    assert use.elements == 6144 * 2 * ELEMENTS
    assert rate_of(coding(4, 4), 65_536, BlockSelection()).burst_reader_lanes == 40


def test_it_does_not_load_torch() -> None:
    code = "import sys, costmodel.kv_cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
