"""Amaranth's own simulator for components with input streams and one output stream.

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
        outputs: payloads in the order in which they were taken; a list of numbers each where the payload
            is an array, its bits as a number where it is a structure.
        cycles: clock cycles from the first offer to the last output.
    """

    outputs: list[Any]
    cycles: int


def stream_ports(component: wiring.Component) -> tuple[list[str], str]:
    """Names of the input streams and of the output stream.

    Raises:
        UsageError: the component does not have exactly one output stream and at least one input stream.
    """
    ports = [
        (name, member.flow)
        for name, member in component.signature.members.items()
        if member.is_signature and isinstance(member.signature, stream.Signature)
    ]
    sinks = [name for name, flow in ports if flow is wiring.In]
    sources = [name for name, flow in ports if flow is wiring.Out]
    if not sinks or len(sources) != 1:
        msg = f"{type(component).__name__} needs one input and one output stream, not {sinks} and {sources}"
        raise UsageError(msg, given=f"{sinks}, {sources}", expected=["one input stream", "one output stream"])
    return sinks, sources[0]


def items_of_streams(items: _Items | Mapping[str, _Items], sinks: Sequence[str]) -> dict[str, _Items]:
    """What each input stream is offered; the name may be left out where there is only one.

    Raises:
        UsageError: names that are not those of the input streams.
    """
    if not isinstance(items, Mapping):
        if len(sinks) == 1:
            return {sinks[0]: items}
        msg = f"the items need the names of the input streams: {', '.join(sinks)}"
        raise UsageError(msg, given="items without names", expected=sinks)
    if set(items) != set(sinks):
        msg = f"the items must be for the input streams {', '.join(sinks)}, not {', '.join(items) or 'none'}"
        raise UsageError(msg, given=", ".join(items), expected=sinks)
    return {name: items[name] for name in sinks}


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
    output_count: int,
    seed: int = 0,
    valid_probability: float = 1.0,
    ready_probability: float = 1.0,
    first: Sequence[str] = (),
    max_cycles: int | None = None,
    trace: Path | None = None,
) -> Trace:
    """Offers *items* to the input streams and takes *output_count* payloads from the output stream.

    Producers and consumer are ready with the given probabilities in each cycle; once offered, an item
    stays until it is taken.

    Args:
        component: elaborated once, so it cannot be used again.
        items: payloads as Amaranth's simulator sets them: an integer, or a sequence or mapping for a
            layout. By the name of the stream, where there are several input streams.
        output_count: outputs to wait for.
        seed: of all random choices.
        valid_probability: above 0, at most 1.
        ready_probability: above 0, at most 1.
        first: input streams of which every item is taken before the others are offered any.
        max_cycles: after which the run is given up; by default 1000 and 20 for every item and output,
            more of them with stalls.
        trace: where to write the waveforms, a VCD file, also if the run is given up.

    Raises:
        UsageError: a probability out of range, items that do not fit the streams, or the component does
            not have input streams and one output stream.
        SimulationError: the outputs did not come within *max_cycles*.
    """
    sinks, source_name = stream_ports(component)
    offered = items_of_streams(items, sinks)
    check_run(sinks, first, valid_probability, ready_probability)
    source = getattr(component, source_name)
    consumer_choice = random.Random(seed + 1)
    outputs: list[Any] = []
    cycles = 0
    unfinished = set(first)
    if max_cycles is None:
        item_count = sum(map(len, offered.values()))
        max_cycles = default_limit(item_count, output_count, valid_probability, ready_probability)

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
        while len(outputs) < output_count:
            if cycles >= max_cycles:
                name = type(component).__name__
                msg = f"{name} gave {len(outputs)} of {output_count} outputs in {max_cycles} cycles"
                raise SimulationError(msg)
            ready = consumer_choice.random() < ready_probability
            ctx.set(source.ready, ready)
            _, _, valid, payload = await ctx.tick().sample(source.valid, source.payload)
            cycles += 1
            if valid and ready:
                outputs.append(_plain(payload))

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
