"""Measured figures of table-lookup engines: a record of the usual ones, so that estimates need not wait.

``python -m costmodel.lookup_record`` measures all of :func:`recorded_designs` again and writes
``lookup_engines.json`` beside this module. Other designs are measured when somebody asks, and kept in the
cache.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from costmodel.cache import ContentCache
from costmodel.lookup_accelerator import LookupCost, LookupDesign
from costmodel.place_and_route import place_and_route
from costmodel.synthesis import synthesize

PATH = Path(__file__).with_name("lookup_engines.json")
LANES = (3, 6, 12)
"""What is synthesised: two sizes for a line, and one between them that it is checked at."""

PLACED_LANES = 3
PART = "xc7z020"
_WEIGHTS = ("ternary", "int2", "int4")


def recorded_designs() -> dict[str, LookupDesign]:
    """The designs of the record, by name."""
    designs = [LookupDesign(weights=weights) for weights in _WEIGHTS]
    return {design.name: design for design in designs}


def read_record() -> dict[str, LookupCost]:
    """The figures in the file, by name of the design."""
    engines = json.loads(PATH.read_text())["engines"]
    return {name: LookupCost.from_json(document) for name, document in engines.items()}


def lookup_cost(
    design: LookupDesign, *, is_placed: bool = True, tell: Callable[[str], None] | None = None
) -> LookupCost:
    """The figures of a design: from the record, else from the cache, else measured, which takes minutes.

    Args:
        design: of what.
        is_placed: with a clock frequency. A recorded design has one in any case.
        tell: is told, in a line, what takes so long.

    Raises:
        MissingExtraError: no place and route is installed, and the clock frequency is not known.
        SynthesisError, PlacementError: a tool failed.
    """
    known = read_record().get(design.name)
    return known or LookupCost.from_json(measure(design, is_placed=is_placed, tell=tell))


def measure(
    design: LookupDesign, *, is_placed: bool = True, tell: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """The figures in the shape that the record keeps, from the cache where they are there.

    Raises:
        MissingExtraError, SynthesisError, PlacementError: see :func:`lookup_cost`.
    """
    say = tell or (lambda text: None)
    cache = ContentCache(namespace="synthesis")
    found = []
    for lanes in LANES:
        say(f"synthesising {design.name} of {lanes} lanes")
        found.append(synthesize(design.build(lanes), name=design.name, part=PART, cache=cache))
    figures: dict[str, Any] = {"lanes": list(LANES)}
    for name in ("luts", "lutrams", "ffs"):
        figures[name] = [getattr(resources, name) for resources in found]
    tools = dict(found[0].tools)
    if is_placed:
        say(f"placing and routing {design.name} of {PLACED_LANES} lanes")
        placement = place_and_route(
            design.build(PLACED_LANES),
            name=design.name,
            cache=ContentCache(namespace="place_and_route"),
        )
        figures |= {"seeds_mhz": list(placement.seeds_mhz), "placed_lanes": PLACED_LANES}
        tools |= placement.tools
    return {**figures, "tools": tools}


def main() -> None:
    """The command of this module."""
    log = lambda text: print(text, file=sys.stderr)  # noqa: E731
    engines = {name: measure(design, tell=log) for name, design in sorted(recorded_designs().items())}
    PATH.write_text(json.dumps({"engines": engines}, indent=1) + "\n")
    print(f"{len(engines)} engines written to {PATH}")


if __name__ == "__main__":
    main()
