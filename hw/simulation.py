"""Amaranth's own simulator for components with input and output streams.

For small tests (about 2,000 cycles a second); :mod:`hw.verilator` runs long ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from amaranth.hdl import ClockDomain, Module, Value
from amaranth.lib import data, stream, wiring
from amaranth.sim import Simulator, SimulatorContext

from quantizers.errors import BitfrontError, UsageError, unknown_choice

_Items = TypeVar("_Items")


class SimulationError(BitfrontError):
    """A simulation stopped making progress or could not be built."""


@dataclass(frozen=True)
class Trace:
    """What came out of a simulation.

    Attributes:
        streams: of each output stream the payloads in the order in which they were taken; a list of numbers
            each where the payload is an array, its bits as a number where it is a structure.
        cycles: clock cycles from the first offer to the last output.
    """

    streams: dict[str, list[Any]]
    cycles: int

    @property
    def outputs(self) -> list[Any]:
        """Those of the only output stream."""
        (only,) = self.streams.values()
        return only


def stream_ports(component: wiring.Component) -> tuple[list[str], list[str]]:
    """Names of the input streams and of the output streams.

    Raises:
        UsageError: the component has no input stream, or no output stream.
    """
    ports = [
        (name, member.flow)
        for name, member in component.signature.members.items()
        if member.is_signature and isinstance(member.signature, stream.Signature)
    ]
    sinks = [name for name, flow in ports if flow is wiring.In]
    sources = [name for name, flow in ports if flow is wiring.Out]
    if not sinks or not sources:
        msg = f"{type(component).__name__} needs one input and one output stream, not {sinks} and {sources}"
        raise UsageError(msg, given=f"{sinks}, {sources}", expected=["one input stream", "one output stream"])
    return sinks, sources


def of_streams(
    items: _Items | Mapping[str, _Items], names: Sequence[str], *, what: str = "items", kind: str = "input"
) -> dict[str, _Items]:
    """What is said of each stream; the name may be left out where there is only one.

    Args:
        items: by the names of the streams, or of the only stream.
        names: of the streams.
        what, kind: what errors call the items and the streams.

    Raises:
        UsageError: names that are not those of the streams.
    """
    if not isinstance(items, Mapping):
        if len(names) == 1:
            return {names[0]: items}
        msg = f"the {what} need the names of the {kind} streams: {', '.join(names)}"
        raise UsageError(msg, given=f"{what} without names", expected=names)
    if set(items) != set(names):
        given = ", ".join(items)
        msg = f"the {what} must be for the {kind} streams {', '.join(names)}, not {given or 'none'}"
        raise UsageError(msg, given=given, expected=names)
    return {name: items[name] for name in names}


def counts_of_streams(counts: int | Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """How many outputs are waited for, by the output streams' names; as :func:`of_streams`."""
    return of_streams(counts, names, what="output counts", kind="output")


def progress(taken: Mapping[str, int], counts: Mapping[str, int]) -> str:
    """For errors: ``3 of 4 outputs``, or by the names of the streams where there are several."""
    return ", ".join(
        f"{taken[name]} of {count} {name if len(counts) > 1 else 'outputs'}" for name, count in counts.items()
    )


def check_probability(name: str, value: float) -> None:
    """Raises :class:`UsageError` unless 0 < *value* <= 1."""
    if not 0 < value <= 1:
        msg = f"{name} must be above 0 and at most 1, not {value!r}"
        raise UsageError(msg, given=value, expected=["0 < p <= 1"])


def check_run(
    names: Sequence[str], first: Sequence[str], valid_probability: float, ready_probability: float
) -> None:
    """Checks what both simulators are told of a run; *names* are the input streams.

    Raises:
        UsageError: a probability out of range, or *first* is not about input streams.
    """
    check_probability("valid_probability", valid_probability)
    check_probability("ready_probability", ready_probability)
    for name in first:
        if name not in names:
            raise unknown_choice("input stream", name, names)


def default_limit(
    item_count: int, output_count: int, valid_probability: float, ready_probability: float
) -> int:
    """Cycles after which a run is given up: generous for a component that takes an item in a few cycles."""
    return 1000 + int(20 * (item_count + output_count) / (valid_probability * ready_probability))


def simulate_stream(
    component: wiring.Component,
    items: Sequence[Any] | Mapping[str, Sequence[Any]],
    *,
    output_count: int | Mapping[str, int],
    seed: int = 0,
    valid_probability: float = 1.0,
    ready_probability: float = 1.0,
    first: Sequence[str] = (),
    max_cycles: int | None = None,
    trace: Path | None = None,
) -> Trace:
    """Offers *items* to the input streams and takes *output_count* payloads from the output streams.

    Producers and consumers are ready with the given probabilities in each cycle; once offered, an item
    stays until it is taken. A consumer that has what it waits for takes no more.

    Args:
        component: elaborated once, so it cannot be used again.
        items: payloads as Amaranth's simulator sets them: an integer, or a sequence or mapping for a
            layout. By the name of the stream, where there are several input streams.
        output_count: outputs to wait for. By the name of the stream, where there are several.
        seed: of all random choices.
        valid_probability: above 0, at most 1.
        ready_probability: above 0, at most 1.
        first: input streams of which every item is taken before the others are offered any.
        max_cycles: after which the run is given up; by default 1000 and 20 for every item and output,
            more of them with stalls.
        trace: where to write the waveforms, a VCD file, also if the run is given up.

    Raises:
        UsageError: a probability out of range, items or counts that do not fit the streams, or the
            component does not have input and output streams.
        SimulationError: the outputs did not come within *max_cycles*.
    """
    sinks, source_names = stream_ports(component)
    offered = of_streams(items, sinks)
    counts = counts_of_streams(output_count, source_names)
    check_run(sinks, first, valid_probability, ready_probability)
    sources = [getattr(component, name) for name in source_names]
    consumer_choice = random.Random(seed + 1)
    outputs: dict[str, list[Any]] = {name: [] for name in source_names}
    cycles = 0
    unfinished = set(first)
    if max_cycles is None:
        item_count = sum(map(len, offered.values()))
        max_cycles = default_limit(item_count, sum(counts.values()), valid_probability, ready_probability)

    async def produce(ctx: SimulatorContext, name: str, choice: random.Random) -> None:
        sink = getattr(component, name)
        while unfinished and name not in first:
            await ctx.tick()
        for item in offered[name]:
            while choice.random() >= valid_probability:
                await ctx.tick()
            ctx.set(Value.cast(sink.payload) if isinstance(item, int) else sink.payload, item)
            ctx.set(sink.valid, 1)
            taken = 0
            while not taken:
                *_, taken = await ctx.tick().sample(sink.ready)
            ctx.set(sink.valid, 0)
        unfinished.discard(name)

    async def consume(ctx: SimulatorContext) -> None:
        nonlocal cycles
        ports = [port for source in sources for port in (source.valid, source.payload)]
        while waiting := [name for name, count in counts.items() if len(outputs[name]) < count]:
            if cycles >= max_cycles:
                taken = {name: len(payloads) for name, payloads in outputs.items()}
                msg = f"{type(component).__name__} gave {progress(taken, counts)} in {max_cycles} cycles"
                raise SimulationError(msg)
            ready = [
                name in waiting and consumer_choice.random() < ready_probability for name in source_names
            ]
            for source, is_ready in zip(sources, ready, strict=True):
                ctx.set(source.ready, is_ready)
            _, _, *sampled = await ctx.tick().sample(*ports)
            cycles += 1
            for name, is_ready, valid, payload in zip(
                source_names, ready, sampled[::2], sampled[1::2], strict=True
            ):
                if valid and is_ready:
                    outputs[name].append(_plain(payload))

    # A component without registers brings no clock.
    design = Module()
    design.domains += ClockDomain("sync")
    design.submodules.dut = component
    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    # Those that go first come first, so that the others start in the cycle after the last of their items.
    for index, name in enumerate(sorted(sinks, key=lambda name: name not in first)):
        choice = random.Random(seed + index + (index > 0))
        simulator.add_testbench(partial(produce, name=name, choice=choice), background=True)
    simulator.add_testbench(consume)
    with nullcontext() if trace is None else simulator.write_vcd(str(trace)):
        simulator.run()
    return Trace(outputs, cycles)


def _plain(payload: Any) -> Any:
    """A payload as integers: the elements of an array, the bits of a structure."""
    if isinstance(payload, int):
        return payload
    return list(payload) if isinstance(payload.shape(), data.ArrayLayout) else payload.as_bits()
