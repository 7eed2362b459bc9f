"""FPGA parts that the synthesis flow models, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from quantizers.errors import unknown_choice


@dataclass(frozen=True, kw_only=True)
class Part:
    """One device.

    Attributes:
        name: device name without package and speed grade, such as ``xc7z020``.
        family: the family name of Yosys' ``synth_xilinx``.
        luts: LUT6 sites.
        lutrams: those of them that can be RAM (SLICEM).
        ffs: flip-flops.
        dsps: DSP48E1 slices.
        brams: block RAMs of 36 Kbit.
    """

    name: str
    family: str
    luts: int
    lutrams: int
    ffs: int
    dsps: int
    brams: int


# Zynq-7000: DS190 "Zynq-7000 SoC Data Sheet: Overview", table 1. Artix-7 and Kintex-7: DS180
# "7 Series FPGAs Data Sheet: Overview", tables 4 and 6; a slice holds four LUTs and eight flip-flops.
# LUTs that can be RAM: what Vivado's utilisation reports give as available.
# UltraScale and UltraScale+ are absent on purpose: Yosys maps them to the same 7-series cells.
PARTS = {
    part.name: part
    for part in (
        Part(name="xc7z010", family="xc7", luts=17_600, lutrams=6_000, ffs=35_200, dsps=80, brams=60),
        Part(name="xc7z020", family="xc7", luts=53_200, lutrams=17_400, ffs=106_400, dsps=220, brams=140),
        Part(name="xc7z045", family="xc7", luts=218_600, lutrams=70_400, ffs=437_200, dsps=900, brams=545),
        Part(name="xc7a35t", family="xc7", luts=20_800, lutrams=9_600, ffs=41_600, dsps=90, brams=50),
        Part(name="xc7a100t", family="xc7", luts=63_400, lutrams=19_000, ffs=126_800, dsps=240, brams=135),
        Part(name="xc7a200t", family="xc7", luts=134_600, lutrams=46_200, ffs=269_200, dsps=740, brams=365),
        Part(name="xc7k325t", family="xc7", luts=203_800, lutrams=64_000, ffs=407_600, dsps=840, brams=445),
    )
}
"""The parts by name."""


def find_part(name: str) -> Part:
    """The part called *name*.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in PARTS:
        raise unknown_choice("part", name, PARTS)
    return PARTS[name]
