"""What writing a cache of keys and values in uniform groups costs: LUT6 sites and clock frequency.

Run from the root of the checkout: ``python tests/benchmarks/bench_kv_uniform.py [--bits 4] [--group 64]
[--lanes 8] [--place]``. A line for each part of the writer and of the reader, for each width and group;
with ``--place`` also the mean clock frequency on a Lattice ECP5 and its deviation over the seeds, which takes
a minute a part, the first time; results are kept in the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from amaranth.lib.wiring import Component

sys.path.insert(0, str(Path(__file__).parents[2]))

from costmodel import ContentCache, synthesize
from costmodel.place_and_route import place_and_route
from hw.kv_cache.dequantizer import GroupDequantizer
from hw.kv_cache.packer import Packer
from hw.kv_cache.quantizer import GroupQuantizer
from hw.kv_cache.transposer import Transposer
from hw.kv_cache.uniform_cache import UniformReader, UniformWriter
from hw.kv_cache.unpacker import Unpacker

HEAD_DIM = 64
WORD_BITS = 32


def parts(bits: int, group: int, lanes: int) -> Iterator[tuple[str, Component]]:
    """Each part, and both wholes for one head."""
    packing = {"bits": bits, "lanes": lanes, "codes": group, "word_bits": WORD_BITS}
    head = {"head_dim": HEAD_DIM, "bits": bits, "group": group, "lanes": lanes, "word_bits": WORD_BITS}
    yield "quantizer", GroupQuantizer(bits=bits, group=group, lanes=lanes)
    yield "packer", Packer(**packing)
    yield "unpacker", Unpacker(**packing)
    yield "dequantizer", GroupDequantizer(bits=bits, lanes=lanes)
    yield "transposer", Transposer(rows=group, columns=HEAD_DIM, lanes=lanes)
    for transposes in (True,) if group > HEAD_DIM else (False, True):
        suffix = ", per channel" if transposes else ""
        yield f"writer{suffix}", UniformWriter(**head, per_channel=transposes)
        yield f"reader{suffix}", UniformReader(**head, per_channel=transposes)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--bits", type=int, nargs="+", default=[4])
    arguments.add_argument("--group", type=int, nargs="+", default=[64])
    arguments.add_argument("--lanes", type=int, default=8)
    arguments.add_argument("--place", action="store_true")
    chosen = arguments.parse_args()
    caches = {name: ContentCache(namespace=name) for name in ("synthesis", "place_and_route")}
    print(f"{'part':20} {'bits':>4} {'group':>5} {'sites':>5} {'FFs':>5} {'BRAMs':>5} {'ns':>5} {'MHz':>11}")
    for bits in chosen.bits:
        for group in chosen.group:
            for name, component in parts(bits, group, chosen.lanes):
                cost = synthesize(component, name=name, cache=caches["synthesis"])
                delay = "" if cost.logic_delay_ns is None else f"{cost.logic_delay_ns:.2f}"
                speed = ""
                if chosen.place:
                    placed = place_and_route(component, name=name, cache=caches["place_and_route"])
                    speed = f"{placed.fmax_mhz:5.0f} +- {placed.deviation_mhz:3.0f}"
                print(
                    f"{name:20} {bits:4} {group:5} {cost.luts:5} {cost.ffs:5} {cost.brams:5} "
                    f"{delay:>5} {speed:>11}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
