"""Designs per second of the fast synthesis flow on two processes, against stock ``synth_xilinx`` in one.

Run from the root of the checkout: ``python tests/benchmarks/bench_synthesis.py``.
"""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

sys.path.insert(0, str(Path(__file__).parents[2]))

from costmodel import synthesize
from costmodel.yosys import close_yosys

_PROCESSES = 2
_STOCK_DESIGNS = 6
_STOCK = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for path in sys.argv[1:]:
    design.run_pass("design -reset")
    design.run_pass("read_rtlil " + path)
    design.run_pass("synth_xilinx -family xc7 -nodsp -noiopad -noclkbuf -flatten -top top")
"""

_OPERATORS: dict[str, Callable[[Value, Value, Value], Value]] = {
    "add": lambda a, b, c: a + b,
    "ternary": lambda a, b, c: a + b + c,
    "multiply": lambda a, b, c: a * b,
    "accumulate": lambda a, b, c: c + (a * b),
    "shift": lambda a, b, c: a << b[:3].as_unsigned(),
    "maximum": lambda a, b, c: Mux(a < b, b, a),
    "clamp": lambda a, b, c: Mux(a < b, b, Mux(c < a, c, a)),
    "parity": lambda a, b, c: (a & b).xor() ^ (a | c).xor(),
}
_WIDTHS = (4, 5, 7)


class _Operator(wiring.Component):
    def __init__(self, name: str, width: int) -> None:
        self._function = _OPERATORS[name]
        super().__init__({pin: In(signed(width)) for pin in "abc"} | {"y": Out(signed(2 * width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ports = (self.a, self.b, self.c)
        registered = [Signal.like(port) for port in ports]
        m.d.sync += [register.eq(port) for register, port in zip(registered, ports, strict=True)]
        m.d.sync += self.y.eq(self._function(*registered))
        return m


def _designs() -> list[tuple[str, int]]:
    return [(name, width) for width in _WIDTHS for name in _OPERATORS]


def _work(share: list[tuple[str, int]], ready: Semaphore, go: Event, cpu: Queue[float]) -> None:
    synthesize(_Operator("add", 2), name="warm-up")
    ready.release()
    go.wait()
    for name, width in share:
        synthesize(_Operator(name, width), name=name)
    ready.release()
    close_yosys()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu.put(sum(usage.ru_utime + usage.ru_stime for usage in usages))


def _bench_fast() -> tuple[float, float]:
    """Wall and CPU seconds for one design; the CPU seconds include starting both processes."""
    designs = _designs()
    context = multiprocessing.get_context("spawn")
    ready, go, cpu = context.Semaphore(0), context.Event(), context.Queue()
    workers = [
        context.Process(target=_work, args=(designs[index::_PROCESSES], ready, go, cpu))
        for index in range(_PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    start = time.perf_counter()
    go.set()
    for _ in workers:
        ready.acquire()
    wall = time.perf_counter() - start
    seconds = sum(cpu.get() for _ in workers)
    for worker in workers:
        worker.join()
    return wall / len(designs), seconds / len(designs)


def _bench_stock() -> float:
    """Wall seconds for one design of the stock flow, in one process that has loaded Yosys already."""
    designs = _designs()[:: len(_designs()) // _STOCK_DESIGNS]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.il" for index in range(len(designs))]
        for path, (name, width) in zip(paths, designs, strict=True):
            path.write_text(rtlil.convert(_Operator(name, width), name="top", emit_src=False))
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", _STOCK, *map(str, paths)], check=True, stdout=subprocess.DEVNULL
        )
        return (time.perf_counter() - start) / len(designs)


def main() -> None:
    wall, cpu = _bench_fast()
    stock = _bench_stock()
    print(f"fast flow, {_PROCESSES} processes: {1 / wall:.2f} designs/s, {cpu:.2f} CPU s a design")
    print(f"stock synth_xilinx, 1 process: {1 / stock:.2f} designs/s, {stock:.2f} s a design")
    print(f"fast / stock: {stock / wall:.1f}x")


if __name__ == "__main__":
    main()
