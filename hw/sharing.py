"""Components that are built alike as instances of one module.

Amaranth makes a module of every component, however many are the same. A unit of hundreds of multipliers so
takes most of a minute to write, and Verilator and the C++ compiler take it for that many designs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Value
from amaranth.lib import wiring


class SharedModules:
    """A platform for elaboration that gathers the modules of :func:`add_alike`."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def convert(self, component: wiring.Component, *, name: str) -> str:
        """RTLIL of the component and of all modules that it shares.

        Args:
            component: elaborated once, so it cannot be used again.
            name: of its module.
        """
        top = rtlil.convert(component, name=name, platform=self, emit_src=False)
        return "\n".join([top, *self._texts])

    def instances(self, name: str, components: Sequence[wiring.Component]) -> list[Instance]:
        """An instance in place of each component; the first one is made the module of all."""
        text = rtlil.convert(components[0], name=name, platform=self, emit_src=False)
        self._texts.append(text)
        clocks = {"clk": ClockSignal(), "rst": ResetSignal()}
        common = {f"i_{port}": value for port, value in clocks.items() if _has_input(text, port)}
        return [Instance(name, **common, **_connections(component)) for component in components]


def add_alike(m: Module, name: str, components: Sequence[wiring.Component], platform: Any) -> None:
    """Adds components that were built with the same arguments, as submodules *name* and a number.

    Args:
        name: no other components of the design are added alike under it.
        platform: that of the elaboration; with :class:`SharedModules` they become one module. Transformers
            such as ``EnableInserter`` do not reach into it.
    """
    shared = isinstance(platform, SharedModules)
    added: Sequence[Any] = platform.instances(name, components) if shared else components
    for index, component in enumerate(added):
        m.submodules[f"{name}{index}"] = component


def _connections(component: wiring.Component) -> dict[str, Value]:
    return {
        f"{'i' if member.flow is wiring.In else 'o'}_{'__'.join(path)}": Value.cast(value)
        for path, member, value in component.signature.flatten(component)
    }


def _has_input(text: str, port: str) -> bool:
    return re.search(rf"^  wire width 1 input \d+ +\\{port}$", text, re.MULTILINE) is not None
