"""What Yosys' timing model of the DSP48E1 covers (``cells_sim.v`` of its ``synth_xilinx``), and what not.

The model has arcs from A, B, C, D and PCIN to P and PCOUT. Those of the pre-adder before a result that is
no register, of a multiplier that is switched at run time, of the control and cascade pins and of some
register settings are missing or too short, and ``sta`` then drops the path without a word. Paths from
register to register inside a slice are not in the model.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from costmodel.packing import nets_read

_TIMED_INPUTS = ("A", "B", "C", "D", "PCIN")
_TIMED_OUTPUTS = ("P", "PCOUT")
_REGISTERS = ("AREG", "BREG", "CREG", "DREG", "ADREG", "MREG", "PREG")
_REGISTERS_ON_THE_WAY = {
    "A": ("AREG", "MREG", "PREG"),
    "B": ("BREG", "MREG", "PREG"),
    "C": ("CREG", "PREG"),
    "D": ("DREG", "ADREG", "MREG", "PREG"),
    "PCIN": ("PREG",),
}  # UG479, "7 Series DSP48E1 Slice", figure 2-1


def unregistered_inputs(cell: Mapping[str, Any]) -> list[str]:
    """Data inputs of a DSP48E1 with no register between them and P."""
    registers = _registers(cell)
    return [pin for pin, names in _REGISTERS_ON_THE_WAY.items() if not any(registers[name] for name in names)]


def untimed_dsp(module: Mapping[str, Any]) -> str | None:
    """How a DSP48E1 of *module* (``write_json`` form) is used without a right timing arc; None if none is."""
    cells = module["cells"].values()
    slices = [cell for cell in cells if cell["type"] == "DSP48E1"]
    if not slices:
        return None
    read = nets_read(module)
    driven = {
        bit
        for cell in cells
        for pin, bits in cell["connections"].items()
        if cell["port_directions"][pin] == "output"
        for bit in bits
    }
    return next(filter(None, (_untimed_use(cell, driven, read) for cell in slices)), None)


def _untimed_use(cell: Mapping[str, Any], driven: Container[Any], read: Container[Any]) -> str | None:
    settings = cell.get("parameters", {})
    multiplier, pre_adder = settings.get("USE_MULT", "MULTIPLY"), settings.get("USE_DPORT", "FALSE")
    if pre_adder != "FALSE" and not _registers(cell)["PREG"]:  # with it the model has every setup time
        return f"USE_DPORT={pre_adder}"
    if multiplier not in ("MULTIPLY", "NONE"):
        return f"USE_MULT={multiplier}"
    return _untimed_registers(cell, multiplier) or _untimed_pins(cell, driven, read)


def _untimed_registers(cell: Mapping[str, Any], multiplier: str) -> str | None:
    on = _registers(cell)
    if on["PREG"]:
        return None
    if multiplier == "NONE":
        return "MREG=1 with USE_MULT=NONE" if on["MREG"] else _untimed_pre_adder(on)
    if on["MREG"]:
        return None
    if on["CREG"] and (on["AREG"] or on["BREG"]):
        return "CREG=1 with MREG=0 and PREG=0"  # the arrival at P is then the one from C, the shorter one
    return _untimed_pre_adder(on)


def _untimed_pre_adder(on: Mapping[str, bool]) -> str | None:
    """With ADREG set the model takes A for registered, although A goes past the pre-adder."""
    return "ADREG=1 with AREG=0, MREG=0 and PREG=0" if on["ADREG"] and not on["AREG"] else None


def _untimed_pins(cell: Mapping[str, Any], driven: Container[Any], read: Container[Any]) -> str | None:
    pins = sorted(_pins_without_arcs(cell, driven, read))
    return f"pins {', '.join(pins)}" if pins else None


def _pins_without_arcs(
    cell: Mapping[str, Any], driven: Container[Any], read: Container[Any]
) -> Iterator[str]:
    for pin, bits in cell["connections"].items():
        nets = [bit for bit in bits if isinstance(bit, int)]
        if cell["port_directions"][pin] == "output":
            if pin not in _TIMED_OUTPUTS and any(net in read for net in nets):
                yield pin
        elif pin.startswith(("CE", "RST")):
            if any(net in driven for net in nets):  # an input of the module is there at time 0
                yield pin
        elif pin not in _TIMED_INPUTS and pin != "CLK" and nets:
            yield pin


def _registers(cell: Mapping[str, Any]) -> dict[str, bool]:
    """Which registers are there; all are by default."""
    settings = cell.get("parameters", {})
    return {name: int(str(settings.get(name, "1")), 2) != 0 for name in _REGISTERS}
