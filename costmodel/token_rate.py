"""Tokens per second of a whole model on a table-lookup engine: an analytic estimate from measured figures.

Decoding one token multiplies each weight once, so two bounds hold:

    compute bound = clock / (cycles of all matrices, one after the other)
    memory bound  = bandwidth * efficiency / (bytes that a token reads)

and the estimate is the lower one. Lanes, cycles and clock are those of the engine in :mod:`hw.lut_kernel`
(see :mod:`costmodel.lookup_accelerator`): rows that do not fill the lanes, columns that do not fill the
tables, and waiting for tables are in; attention scores, norms, and what scales and joins the sums are not.
So it is an upper limit of what a design of these lanes reaches, not a prediction of it. Every input
carries its unit and where it comes from.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, fields

from costmodel.geometries import Decoder, LatentDecoder, Matrix
from costmodel.lookup_accelerator import LANE_STEP, LookupCost, LookupDesign, matrix_cycles
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
    """How weights are looked up and stored.

    Attributes:
        design: the engine, lanes left open.
        stored_bits: bits that a weight of the layers takes in memory, scales and zero points included.
    """

    design: LookupDesign
    stored_bits: Input


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
class Setting:
    """What an estimate takes for granted of the system around the engine.

    Attributes:
        lut_share: the share of the part's LUTs that the engine may take, at most 1.
        lutram_share: the share of those that can be RAM, likewise.
        head_bits: whole bits of a weight of the output head.
        context: tokens whose keys and values a token reads.
        cache_bits: bits of a cached value, scales included.
        clock: in hertz; ``None`` for the one measured of the engine.

    Raises:
        UsageError: a share is above 1, or *head_bits* no whole number.
    """

    lut_share: Input
    lutram_share: Input
    head_bits: Input
    context: Input
    cache_bits: Input
    clock: Input | None = None

    def __post_init__(self) -> None:
        _check_share("lut_share", self.lut_share)
        _check_share("lutram_share", self.lutram_share)
        if self.head_bits.value != int(self.head_bits.value):
            msg = f"head_bits must be a whole number, not {self.head_bits.value!r}"
            raise UsageError(msg, given=self.head_bits.value)


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """What the keys and values of a context take of the memory.

    Attributes:
        stored_bytes: of the whole context.
        read_bytes: that a token reads.
        inputs: what both rest on besides the context, by name.
    """

    stored_bytes: float
    read_bytes: float
    inputs: dict[str, Input]


@dataclass(frozen=True, kw_only=True)
class TokenRate:
    """The estimate for one model.

    Attributes:
        model, weights, part: names.
        context: tokens in the cache.
        lanes: those that fit.
        enough_lanes: the fewest that keep up with the memory; ``None`` where all that fit do not.
        luts, lutrams: LUT6 sites of the engine, and those of them used as RAM.
        lane_limit: what no further lane fits: "LUTs" or "LUT RAM".
        cycles: of all matrices of a token.
        lane_use: the share of the lanes' lookups that are of weights of the model: the rest is waiting,
            rows beyond the last and columns beyond the last.
        weight_bytes, cache_bytes: bytes that a token reads of weights with the output head, and of the
            keys and values of the context.
        stored_cache_bytes: bytes of the keys and values of the whole context.
        compute_bound, memory_bound: tokens per second.
        fits: whether the weights and the whole cache are within the memory's capacity; input embeddings are
            not counted.
        inputs: every number the estimate rests on, by name.
    """

    model: str
    weights: str
    part: str
    context: int
    lanes: int
    enough_lanes: int | None
    luts: float
    lutrams: float
    lane_limit: str
    cycles: int
    lane_use: float
    weight_bytes: float
    cache_bytes: float
    stored_cache_bytes: float
    compute_bound: float
    memory_bound: float
    fits: bool
    inputs: dict[str, Input]

    @property
    def read_bytes(self) -> float:
        """Bytes that a token reads."""
        return self.weight_bytes + self.cache_bytes

    @property
    def tokens_per_second(self) -> float:
        """The lower of the two bounds."""
        return min(self.compute_bound, self.memory_bound)

    @property
    def limit(self) -> str:
        """What limits: "compute" or "memory"."""
        return "compute" if self.compute_bound < self.memory_bound else "memory"


def token_rate(
    geometry: Decoder | LatentDecoder,
    scheme: WeightScheme,
    cost: LookupCost,
    part: Part,
    memory: Memory,
    setting: Setting,
    *,
    cache: CacheUse | None = None,
) -> TokenRate:
    """The tokens per second of *geometry* at batch 1.

    Args:
        cost: measured of ``scheme.design``.
        cache: in place of ``setting.cache_bits`` for every value of the context, all of them read.

    Raises:
        UsageError: not three lanes fit, a matrix is too wide for the engine, or no clock is known.
    """
    lanes = _fitting_lanes(cost, part, setting)
    clock = _clock(cost, setting)
    head_rows = scheme.design.head_rows(int(setting.head_bits.value))
    head = Matrix(name="head", rows=geometry.vocabulary * head_rows, columns=geometry.hidden)
    cycles = _cycles(geometry, head, scheme.design, lanes)
    lookups = geometry.layer_weights + head.weights
    layer_bits = geometry.layer_weights * scheme.stored_bits.value
    weight_bytes = (layer_bits + head.weights * scheme.design.index_bits) / 8
    use = cache or _plain_cache(geometry, setting)
    read = weight_bytes + use.read_bytes
    memory_bound = memory.bandwidth.value * memory.efficiency.value / read
    lutrams_limit = part.lutrams * setting.lutram_share.value
    return TokenRate(
        model=geometry.name,
        weights=scheme.design.weights,
        part=part.name,
        context=int(setting.context.value),
        lanes=lanes,
        enough_lanes=_enough_lanes(geometry, head, scheme.design, lanes, clock.value / memory_bound),
        luts=cost.luts_of(lanes),
        lutrams=lanes * cost.lutrams_per_lane,
        lane_limit="LUT RAM" if (lanes + LANE_STEP) * cost.lutrams_per_lane > lutrams_limit else "LUTs",
        cycles=cycles,
        lane_use=lookups / (cycles * lanes * scheme.design.weights_per_lane),
        weight_bytes=weight_bytes,
        cache_bytes=use.read_bytes,
        stored_cache_bytes=use.stored_bytes,
        compute_bound=clock.value / cycles,
        memory_bound=memory_bound,
        fits=weight_bytes + use.stored_bytes <= memory.capacity.value,
        inputs={**_inputs(geometry, scheme, cost, part, memory, setting), **use.inputs},
    )


def _plain_cache(geometry: Decoder | LatentDecoder, setting: Setting) -> CacheUse:
    """The same bits for every value, and all of them read."""
    size = geometry.cached_values * setting.context.value * setting.cache_bits.value / 8
    return CacheUse(stored_bytes=size, read_bytes=size, inputs={"cache_bits": setting.cache_bits})


def _fitting_lanes(cost: LookupCost, part: Part, setting: Setting) -> int:
    luts, lutrams = part.luts * setting.lut_share.value, part.lutrams * setting.lutram_share.value
    lanes = cost.lanes_within(luts, lutrams)
    if not lanes:
        msg = (
            f"{LANE_STEP} lanes take {cost.luts_of(LANE_STEP):.0f} LUTs, "
            f"{LANE_STEP * cost.lutrams_per_lane:.0f} of them as RAM, and {luts:.0f} and {lutrams:.0f} are "
            f"set aside on {part.name}"
        )
        raise UsageError(msg, given=part.name)
    return lanes


def _clock(cost: LookupCost, setting: Setting) -> Input:
    if setting.clock is not None:
        return setting.clock
    if cost.fmax_mhz is None:
        msg = "the engine was not placed and routed, so a clock must be given"
        raise UsageError(msg, expected=["clock=200e6"])
    source = (
        f"measured: nextpnr, {cost.placed_lanes} lanes on a {cost.tools['placed_on']}, not the part named; "
        f"mean of {len(cost.seeds_mhz)} seeds, {min(cost.seeds_mhz):.0f} to {max(cost.seeds_mhz):.0f} MHz"
    )
    return Input(cost.fmax_mhz * 1e6, "Hz", source)


def _cycles(geometry: Decoder | LatentDecoder, head: Matrix, design: LookupDesign, lanes: int) -> int:
    """Of all matrices of a token, each of which waits for the one before."""
    layer = sum(matrix_cycles(design, matrix, lanes) for matrix in geometry.products)
    return geometry.layers * layer + matrix_cycles(design, head, lanes)


def _enough_lanes(
    geometry: Decoder | LatentDecoder, head: Matrix, design: LookupDesign, lanes: int, cycles: float
) -> int | None:
    """The fewest of *lanes* with which a token takes at most so many cycles."""
    steps = range(LANE_STEP, lanes + 1, LANE_STEP)
    # A lane more never takes longer: every block has at most as many turns.
    place = bisect.bisect_left(steps, -cycles, key=lambda n: -_cycles(geometry, head, design, n))
    return steps[place] if place < len(steps) else None


def _inputs(
    geometry: Decoder | LatentDecoder,
    scheme: WeightScheme,
    cost: LookupCost,
    part: Part,
    memory: Memory,
    setting: Setting,
) -> dict[str, Input]:
    sizes = ", ".join(map(str, cost.lanes))
    synthesis = f"measured: Yosys {cost.tools['yosys']}, engines of {sizes} lanes; "
    design = scheme.design
    given = {
        item.name: getattr(group, item.name)
        for group in (memory, setting)
        for item in fields(group)
        if item.name not in ("clock", "cache_bits")
    }
    head_rows = design.head_rows(int(setting.head_bits.value))
    return {
        "layer_weights": Input(geometry.layer_weights, "weights", geometry.source),
        "head_weights": Input(geometry.vocabulary * geometry.hidden, "weights", geometry.source),
        "cached_values": Input(geometry.cached_values, "values a token", geometry.source),
        "luts": Input(part.luts, "LUTs", f"data sheet of {part.name}"),
        "lutrams": Input(part.lutrams, "LUTs that can be RAM", f"Vivado's report for {part.name}"),
        "weights_per_lane": Input(
            design.weights_per_lane, "weights a cycle", f"of the engine: {design.groups} tables"
        ),
        "luts_per_lane": Input(
            cost.luts_per_lane, "LUTs", f"{synthesis}off a line by at most {100 * cost.line_error:.1f} %"
        ),
        "fixed_luts": Input(cost.fixed_luts, "LUTs", f"{synthesis}filling of tables and control"),
        "lutrams_per_lane": Input(cost.lutrams_per_lane, "LUTs used as RAM", f"{synthesis}tables and sums"),
        "stored_bits": scheme.stored_bits,
        "head_stored_bits": Input(
            head_rows * design.index_bits,
            "bits a weight",
            f"indices of {head_rows} rows of the engine's weights for a row",
        ),
        "clock": _clock(cost, setting),
        **given,
    }


def _check_share(name: str, share: Input) -> None:
    if share.value > 1:
        msg = f"{name} must be at most 1, not {share.value!r}"
        raise UsageError(msg, given=share.value)


_SCALED_BLOCK = 128


def weight_scheme(design: LookupDesign, stored_bits: Input | None = None) -> WeightScheme:
    """The scheme of an engine: its indices in memory, and for integers a scale for 128 weights.

    Args:
        design: the engine.
        stored_bits: in place of that.
    """
    bits, encoding = design.index_bits, design.build(LANE_STEP).encoding
    if encoding.is_ternary:
        source = f"the engine's indices, {encoding.index_bits} bits for {encoding.group} weights; one scale"
    else:
        bits += (16 + encoding.planes) / _SCALED_BLOCK
        source = f"the engine's indices, a float16 scale and a zero point for {_SCALED_BLOCK} weights"
    return WeightScheme(design=design, stored_bits=stored_bits or Input(bits, "bits a weight", source))


_ZYNQ_DDR = "32-bit DDR3 at 1066 Mb/s, DS187 and DS191"
ASSUMED_EFFICIENCY = Input(0.8, "of the peak", "assumption: long bursts")


def _zynq_memory() -> Memory:
    return Memory(
        bandwidth=Input(4 * 1066e6, "bytes/s", _ZYNQ_DDR),
        efficiency=ASSUMED_EFFICIENCY,
        capacity=Input(2**30, "bytes", "UG585, chapter 10: at most 1 GB of DDR"),
    )


MEMORIES = {
    **{name: _zynq_memory() for name in ("xc7z010", "xc7z020", "xc7z045")},
    "xc7k325t": Memory(
        bandwidth=Input(8 * 1600e6, "bytes/s", "64-bit DDR3-1600 of the KC705 board, UG810"),
        efficiency=ASSUMED_EFFICIENCY,
        capacity=Input(2**30, "bytes", "the SODIMM of the KC705 board, UG810"),
    ),
}
"""The memory of a part, or of its usual board, by the name of the part."""

SETTING = Setting(
    lut_share=Input(0.5, "of the LUTs", "assumption: the rest for attention and memory access"),
    lutram_share=Input(0.8, "of the LUTs that can be RAM", "assumption: the rest for queues"),
    head_bits=Input(4, "bits a weight", "assumption"),
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
"""Models and formats of their weights that are listed where none is asked for."""


def find_memory(part: Part) -> Memory:
    """The memory listed for *part*.

    Raises:
        UsageError: there is none; the message lists the parts that have one.
    """
    if part.name not in MEMORIES:
        raise unknown_choice("part with a known memory", part.name, MEMORIES)
    return MEMORIES[part.name]
