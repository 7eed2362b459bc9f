"""The hardware blocks by name: what can be set of them, how they are exercised, what their user must know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.lib import wiring

from hw._checks import check_natural, check_positive
from hw.binned_mac import BinnedMultiplyAccumulate
from hw.dot import DotProduct
from hw.mac import MultiplyAccumulate
from hw.mvu import MEMORIES, OVERFLOWS, MatrixVectorUnit, input_words, load_words
from hw.reference import multiply_accumulate
from hw.reference.mvu import matrix_vector
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import Format, ScalarFormat, parse_scalar_format

ANCHOR_DOT_LENGTH = 4608
"""Longest dot product of ResNet-18 (512 channels, 3 x 3), where arXiv 2311.12359 costs its MACs."""

LONGEST_RANDOM_DOT = 64
"""Pairs in the longest random dot product: many short ones exercise the streams more than few long ones."""


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
        outputs: the payloads of the output stream, from the reference model.
        first: input streams of which every payload is taken before the others are offered any.
    """

    inputs: Mapping[str, list[int]]
    outputs: list[int]
    first: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Block:
    """A component that can be costed, simulated and emitted by name.

    Attributes:
        name: as in ``--block name``.
        component: called with ``weights``, ``activations`` and the parameters.
        meaning: one line for lists.
        parameters: what can be set besides the formats.
        stimuli: called with the component, a random generator, the least number of outputs and, by
            name, the arguments of the component; the outputs come from :mod:`hw.reference`.
        datasheet: called with the component and, by name, its arguments.
        parse_format: the formats that it takes, by name; raises ``UsageError`` for others.
    """

    name: str
    component: Callable[..., wiring.Component]
    meaning: str
    parameters: tuple[Parameter, ...]
    stimuli: Callable[..., Stimuli]
    datasheet: Callable[..., Datasheet]
    parse_format: Callable[[str], Format] = parse_scalar_format

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


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        msg = f"{name} must be a name, not {value!r}"
        raise UsageError(msg, given=repr(value))


def _mac_stimuli(
    component: MultiplyAccumulate | BinnedMultiplyAccumulate,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    accumulator_bits: int | None,
) -> Stimuli:
    """Dot products of random codes, of random length."""
    lengths = rng.integers(1, min(dot_length, LONGEST_RANDOM_DOT) + 1, count)
    w, a = (_random_codes(fmt, int(lengths.sum()), rng) for fmt in (weights, activations))
    ends = np.cumsum(lengths)
    last = np.zeros(len(w), dtype=np.int64)
    last[ends - 1] = 1
    sums = [
        int(multiply_accumulate(w[end - n : end], a[end - n : end], weights=weights, activations=activations))
        for n, end in zip(lengths, ends, strict=True)
    ]
    pairs = w | a << weights.bits | last << weights.bits + activations.bits
    return Stimuli({"pairs": pairs.tolist()}, [_bits(total, component.accumulator_bits) for total in sums])


def _mac_datasheet(
    component: MultiplyAccumulate | BinnedMultiplyAccumulate,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    accumulator_bits: int | None,
) -> Datasheet:
    pause = getattr(component, "pause", 0)
    gap = f"with a pause of {pause} cycles" if pause else "without a gap"
    return Datasheet(
        component.latency,
        "from the one in which the last pair is taken to the first in which its sum is offered",
        f"one pair a cycle, {gap} between dot products",
        {
            "pairs": "a weight code and an activation code; last marks the final pair of a dot product",
            "sums": _sum_meaning(weights, activations),
        },
    )


def _dot_stimuli(
    component: DotProduct,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    lanes: int,
    levels_per_stage: int,
) -> Stimuli:
    """Vectors of random codes."""
    w, a = (_random_codes(fmt, (count, lanes), rng) for fmt in (weights, activations))
    vectors = [
        _packed(x, weights.bits) | _packed(y, activations.bits) << lanes * weights.bits
        for x, y in zip(w, a, strict=True)
    ]
    sums = multiply_accumulate(w, a, weights=weights, activations=activations)
    return Stimuli({"vectors": vectors}, [_bits(int(total), component.accumulator_bits) for total in sums])


def _dot_datasheet(
    component: DotProduct,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    lanes: int,
    levels_per_stage: int,
) -> Datasheet:
    return Datasheet(
        component.latency,
        "from the one in which a vector is taken to the first in which its sum is offered",
        "one vector a cycle",
        {
            "vectors": f"{lanes} weight codes and {lanes} activation codes",
            "sums": _sum_meaning(weights, activations),
        },
    )


def _mvu_stimuli(
    component: MatrixVectorUnit,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    rows: int,
    columns: int,
    accumulator_bits: int | None,
    **_: Any,
) -> Stimuli:
    """A random matrix, and as many random vectors as give at least *count* transfers of results."""
    folds = component.folding.row_folds
    matrix = _random_codes(weights, (rows, columns), rng)
    vectors = _random_codes(activations, (-(-count // folds), columns), rng)
    sums = matrix_vector(
        matrix, vectors, weights=weights, activations=activations, accumulator_bits=accumulator_bits
    )
    lanes = np.pad(sums, [(0, 0), (0, folds * component.folding.pe - rows)]).reshape(-1, component.folding.pe)
    bits = component.accumulator_bits
    outputs = [
        sum(_bits(int(total), bits) << bits * place for place, total in enumerate(transfer))
        for transfer in lanes.tolist()
    ]
    inputs = [_packed(word, activations.bits) for word in input_words(component, vectors)]
    return Stimuli({"load": load_words(component, matrix), "inputs": inputs}, outputs, first=("load",))


def _mvu_datasheet(
    component: MatrixVectorUnit, *, weights: ScalarFormat, activations: ScalarFormat, **_: Any
) -> Datasheet:
    folding = component.folding
    return Datasheet(
        component.latency,
        "from the one in which a vector's last word is taken to the first in which results of it are offered",
        f"one vector in {component.interval} cycles",
        {
            "load": f"weights, row by row, {folding.simd} a word",
            "inputs": f"{folding.simd} activation codes of a vector",
            "outputs": f"{folding.pe} sums; each the {_sum_meaning(weights, activations)}",
        },
    )


def _sum_meaning(weights: ScalarFormat, activations: ScalarFormat) -> str:
    return f"sum of the products, in units of 2**{weights.grid.lsb_exponent + activations.grid.lsb_exponent}"


def _packed(codes: npt.NDArray[np.int64], bits: int) -> int:
    """The codes side by side, the first in the low bits."""
    return sum(code << bits * place for place, code in enumerate(codes.tolist()))


def _random_codes(
    fmt: ScalarFormat, count: int | tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Codes that are numbers, each as likely as the others."""
    return rng.choice(np.flatnonzero(np.isfinite(fmt.values())), count).astype(np.int64)


def _bits(number: int, width: int) -> int:
    """Two's complement; wraps."""
    return number & ((1 << width) - 1)


_MAC_PARAMETERS = (
    Parameter("dot_length", ANCHOR_DOT_LENGTH, "pairs in the longest dot", check_positive),
    Parameter(
        "accumulator_bits", None, "accumulator width; the exact one where not set", _check_optional_positive
    ),
)

BLOCKS: dict[str, Block] = {
    block.name: block
    for block in (
        Block(
            "mac",
            MultiplyAccumulate,
            "multiply-accumulate unit with an exact fixed-point accumulator",
            _MAC_PARAMETERS,
            _mac_stimuli,
            _mac_datasheet,
        ),
        Block(
            "binned_mac",
            BinnedMultiplyAccumulate,
            "multiply-accumulate unit with a bin of LUT RAM for each exponent",
            _MAC_PARAMETERS,
            _mac_stimuli,
            _mac_datasheet,
        ),
        Block(
            "dot",
            DotProduct,
            "dot product of two vectors at once",
            (
                Parameter("lanes", 16, "products of a sum", check_positive),
                Parameter("levels_per_stage", 2, "adders between registers; 0: none", check_natural),
            ),
            _dot_stimuli,
            _dot_datasheet,
        ),
        Block(
            "mvu",
            MatrixVectorUnit,
            "matrix-vector unit that holds its weights",
            (
                Parameter("rows", 64, "results of a vector", check_positive),
                Parameter("columns", 64, "elements of a vector", check_positive),
                Parameter("pe", 4, "rows worked on at a time", check_positive),
                Parameter("simd", 8, "columns a cycle", check_positive),
                Parameter("memory", "lutram", f"of the weights: {', '.join(MEMORIES)}", _check_text),
                _MAC_PARAMETERS[1],
                Parameter(
                    "overflow", "error", f"of narrow accumulators: {', '.join(OVERFLOWS)}", _check_text
                ),
            ),
            _mvu_stimuli,
            _mvu_datasheet,
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
