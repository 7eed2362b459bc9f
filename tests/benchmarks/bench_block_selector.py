"""What block selection for sparse attention costs in hardware, and how long a decoded token takes.

Run from the root of the checkout: ``python tests/benchmarks/bench_block_selector.py [part ...]``, parts being
``top`` (the choice of the largest scores: digit by digit in a memory against a sorted row of registers),
``compressor``, ``selector`` (everything for one KV head) and ``place`` (clock frequency on an ECP5).
``cycles`` are of a query at the end of the context, from the one to the next; a token takes as many for every
layer and KV head.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from amaranth.hdl import unsigned

from costmodel import synthesize
from costmodel.place_and_route import place_and_route
from hw.sparse_attention import BlockSelector, GroupSoftmax, KeyCompressor, SortedBlocks, TopBlocks
from quantizers.sparse_attention import BlockSelection, FixedSoftmax

_SCORE = unsigned(29)  # of 16 heads
_TOPS: tuple[dict[str, Any], ...] = tuple(
    {"max_blocks": blocks, "radix_bits": radix, "storage": storage}
    for blocks, storage, radices in (
        (128, "lutram", (5,)),
        (512, "bram", (5,)),
        (2048, "bram", (1, 2, 3, 4, 5, 6, 8)),
        (2048, "lutram", (5,)),
    )
    for radix in radices
)
_SMOLLM: dict[str, Any] = {"head_dim": 64, "heads": 3}
_MINICPM: dict[str, Any] = {"head_dim": 128, "heads": 16}
_SELECTORS: tuple[dict[str, Any], ...] = (
    {**_SMOLLM, "max_tokens": 8192, "lanes": 8},
    {**_SMOLLM, "max_tokens": 8192, "lanes": 8, "dropped_bits": 5},
    {**_SMOLLM, "max_tokens": 8192, "lanes": 8, "multipliers": "dsps"},
    {**_SMOLLM, "max_tokens": 32768, "lanes": 8, "multipliers": "dsps"},
    {**_MINICPM, "max_tokens": 8192, "lanes": 16, "multipliers": "dsps"},
    {**_MINICPM, "max_tokens": 32768, "lanes": 16, "multipliers": "dsps"},
    {**_MINICPM, "max_tokens": 131072, "lanes": 16, "multipliers": "dsps"},
)
_SELECTION = BlockSelection(dense_length=0)


def _print(name: str, component: Any, cycles: int) -> None:
    cost = synthesize(component, name="design")
    delay = "" if cost.logic_delay_ns is None else f"{cost.logic_delay_ns:.2f}"
    print(
        f"{name:74}{cost.luts:>7}{cost.lutrams:>8}{cost.ffs:>7}{cost.brams:>7}{cost.dsps:>6}{delay:>7}{cycles:>9}",
        flush=True,
    )


def _text(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _top() -> None:
    for settings in _TOPS:
        top = TopBlocks(score=_SCORE, topk=96, **settings)
        _print(f"TopBlocks {_text(settings)}", top, top.cycles(top.max_blocks))
    for topk in (16, 96):
        row = SortedBlocks(score=_SCORE, topk=topk, max_blocks=2048)
        _print(f"SortedBlocks topk={topk} max_blocks=2048", row, row.cycles(2048))


def _compressor() -> None:
    for head_dim in (64, 128):
        for dropped_bits in (0, 5):
            settings = {"head_dim": head_dim, "lanes": 8, "dropped_bits": dropped_bits}
            component = KeyCompressor(selection=_SELECTION, **settings)
            _print(f"KeyCompressor {_text(settings)}", component, component.words)


def _selector() -> None:
    for settings in _SELECTORS:
        selector = BlockSelector(selection=_SELECTION, **settings)
        _print(f"BlockSelector {_text(settings)}", selector, selector.interval(selector.max_tokens - 1))


def _place() -> None:
    components = {
        "TopBlocks of 2048, bram": TopBlocks(score=_SCORE, topk=96, max_blocks=2048),
        "GroupSoftmax of 3 heads, 511 keys": GroupSoftmax(softmax=FixedSoftmax(), heads=3, max_keys=511),
        "KeyCompressor of 64 channels": KeyCompressor(selection=_SELECTION, head_dim=64),
        "BlockSelector of 64 channels, 3 heads, 8192 tokens": BlockSelector(
            selection=_SELECTION, max_tokens=8192, **_SMOLLM
        ),
    }
    for name, component in components.items():
        placed = place_and_route(component, name="design")
        print(f"{name:60}{placed.fmax_mhz:7.1f} +- {placed.deviation_mhz:.1f} MHz", flush=True)


_PARTS = {"top": _top, "compressor": _compressor, "selector": _selector, "place": _place}


def main() -> None:
    print(f"{'':74}{'sites':>7}{'lutram':>8}{'FFs':>7}{'brams':>7}{'dsps':>6}{'ns':>7}{'cycles':>9}")
    for part in sys.argv[1:] or _PARTS:
        _PARTS[part]()


if __name__ == "__main__":
    main()
