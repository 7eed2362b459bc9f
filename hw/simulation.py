"""Amaranth's own simulator for components with one input and one output stream.

For small tests (about 2,000 cycles a second); :mod:`hw.verilator` runs long ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.lib import stream, wiring
from amaranth.sim import Simulator, SimulatorContext

from quantizers.errors import BitfrontError, UsageError


class SimulationError(BitfrontError):
    """A simulation stopped making progress or could not be built."""


@dataclass(frozen=True)
class Trace:
    """What came out of a simulation.

    Attributes:
        outputs: payloads in the order in which they were taken.
        cycles: clock cycles from the first offer to the last output.
    """

    outputs: list[int]
    cycles: int


def stream_ports(component: wiring.Component) -> tuple[str, str]:
    """Names of the input and the output stream.

    Raises:
        UsageError: the component does not have exactly one of each.
    """
    ports = [
        (name, member.flow)
        for name, member in component.signature.members.items()
        if member.is_signature and isinstance(member.signature, stream.Signature)
    ]
    sinks = [name for name, flow in ports if flow is wiring.In]
    sources = [name for name, flow in ports if flow is wiring.Out]
    if len(sinks) != 1 or len(sources) != 1:
        msg = f"{type(component).__name__} needs one input and one output stream, not {sinks} and {sources}"
        raise UsageError(msg, given=f"{sinks}, {sources}", expected=["one input stream", "one output stream"])
    return sinks[0], sources[0]


def check_probability(name: str, value: float) -> None:
    """Raises :class:`UsageError` unless 0 < *value* <= 1."""
    if not 0 < value <= 1:
        msg = f"{name} must be above 0 and at most 1, not {value!r}"
        raise UsageError(msg, given=value, expected=["0 < p <= 1"])


def simulate_stream(
    component: wiring.Component,
    items: Sequence[Any],
    *,
    output_count: int,
    seed: int = 0,
    valid_probability: float = 1.0,
    ready_probability: float = 1.0,
) -> Trace:
    """Offers *items* to the input stream and takes *output_count* payloads from the output stream.

    Producer and consumer are ready with the given probabilities in each cycle; once offered, an item
    stays until it is taken.

    Args:
        component: elaborated once, so it cannot be used again.
        items: payloads as Amaranth's simulator sets them: an integer, or a mapping for a layout.
        output_count: outputs to wait for.
        seed: of both random choices.
        valid_probability: above 0, at most 1.
        ready_probability: above 0, at most 1.

    Raises:
        UsageError: a probability out of range, or the component has not one stream each way.
        SimulationError: the outputs did not come within a generous number of cycles.
    """
    check_probability("valid_probability", valid_probability)
    check_probability("ready_probability", ready_probability)
    sink_name, source_name = stream_ports(component)
    sink, source = getattr(component, sink_name), getattr(component, source_name)
    producer_choice, consumer_choice = random.Random(seed), random.Random(seed + 1)
    outputs: list[int] = []
    cycles = 0
    limit = 1000 + int(20 * (len(items) + output_count) / (valid_probability * ready_probability))

    async def produce(ctx: SimulatorContext) -> None:
        for item in items:
            while producer_choice.random() >= valid_probability:
                await ctx.tick()
            ctx.set(sink.payload, item)
            ctx.set(sink.valid, 1)
            taken = 0
            while not taken:
                *_, taken = await ctx.tick().sample(sink.ready)
            ctx.set(sink.valid, 0)

    async def consume(ctx: SimulatorContext) -> None:
        nonlocal cycles
        while len(outputs) < output_count:
            if cycles >= limit:
                name = type(component).__name__
                msg = f"{name} gave {len(outputs)} of {output_count} outputs in {limit} cycles"
                raise SimulationError(msg)
            ready = consumer_choice.random() < ready_probability
            ctx.set(source.ready, ready)
            _, _, valid, payload = await ctx.tick().sample(source.valid, source.payload)
            cycles += 1
            if valid and ready:
                outputs.append(payload)

    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(produce, background=True)
    simulator.add_testbench(consume)
    simulator.run()
    return Trace(outputs, cycles)
