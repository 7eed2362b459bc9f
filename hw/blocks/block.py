"""What a hardware block is: what can be set of it, how it is exercised, what its user must know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from amaranth.lib import wiring

from hw._checks import check_positive
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import Format, ScalarFormat, parse_scalar_format


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
class Stimuli:
    """What goes into a component, and what must come out.

    Payloads are the bits of the Verilog port as an unsigned number, the first field in the low bits.

    Attributes:
        inputs: the payloads of each input stream, by its name.
        outputs: the payloads of each output stream, by its name, from the reference model.
        first: input streams of which every payload is taken before the others are offered any.
    """

    inputs: Mapping[str, list[int]]
    outputs: Mapping[str, list[int]]
    first: tuple[str, ...] = ()

    @property
    def output_counts(self) -> dict[str, int]:
        """How many payloads each output stream gives."""
        return {name: len(payloads) for name, payloads in self.outputs.items()}


@dataclass(frozen=True)
class Datasheet:
    """What the user of a component must know.

    Attributes:
        latency: in cycles.
        latency_meaning: from when to when.
        throughput: how much a cycle.
        streams: what each stream carries, by its name.
    """

    latency: int
    latency_meaning: str
    throughput: str
    streams: Mapping[str, str]


def no_speed(component: Any, **arguments: Any) -> dict[str, float]:
    """Of blocks that tell none."""
    return {}


def matrix_speed(weights: ScalarFormat, count: int, interval: int) -> dict[str, float]:
    """Of a block that multiplies a matrix of *count* weights by a vector in *interval* cycles."""
    rate = count / interval
    return {
        "cycles_per_vector": interval,
        "weights_per_cycle": rate,
        "weight_bits_per_cycle": weights.bits * rate,
    }


FORMAT_ROLES = ("weights", "activations")
"""What blocks have formats of, if they have any."""


@dataclass(frozen=True)
class Block:
    """A component that can be costed, simulated and emitted by name.

    Attributes:
        name: as in ``--block name``.
        component: called with the formats and the parameters, by name.
        meaning: one line for lists.
        parameters: what can be set besides the formats.
        stimuli: called with the component, a random generator, the least number of outputs and, by
            name, the arguments of the component; the outputs come from an integer-exact model.
        datasheet: called with the component and, by name, its arguments.
        parse_format: the formats that it takes, by name; raises ``UsageError`` for others.
        speed: called with the component and, by name, its arguments: figures of its speed, by metric.
        formats: what it has formats of: :data:`FORMAT_ROLES`, or nothing.
    """

    name: str
    component: Callable[..., wiring.Component]
    meaning: str
    parameters: tuple[Parameter, ...]
    stimuli: Callable[..., Stimuli]
    datasheet: Callable[..., Datasheet]
    parse_format: Callable[[str], Format] = parse_scalar_format
    speed: Callable[..., Mapping[str, float]] = no_speed
    formats: tuple[str, ...] = FORMAT_ROLES

    def formats_of(self, names: Mapping[str, str]) -> dict[str, Format]:
        """The formats of the given names, by role.

        Raises:
            UsageError: an unknown format, one of a kind that this block does not take, one that is missing,
                or one for a role that it does not have.
        """
        for role, name in names.items():
            if role not in self.formats:
                choices = [parameter.name for parameter in self.parameters]
                msg = (
                    f"block {self.name!r} takes no formats, but {role} {name!r} were given; "
                    f"its parameters are: {', '.join(choices)}"
                )
                raise UsageError(msg, given=name, expected=choices)
        for role in self.formats:
            if role not in names:
                msg = f"block {self.name!r} needs the format of its {role}"
                raise UsageError(msg, expected=[role])
        return {role: self.parse_format(names[role]) for role in self.formats}

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


def check_optional_positive(name: str, value: object) -> None:
    if value is not None:
        check_positive(name, value)


def check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        msg = f"{name} must be a name, not {value!r}"
        raise UsageError(msg, given=repr(value))


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        msg = f"{name} must be true or false, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=["true", "false"])
