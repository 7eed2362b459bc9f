"""The hardware blocks by name, with the parameters that can be set from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from amaranth.lib import wiring

from hw._checks import check_positive
from hw.mac import MultiplyAccumulate
from quantizers.errors import unknown_choice

ANCHOR_DOT_LENGTH = 4608
"""Longest dot product of ResNet-18 (512 channels, 3 x 3), where arXiv 2311.12359 costs its MACs."""


@dataclass(frozen=True)
class Parameter:
    """What can be set of a block.

    Attributes:
        name: as in ``--set name=value``.
        default: the value where none is given.
        meaning: one line for lists.
        check: called with the name and a given value; raises ``UsageError`` for a wrong one.
    """

    name: str
    default: Any
    meaning: str
    check: Callable[[str, object], None]


@dataclass(frozen=True)
class Block:
    """A component that can be costed, simulated and emitted by name.

    Attributes:
        name: as in ``--block name``.
        component: called with ``weights``, ``activations`` and the parameters.
        meaning: one line for lists.
        parameters: what can be set besides the formats.
    """

    name: str
    component: Callable[..., wiring.Component]
    meaning: str
    parameters: tuple[Parameter, ...]

    def parameters_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters: the defaults, with *changes*.

        Raises:
            UsageError: a name that this block does not have, or a value that it cannot take.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name, value in changes.items():
            if name not in known:
                raise unknown_choice(f"parameter of block {self.name!r}", name, known)
            known[name].check(name, value)
        return {name: changes.get(name, parameter.default) for name, parameter in known.items()}

    def build(self, **arguments: Any) -> Any:
        """The component, from formats and parameters; it checks them.

        Raises:
            UsageError: an argument that the component cannot take.
        """
        return self.component(**arguments)


def _check_optional_positive(name: str, value: object) -> None:
    if value is not None:
        check_positive(name, value)


BLOCKS: dict[str, Block] = {
    block.name: block
    for block in (
        Block(
            "mac",
            MultiplyAccumulate,
            "multiply-accumulate unit with an exact fixed-point accumulator",
            (
                Parameter("dot_length", ANCHOR_DOT_LENGTH, "pairs in the longest dot", check_positive),
                Parameter(
                    "accumulator_bits",
                    None,
                    "accumulator width; the exact one where not set",
                    _check_optional_positive,
                ),
            ),
        ),
    )
}


def find_block(name: str) -> Block:
    """The block of a name.

    Raises:
        UsageError: there is none; says which is nearest.
    """
    if name not in BLOCKS:
        raise unknown_choice("block", name, BLOCKS)
    return BLOCKS[name]
