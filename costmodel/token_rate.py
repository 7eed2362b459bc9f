"""Tokens per second of a whole model on a table-lookup engine: an analytic estimate.

Decoding one token multiplies each weight once, so two bounds hold whatever the schedule:

    compute bound = clock * lanes * lane_bits / (weight bits that a token looks up)
    memory bound  = bandwidth * efficiency / (bytes that a token reads)

and the estimate is the lower one. It leaves out attention scores, norms, filling of the tables and all
waiting, so it is an upper limit of what a design of these lanes reaches, not a prediction of it. Every
input carries its unit and where it comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from costmodel.geometries import Decoder, LatentDecoder
from costmodel.parts import Part
from quantizers.errors import UsageError, unknown_choice


@dataclass(frozen=True)
class Input:
    """One number that an estimate rests on.

    Attributes:
        value: a positive number.
        unit: its unit.
        source: where it comes from; "assumption" where nowhere.

    Raises:
        UsageError: the value is not positive and finite, or the source is empty.
    """

    value: float
    unit: str
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            msg = f"an input must be positive and finite, not {self.value!r} {self.unit}"
            raise UsageError(msg, given=self.value)
        if not self.source:
            msg = f"the input {self.value!r} {self.unit} needs a source"
            raise UsageError(msg, given=self.source)


@dataclass(frozen=True, kw_only=True)
class WeightScheme:
    """How weights are stored and looked up.

    A "weight bit" is one bit of one weight; a ternary weight, which one lookup of three serves, counts
    as one.

    Attributes:
        name: of the scheme.
        lookup_bits: weight bits that the lanes process for each weight.
        stored_bits: bits that a weight takes in memory, scales and zero points included.
        luts_per_bit: LUTs for each weight bit a cycle.
        lane_bits: weight bits that a lane processes a cycle.
    """

    name: str
    lookup_bits: Input
    stored_bits: Input
    luts_per_bit: Input
    lane_bits: Input


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory that holds the weights.

    Attributes:
        bandwidth: peak, in bytes a second.
        efficiency: the share of the peak that long reads reach, at most 1.
        capacity: in bytes.

    Raises:
        UsageError: the efficiency is above 1.
    """

    bandwidth: Input
    efficiency: Input
    capacity: Input

    def __post_init__(self) -> None:
        _check_share("efficiency", self.efficiency)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The lanes that fit and how fast they run.

    Attributes:
        clock: in hertz.
        lut_share: the share of the part's LUTs that lanes may take, at most 1.
        head_bits: bits of a weight of the output head, stored and looked up plane by plane.
        context: tokens whose keys and values a token reads.
        cache_bits: bits of a cached value, scales included.

    Raises:
        UsageError: the share is above 1.
    """

    clock: Input
    lut_share: Input
    head_bits: Input
    context: Input
    cache_bits: Input

    def __post_init__(self) -> None:
        _check_share("lut_share", self.lut_share)


@dataclass(frozen=True, kw_only=True)
class TokenRate:
    """The estimate for one model.

    Attributes:
        model, scheme, part: names.
        lanes: those that fit.
        lookup_bits: weight bits that a token looks up.
        read_bytes: bytes that a token reads: weights, output head, keys and values of the context.
        compute_bound, memory_bound: tokens per second.
        fits: whether they are within the memory's capacity; input embeddings are not counted.
        inputs: every number the estimate rests on, by name.
    """

    model: str
    scheme: str
    part: str
    lanes: int
    lookup_bits: float
    read_bytes: float
    compute_bound: float
    memory_bound: float
    fits: bool
    inputs: dict[str, Input]

    @property
    def tokens_per_second(self) -> float:
        """The lower of the two bounds."""
        return min(self.compute_bound, self.memory_bound)

    @property
    def saturating_lanes(self) -> int:
        """The lanes that keep up with the memory: more of them gain nothing."""
        return math.ceil(self.lanes * self.memory_bound / self.compute_bound)

    @property
    def limit(self) -> str:
        """What limits: "compute" or "memory"."""
        return "compute" if self.compute_bound < self.memory_bound else "memory"


def token_rate(
    geometry: Decoder | LatentDecoder, scheme: WeightScheme, part: Part, memory: Memory, engine: Engine
) -> TokenRate:
    """The tokens per second of *geometry* at batch 1.

    Raises:
        UsageError: not one lane fits.
    """
    budget = part.luts * engine.lut_share.value
    lane_luts = scheme.luts_per_bit.value * scheme.lane_bits.value
    lanes = int(budget / lane_luts)
    if lanes < 1:
        msg = f"a lane of {lane_luts:.0f} LUTs does not fit the {budget:.0f} LUTs set aside on {part.name}"
        raise UsageError(msg, given=round(lane_luts))
    head, cache = engine.head_bits.value, engine.context.value * engine.cache_bits.value
    lookups = geometry.layer_weights * scheme.lookup_bits.value + geometry.head_weights * head
    stored = geometry.layer_weights * scheme.stored_bits.value + geometry.head_weights * head
    read = (stored + geometry.cached_values * cache) / 8
    rate = engine.clock.value * lanes * scheme.lane_bits.value
    return TokenRate(
        model=geometry.name,
        scheme=scheme.name,
        part=part.name,
        lanes=lanes,
        lookup_bits=lookups,
        read_bytes=read,
        compute_bound=rate / lookups,
        memory_bound=memory.bandwidth.value * memory.efficiency.value / read,
        fits=read <= memory.capacity.value,
        inputs=_inputs(geometry, scheme, part, memory, engine),
    )


def _inputs(
    geometry: Decoder | LatentDecoder, scheme: WeightScheme, part: Part, memory: Memory, engine: Engine
) -> dict[str, Input]:
    return {
        "layer_weights": Input(geometry.layer_weights, "weights", geometry.source),
        "head_weights": Input(geometry.head_weights, "weights", geometry.source),
        "cached_values": Input(geometry.cached_values, "values a token", geometry.source),
        "luts": Input(part.luts, "LUTs", f"data sheet of {part.name}"),
        **{
            name: value
            for group in (scheme, memory, engine)
            for name, value in vars(group).items()
            if isinstance(value, Input)
        },
    }


def _check_share(name: str, share: Input) -> None:
    if share.value > 1:
        msg = f"{name} must be at most 1, not {share.value!r}"
        raise UsageError(msg, given=share.value)


_PROTOTYPE = "Yosys 0.23, 8 lanes, int8 activations, 24-bit accumulators, area only"
_GROUPED = "bits plus a float16 scale and a zero point for 128 weights"

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        WeightScheme(
            name="ternary",
            lookup_bits=Input(1, "weight bits a weight", "tables of three ternary weights"),
            stored_bits=Input(
                5 / 3, "bits a weight", "5 bits for three weights, arXiv 2502.11880; one scale"
            ),
            luts_per_bit=Input(6.5, "LUTs a weight a cycle", f"{_PROTOTYPE}; 27-entry LUTRAM"),
            lane_bits=Input(15, "weights a cycle", "98 LUTs a lane"),
        ),
        *(
            WeightScheme(
                name=f"int{bits}",
                lookup_bits=Input(bits, "weight bits a weight", "one table lookup a plane"),
                stored_bits=Input(bits + (16 + bits) / 128, "bits a weight", _GROUPED),
                luts_per_bit=Input(
                    4.6, "LUTs a weight bit a cycle", f"{_PROTOTYPE}; 16-entry LUTRAM, two banks"
                ),
                lane_bits=Input(16, "weight bits a cycle", "four lookups of four, 73 LUTs a lane"),
            )
            for bits in (1, 2, 3, 4)
        ),
    )
}
"""The schemes by name: ``ternary`` and ``int1`` to ``int4`` with a scale for 128 weights."""

_ZYNQ_DDR = "32-bit DDR3 at 1066 Mb/s, DS187 and DS191"
_ASSUMED_EFFICIENCY = Input(0.8, "of the peak", "assumption: long bursts")


def _zynq_memory() -> Memory:
    return Memory(
        bandwidth=Input(4 * 1066e6, "bytes/s", _ZYNQ_DDR),
        efficiency=_ASSUMED_EFFICIENCY,
        capacity=Input(2**30, "bytes", "UG585, chapter 10: at most 1 GB of DDR"),
    )


MEMORIES = {
    **{name: _zynq_memory() for name in ("xc7z010", "xc7z020", "xc7z045")},
    "xc7k325t": Memory(
        bandwidth=Input(8 * 1600e6, "bytes/s", "64-bit DDR3-1600 of the KC705 board, UG810"),
        efficiency=_ASSUMED_EFFICIENCY,
        capacity=Input(2**30, "bytes", "the SODIMM of the KC705 board, UG810"),
    ),
}
"""The memory of a part, or of its usual board, by the name of the part."""

ENGINE = Engine(
    clock=Input(200e6, "Hz", "assumption: not placed and routed"),
    lut_share=Input(0.5, "of the LUTs", "assumption: the rest for tables, attention and memory access"),
    head_bits=Input(4, "bits a weight", "assumption: the head in four planes"),
    context=Input(1024, "tokens", "assumption"),
    cache_bits=Input(8, "bits a value", "assumption"),
)
"""A starting point; replace what is known better."""

STANDARD = (
    ("BitNet-3B", "ternary"),
    ("MiniCPM-1.2B", "ternary"),
    ("MiniCPM-2.4B", "ternary"),
    ("MiniCPM4-0.5B", "ternary"),
    ("MiniCPM4-8B", "ternary"),
    ("Llama-2-7B", "int2"),
    ("Llama-2-7B", "int4"),
)
"""Models and schemes that the benchmark lists."""


def find_memory(part: Part) -> Memory:
    """The memory listed for *part*.

    Raises:
        UsageError: there is none; the message lists the parts that have one.
    """
    if part.name not in MEMORIES:
        raise unknown_choice("part with a known memory", part.name, MEMORIES)
    return MEMORIES[part.name]
