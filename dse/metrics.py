"""The metrics a result can hold: unit, direction, meaning. The one list that studies may name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from quantizers.errors import unknown_choice


class Provenance(StrEnum):
    """Where a figure comes from."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    CALIBRATED = "calibrated"
    ANALYTIC = "analytic"
    VENDOR = "vendor"


@dataclass(frozen=True)
class Metric:
    """What a metric means.

    Attributes:
        name: column name in every table.
        label: axis title with the unit.
        maximise: more is better.
        percent: a fraction in the tables, shown in percent.
        description: one sentence for the report and ``--help``.
    """

    name: str
    label: str
    maximise: bool
    description: str
    percent: bool = False


@dataclass(frozen=True)
class Figure:
    """One measured or estimated value, with its 95 % interval where it has one.

    The interval of ``fmax_mhz`` is the range of the placer's seeds, of which the value is the mean.
    """

    value: float
    provenance: Provenance
    interval: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """The value as in the command line's JSON; no interval key where there is none."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Figure:
        interval = document.get("interval")
        return cls(
            document["value"],
            Provenance(document["provenance"]),
            None if interval is None else (interval[0], interval[1]),
        )


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "top-1 accuracy (%)", True, "Correct answers on the evaluation images.", True),
        Metric(
            "accuracy_drop_points",
            "accuracy lost against float (points)",
            False,
            "Float accuracy minus quantized accuracy on the same images; interval from paired answers.",
        ),
        Metric(
            "selection_accuracy",
            "accuracy on every other image (%)",
            True,
            "On the first, third, ... image: what the best of several formats is chosen by.",
            True,
        ),
        Metric(
            "held_out_accuracy",
            "accuracy on the other images (%)",
            True,
            "On the second, fourth, ... image: what the chosen format is reported by.",
            True,
        ),
        Metric("float_accuracy", "float accuracy (%)", True, "The float network, same images.", True),
        Metric("perplexity", "perplexity", False, "Of the text, keys and values from the cache."),
        Metric("float_perplexity", "perplexity, exact cache", False, "Same predictions, nothing compressed."),
        Metric(
            "perplexity_increase",
            "perplexity above that of the exact cache (%)",
            False,
            "Of the same predictions; interval from paired log likelihoods.",
            True,
        ),
        Metric(
            "next_token_agreement",
            "same likeliest token (%)",
            True,
            "Predictions whose likeliest token is that of the exact cache.",
            True,
        ),
        Metric(
            "mean_kl_nats", "divergence (nats)", False, "Mean Kullback-Leibler divergence of predictions."
        ),
        Metric(
            "bits_per_element",
            "bits per cached element",
            False,
            "Stored bits of an element of keys and values in a long sequence, all metadata counted.",
        ),
        Metric(
            "bits_per_element_seen",
            "bits per cached element that queries read",
            False,
            "The same over all queries of a window: with first tokens and open groups that are still exact.",
        ),
        Metric("weight_bits", "weight format (bits)", False, "Stored bits per weight of the inner layers."),
        Metric("activation_bits", "activation format (bits)", False, "Bits per activation, inner layers."),
        Metric(
            "weight_memory_kib",
            "weight memory (KiB)",
            False,
            "All weights, with the scales of groups and blocks; absent where a layer stays in float.",
        ),
        Metric(
            "luts",
            "LUT6 sites",
            False,
            "LUT6 sites after pairing: of a block, or of the largest MAC that the inner weight layers need.",
        ),
        Metric(
            "activation_product_luts",
            "LUT6 sites of one attention MAC",
            False,
            "The same for products of two activations (attention), where the network has any.",
        ),
        Metric(
            "cycles_per_product",
            "cycles per product",
            False,
            "Of that unit, its pauses between dot products included, for the network's dot products.",
        ),
        Metric(
            "lut_cycles_per_product",
            "LUT6 sites x cycles per product",
            False,
            "Area for a product a cycle: how large so many of these units are that the network runs as fast.",
        ),
        Metric(
            "cycles_per_vector",
            "cycles per vector",
            False,
            "From one vector to the next: of a matrix-vector product, or of what else a block does with one.",
        ),
        Metric(
            "weight_bits_per_cycle",
            "weight bits per cycle",
            True,
            "Bits of weights that are multiplied in a cycle, over whole vectors.",
        ),
        Metric(
            "luts_per_weight_bit_cycle",
            "LUT6 sites per weight bit and cycle",
            False,
            "LUT6 sites over weight bits per cycle.",
        ),
        Metric("weights_per_cycle", "weights per cycle", True, "Weights that are multiplied in a cycle."),
        Metric(
            "luts_per_weight_cycle",
            "LUT6 sites per weight and cycle",
            False,
            "LUT6 sites over weights per cycle.",
        ),
        Metric(
            "elements_per_cycle",
            "elements per cycle",
            True,
            "Elements of vectors that a block works on in a cycle, over whole vectors.",
        ),
        Metric(
            "luts_per_element_cycle",
            "LUT6 sites per element and cycle",
            False,
            "LUT6 sites over elements per cycle.",
        ),
        Metric("lut_cells", "LUT cells", False, "LUT cells as the synthesiser counts them."),
        Metric("carries", "carry blocks (CARRY4)", False, "CARRY4 blocks."),
        Metric("carry_positions", "carry positions in use", False, "Positions of CARRY4 blocks in use."),
        Metric("ffs", "flip-flops", False, "Flip-flops."),
        Metric("dsps", "DSP blocks", False, "DSP48 blocks."),
        Metric("brams", "block RAMs", False, "Block RAMs."),
        Metric("lutrams", "LUTs used as RAM", False, "LUTs used as RAM; also counted in luts."),
        Metric("logic_delay_ns", "logic delay (ns, no routing)", False, "Longest logic path, no routing."),
        Metric(
            "fmax_mhz",
            "clock frequency (MHz)",
            True,
            "Highest clock frequency after place and route on a Lattice ECP5, mean of several seeds.",
        ),
        Metric("accumulator_bits", "accumulator (bits)", False, "Width of the exact accumulator."),
    )
}


def metric(name: str) -> Metric:
    """The metric of a name; a wrong name gives the nearest and all valid ones."""
    try:
        return METRICS[name]
    except KeyError:
        raise unknown_choice("metric", name, METRICS) from None
