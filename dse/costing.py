"""What a block costs, for a pair of formats if it has formats: from the registry to measured resources."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from costmodel import (
    ContentCache,
    Resources,
    SynthesisError,
    find_part,
    synthesize,
    synthesize_verilog,
)
from costmodel.place_and_route import place_and_route, place_and_route_tools
from dse.engine import LocalEngine
from dse.metrics import Figure, Provenance
from dse.ranges import bit_range
from hw.blocks import find_block
from quantizers.errors import UsageError
from quantizers.formats import signed_formats

MIN_BITS, MAX_BITS = 2, 8

# Starting worker processes takes about as long as two designs.
_POOL_FROM = 4
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class BlockCost:
    """Resources of one design.

    Attributes:
        design: every parameter of it.
        metrics: resources by name; what could not be had is absent.
        tools: synthesiser version and flags.
        notes: what a reader of the figures must know, a sentence each.
    """

    design: dict[str, Any]
    metrics: dict[str, Figure]
    tools: dict[str, str]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The shape of one entry of ``designs`` in ``dse cost --json``."""
        metrics = {name: figure.as_json() for name, figure in self.metrics.items()}
        return {
            "design": self.design,
            "metrics": metrics,
            "tools": self.tools,
            "notes": list(self.notes),
        }


def cost_of_block(
    name: str,
    formats: Mapping[str, str],
    parameters: Mapping[str, Any],
    *,
    part: str,
    place: bool = False,
) -> BlockCost:
    """Build the block and synthesise it (from the cache where it is known).

    Of its *formats* the names are given by role, ``weights`` and ``activations``; none, if it has none.

    With *place*, ``fmax_mhz`` too, whatever the part: see :mod:`costmodel.place_and_route`.

    Raises:
        UsageError: an unknown block, parameter, format or part, or formats the block cannot do.
        SynthesisError: the synthesiser failed.
        MissingExtraError, PlacementError: no place and route, or it failed.
    """
    component = build_block(name, formats, parameters)
    resources = synthesize(component, name=name, part=part, cache=ContentCache(namespace="synthesis"))
    design = {"block": name, **formats, **parameters, "part": part}
    bits = getattr(component, "accumulator_bits", None)
    widths = {} if bits is None else {"accumulator_bits": Figure(bits, Provenance.ANALYTIC)}
    cost = _cost(design, resources, widths)
    return _placed(cost, component, name) if place else cost


def _placed(cost: BlockCost, component: Any, name: str) -> BlockCost:
    """The cost with the clock frequency that the block reaches."""
    placement = place_and_route(component, name=name, cache=ContentCache(namespace="place_and_route"))
    frequency = {key: Figure.from_json(value) for key, value in placement.as_metrics().items()}
    path = placement.critical_path
    note = (
        f"fmax_mhz is that of a Lattice {placement.tools['placed_on']}, whatever --part says: mean of "
        f"{len(placement.seeds_mhz)} seeds, ports in registers; the longest path leads from "
        f"{path.start} to {path.end}"
    )
    tools = {**cost.tools, **placement.tools}
    return BlockCost(cost.design, {**cost.metrics, **frequency}, tools, (*cost.notes, note))


def speed_of_block(name: str, formats: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, Figure]:
    """What the block tells of its speed, by metric: from its formulas, which its tests confirm.

    Raises:
        UsageError: as :func:`build_block`.
    """
    block = find_block(name)
    arguments = block_arguments(name, formats, parameters)
    speed = block.speed(block.build(**arguments), **arguments)
    return {name: Figure(value, Provenance.ANALYTIC) for name, value in speed.items()}


def build_block(name: str, formats: Mapping[str, str], parameters: Mapping[str, Any]) -> Any:
    """The component for the formats of the given names, by role.

    Raises:
        UsageError: an unknown block, parameter or format, or formats the block cannot do.
    """
    return find_block(name).build(**block_arguments(name, formats, parameters))


def block_arguments(name: str, formats: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the component of a block is called with.

    Raises:
        UsageError: an unknown block or format, or one that the block does not take, or that is missing.
    """
    return {**find_block(name).formats_of(formats), **parameters}


def cost_of_blocks(
    name: str,
    choices: Sequence[Mapping[str, str]],
    parameters: Mapping[str, Any],
    *,
    part: str,
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
    place: bool = False,
) -> list[BlockCost]:
    """The costs of many choices of formats, in order; many of them on all cores.

    Raises:
        UsageError: a block, parameter, format or part that is none, before anything is synthesised.
        SynthesisError: the synthesiser failed; of four choices and more, also place and route.
        MissingExtraError: no place and route is installed, before anything is synthesised.
        PlacementError: it failed.
    """
    find_part(part)
    if place:
        place_and_route_tools()
    for formats in choices:
        build_block(name, formats, parameters)
    if len(choices) < _POOL_FROM:
        return [
            cost_of_block(name, formats, parameters, part=part, place=place)
            for formats in progress(choices, len(choices))
        ]
    costs: dict[int, BlockCost] = {}
    function = partial(_cost_of_choice, name, dict(parameters), part, place)
    with LocalEngine() as engine:
        for outcome in progress(engine.run(function, choices, timeout_s=_TIMEOUT_S), len(choices)):
            if outcome.value is None:
                msg = f"{name} for {' and '.join(choices[outcome.index].values())}: {outcome.error}"
                raise SynthesisError(msg)
            costs[outcome.index] = outcome.value
    return [costs[index] for index in range(len(choices))]


def _cost_of_choice(
    name: str, parameters: dict[str, Any], part: str, place: bool, formats: Mapping[str, str]
) -> BlockCost:
    return cost_of_block(name, formats, parameters, part=part, place=place)


def cost_of_verilog(files: Sequence[Path], *, top: str | None, part: str) -> BlockCost:
    """The same ruler for anybody's RTL.

    Raises:
        UsageError: a missing file, an unknown top module or part.
        SynthesisError: the synthesiser rejects the source.
    """
    if top is None:
        msg = "--verilog needs --top NAME: which module is to be costed"
        raise UsageError(msg, expected=["--top NAME"])
    cache = ContentCache(namespace="synthesis")
    resources = synthesize_verilog(files, top=top, part=part, cache=cache)
    design = {"verilog": [str(file) for file in files], "top": top, "part": part}
    return _cost(design, resources, {})


def _cost(design: dict[str, Any], resources: Resources, more: dict[str, Figure]) -> BlockCost:
    measured = {name: Figure.from_json(document) for name, document in resources.as_metrics().items()}
    return BlockCost(design, {**measured, **more}, dict(resources.tools), resources.notes)


def takes_formats(block: str) -> bool:
    """Whether a block is made for formats of weights and activations.

    Raises:
        UsageError: an unknown block.
    """
    return bool(find_block(block).formats)


def block_formats(block: str, weights: str | None, activations: str | None) -> dict[str, str]:
    """The canonical names of a block's formats by role; activations are as weights where they are not given.

    Raises:
        UsageError: an unknown block or format, one that the block does not take, or one that is missing.
    """
    given = {"weights": weights, "activations": activations or weights}
    names = {role: name for role, name in given.items() if name is not None}
    return {role: fmt.name for role, fmt in find_block(block).formats_of(names).items()}


def chosen_formats(
    block: str, weights: str | None, activations: str | None, bits: str | None
) -> list[dict[str, str]]:
    """The formats of a command, by role: one choice, or every format of a range of widths.

    Raises:
        UsageError: both or neither were chosen, or any for a block that takes none; a block or a format is
            unknown, or the range is wrong.
    """
    if bits is None:
        if weights is None and takes_formats(block):
            msg = "say which formats: --weights F [--activations F], or --all --bits 3-8"
            raise UsageError(msg, expected=["--weights F", "--all"])
        return [block_formats(block, weights, activations)]
    if weights or activations:
        msg = "--all costs every format; it does not go together with --weights or --activations"
        raise UsageError(msg, given=weights or activations, expected=["--all", "--weights F"])
    if not takes_formats(block):
        msg = f"--all costs every format, and block {block!r} takes no formats; leave --all out"
        raise UsageError(msg, given="--all", expected=[f"--block {block}"])
    widths = bit_range(bits, MIN_BITS, MAX_BITS)
    return [
        {"weights": fmt.name, "activations": fmt.name} for width in widths for fmt in signed_formats(width)
    ]


def block_parameters(name: str, settings: Iterable[str]) -> dict[str, Any]:
    """The block's parameters: its defaults, changed by ``key=value`` settings.

    Raises:
        UsageError: an unknown block or parameter, or a setting that is not ``key=value``.
    """
    return find_block(name).parameters_with(parse_settings(settings))


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """``key=value`` texts as names and values, these as TOML has them, or else text.

    Raises:
        UsageError: a text that is not ``key=value``.
    """
    return dict(_setting(text) for text in settings)


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        msg = f"--set needs key=value, such as dot_length=1024, not {text!r}"
        raise UsageError(msg, given=text, expected=["key=value"])
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def reject_with_verilog(**options: object) -> None:
    """Raise for options that have no meaning for foreign RTL."""
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        msg = f"{', '.join(given)}: only for our own blocks; with --verilog only --top and --part apply"
        raise UsageError(msg, given=given[0], expected=["--verilog FILE... --top NAME"])
