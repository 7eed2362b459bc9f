"""Self-checking Verilog-2005 test benches of stream components, for Icarus, Verilator and others.

The bench offers every payload of the stimuli under random stalls, takes the outputs under random stalls,
compares them with those of the reference model, and watches the handshake of each output: an offered
payload stays until it is taken. Where nothing is offered the input payload is unknown (x), so that a
component that looks at it fails in simulators that have x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from amaranth.lib import wiring

from hw.blocks import Stimuli
from hw.verilog import Port, made_by, ports_of
from quantizers.errors import UsageError

IDLE_CYCLES = 10_000
"""Cycles, beyond four times the latency, without any transfer, after which the bench gives up."""

_BENCH = """\
@MADE_BY@
//
// Self-checking test bench of @NAME@: @OUTPUTS@ outputs against the reference model.
// Run it where its .hex files are:
//   Icarus Verilog:  iverilog -g2005 -o bench @NAME@_tb.v @NAME@.v && vvp bench
//   with Verilator:  verilator --binary --timing -o bench @NAME@_tb.v @NAME@.v && obj_dir/bench
// It ends with a line that begins with PASS or FAIL.

module @NAME@_tb;
  parameter VALID_OF_256 = 192;  // of 256 cycles, those in which an input may be offered
  parameter READY_OF_256 = 192;  // of 256 cycles, those in which an output may be taken
  parameter SEED = 1;            // of the stalls
  parameter IDLE_LIMIT = @IDLE_LIMIT@;  // cycles without a transfer before the bench gives up
  localparam COUNT = @OUTPUTS@;
  localparam DRAIN = 64;  // cycles in which a surplus output would be seen

  reg clk;
  reg [1:0] resetting;
  wire rst = resetting != 0;
  initial begin
    clk = 0;
    resetting = 3;
  end
  always #5 clk = ~clk;
  always @(posedge clk) if (rst) resetting <= resetting - 2'd1;

@WIRES@

  @NAME@ dut (
@CONNECTIONS@
  );

  integer cycles, idle, drained;

@SOURCES@

@SINKS@

  wire any_transfer = @ANY_TRANSFER@;
  wire [31:0] checked = @CHECKED@;
  wire [31:0] mismatches = @MISMATCHES@;
  wire [31:0] handshake_errors = @HANDSHAKE_ERRORS@;
  wire done = @ALL_DONE@;

  initial begin
    cycles = 0;
    idle = 0;
    drained = 0;
  end

  always @(posedge clk) if (!rst) begin
    if (!done) cycles <= cycles + 1;
    idle <= any_transfer ? 0 : idle + 1;
    if (done) drained <= drained + 1;
    if (drained == DRAIN || idle == IDLE_LIMIT) begin
      $display("%0s: %0d of %0d outputs checked, %0d mismatches, %0d handshake errors, %0d cycles",
        done && mismatches == 0 && handshake_errors == 0 ? "PASS" : "FAIL",
        checked, COUNT, mismatches, handshake_errors, cycles);
      $finish(0);
    end
  end
endmodule

// Offers the payloads of FILE, one after the other, under random stalls; starts when go is 1.
module @NAME@_tb_source #(
  parameter WIDTH = 1, parameter COUNT = 1, parameter FILE = "", parameter OF_256 = 256, parameter SEED = 1
) (
  input clk, input go, input ready, output reg valid, output [WIDTH-1:0] payload, output done
);
  reg [WIDTH-1:0] items [0:COUNT-1];
  integer next;
  wire taken = valid && ready;
  wire willing;
  @NAME@_tb_chance #(.OF_256(OF_256), .SEED(SEED)) stalls (.clk(clk), .go(go), .yes(willing));
  assign done = next == COUNT;
  assign payload = valid ? items[next] : {WIDTH{1'bx}};
  initial begin
    $readmemh(FILE, items);
    next = 0;
    valid = 0;
  end
  always @(posedge clk) if (go) begin
    if (taken) next <= next + 1;
    if (taken || !valid) valid <= willing && next + (taken ? 1 : 0) < COUNT;
  end
endmodule

// Takes payloads under random stalls and compares them with those of FILE; LABEL is what messages call one.
module @NAME@_tb_sink #(
  parameter WIDTH = 1, parameter COUNT = 1, parameter FILE = "", parameter LABEL = "output",
  parameter OF_256 = 256, parameter SEED = 1
) (
  input clk, input go, input [31:0] cycles, input valid, input [WIDTH-1:0] payload, output ready,
  output reg [31:0] checked, output reg [31:0] mismatches, output reg [31:0] handshake_errors, output done
);
  localparam SHOWN = 10;  // mismatches that are printed
  reg [WIDTH-1:0] expected [0:COUNT-1];
  reg [WIDTH-1:0] held;
  reg waiting;
  @NAME@_tb_chance #(.OF_256(OF_256), .SEED(SEED)) stalls (.clk(clk), .go(go), .yes(ready));
  assign done = checked == COUNT;
  initial begin
    $readmemh(FILE, expected);
    waiting = 0;
    checked = 0;
    mismatches = 0;
    handshake_errors = 0;
  end
  always @(posedge clk) if (go) begin
    waiting <= valid && !ready;
    held <= payload;
    if (waiting && (!valid || payload !== held)) begin
      handshake_errors <= handshake_errors + 1;
      if (handshake_errors < SHOWN)
        $display("cycle %0d: the offered %0s changed before it was taken", cycles, LABEL);
    end

    if (valid && ready) begin
      if (done) begin
        $display("cycle %0d: an %0s too many", cycles, LABEL);
        mismatches <= mismatches + 1;
      end else begin
        checked <= checked + 1;
        if (payload !== expected[checked]) begin
          mismatches <= mismatches + 1;
          if (mismatches < SHOWN)
            $display("%0s %0d: expected %0h, got %0h", LABEL, checked, expected[checked], payload);
        end
      end
    end
  end
endmodule

// 1 in OF_256 of 256 cycles, at random (xorshift32, G. Marsaglia 2003: the same in every simulator).
module @NAME@_tb_chance #(parameter OF_256 = 256, parameter SEED = 1) (
  input clk, input go, output reg yes
);
  reg [31:0] state;
  function [31:0] following;
    input [31:0] now;
    begin
      following = now ^ (now << 13);
      following = following ^ (following >> 17);
      following = following ^ (following << 5);
    end
  endfunction
  initial begin
    state = 2 * SEED + 1;
    yes = 0;
  end
  always @(posedge clk) if (go) begin
    state <= following(state);
    yes <= {24'd0, state[15:8]} < OF_256;
  end
endmodule
"""

_SOURCE = """\
  @NAME@_tb_source #(
    .WIDTH(@WIDTH@), .COUNT(@COUNT@), .FILE("@FILE@"), .OF_256(VALID_OF_256), .SEED(SEED + @INDEX@)
  ) @STREAM@_source (
    .clk(clk), .go(@GO@),
    .ready(@STREAM@_ready), .valid(@STREAM@_valid), .payload(@STREAM@), .done(@STREAM@_done)
  );"""

_SINK = """\
  @NAME@_tb_sink #(
    .WIDTH(@WIDTH@), .COUNT(@COUNT@), .FILE("@FILE@"), .LABEL("@LABEL@"),
    .OF_256(READY_OF_256), .SEED(SEED@INDEX@)
  ) @STREAM@_sink (
    .clk(clk), .go(!rst), .cycles(cycles),
    .ready(@STREAM@_ready), .valid(@STREAM@_valid), .payload(@STREAM@), .done(@STREAM@_done),
    .checked(@STREAM@_checked), .mismatches(@STREAM@_mismatches),
    .handshake_errors(@STREAM@_handshake_errors)
  );"""

_COUNTERS = ("checked", "mismatches", "handshake_errors")


def testbench_files(
    component: wiring.Component, stimuli: Stimuli, *, name: str, latency: int
) -> dict[str, str]:
    """The texts of a bench by the names of their files: ``NAME_tb.v`` and the vectors it reads.

    Args:
        component: with streams only; it is only asked for its ports.
        stimuli: payloads for every stream.
        name: of the module that :func:`hw.verilog.to_verilog` makes of the component.
        latency: of the component in cycles; sets how long the bench waits for an output.

    Raises:
        UsageError: the component has other ports than streams, or no output stream; the stimuli are not for
            its streams, or hold nothing for one of them.
    """
    widths = {port.name: port.width for port in ports_of(component)}
    sources, sinks = _streams(ports_of(component))
    _check(stimuli, sources, sinks, name)
    bench = _fill(
        _BENCH,
        CONNECTIONS=_connections([*sources, *sinks]),
        SOURCES="\n".join(_source(stream, stimuli, index, widths) for index, stream in enumerate(sources, 1)),
        SINKS="\n".join(_sinks(sinks, stimuli, len(sources), widths)),
        WIRES="\n".join([*(_wires(stream, widths) for stream in [*sources, *sinks]), *map(_counters, sinks)]),
        ANY_TRANSFER=" || ".join(f"({wire}_valid && {wire}_ready)" for wire in [*sources, *sinks]),
        ALL_DONE=" && ".join(f"{sink}_done" for sink in sinks),
        OUTPUTS=sum(stimuli.output_counts.values()),
        IDLE_LIMIT=IDLE_CYCLES + 4 * latency,
        MADE_BY=made_by(),
        **{counter.upper(): " + ".join(f"{sink}_{counter}" for sink in sinks) for counter in _COUNTERS},
    )
    texts = {f"{name}_tb.v": _fill(bench, NAME=name)}
    for stream, payloads in {**stimuli.inputs, **stimuli.outputs}.items():
        texts[f"{name}_tb_{stream}.hex"] = _hex_file(payloads)
    return texts


def output_label(stream: str, streams: Sequence[str]) -> str:
    """What messages call an output of a stream, one of *streams*: that of the only one has no name."""
    return "output" if len(streams) == 1 else f"output of {stream}"


def _streams(ports: Sequence[Port]) -> tuple[list[str], list[str]]:
    """Names of the input streams and of the output streams."""
    payloads = [port for port in ports if port.name.endswith("__payload")]
    sources = [port.name.removesuffix("__payload") for port in payloads if port.direction == "input"]
    sinks = [port.name.removesuffix("__payload") for port in payloads if port.direction == "output"]
    if not sinks or len(ports) != 2 + 3 * len(payloads):
        names = [port.name for port in ports]
        msg = f"a test bench needs a component with streams only, one of them an output, not {names}"
        raise UsageError(msg, given=names, expected=["input streams and output streams"])
    return sources, sinks


def _check(stimuli: Stimuli, sources: Sequence[str], sinks: Sequence[str], name: str) -> None:
    counts = {stream: len(payloads) for stream, payloads in stimuli.inputs.items()}
    wanted = stimuli.output_counts
    named = sorted(sources) == sorted(counts) and sorted(sinks) == sorted(wanted)
    if not named or not all([*counts.values(), *wanted.values()]):
        msg = f"the bench of {name} needs payloads for {sources} and {sinks}, not {counts} and {wanted}"
        raise UsageError(msg, given={**counts, **wanted}, expected=[*sources, *sinks])


def _connections(streams: Sequence[str]) -> str:
    wires = {"clk": "clk", "rst": "rst"}
    for stream in streams:
        wires |= {
            f"{stream}__payload": stream,
            f"{stream}__valid": f"{stream}_valid",
            f"{stream}__ready": f"{stream}_ready",
        }
    return ",\n".join(f"    .{port}({wire})" for port, wire in wires.items())


def _wires(stream: str, widths: Mapping[str, int]) -> str:
    return (
        f"  wire [{widths[f'{stream}__payload'] - 1}:0] {stream};\n"
        f"  wire {stream}_valid, {stream}_ready, {stream}_done;"
    )


def _counters(stream: str) -> str:
    return f"  wire [31:0] {', '.join(f'{stream}_{counter}' for counter in _COUNTERS)};"


def _sinks(
    sinks: Sequence[str], stimuli: Stimuli, source_count: int, widths: Mapping[str, int]
) -> Iterator[str]:
    for index, stream in enumerate(sinks):
        yield _fill(
            _SINK,
            STREAM=stream,
            WIDTH=widths[f"{stream}__payload"],
            COUNT=len(stimuli.outputs[stream]),
            FILE=f"@NAME@_tb_{stream}.hex",
            LABEL=output_label(stream, sinks),
            INDEX=f" + {source_count + index}" if index else "",
        )


def _source(stream: str, stimuli: Stimuli, index: int, widths: Mapping[str, int]) -> str:
    waits_for = () if stream in stimuli.first else stimuli.first
    return _fill(
        _SOURCE,
        STREAM=stream,
        WIDTH=widths[f"{stream}__payload"],
        COUNT=len(stimuli.inputs[stream]),
        FILE=f"@NAME@_tb_{stream}.hex",
        INDEX=index,
        GO=" && ".join(["!rst", *(f"{other}_done" for other in waits_for)]),
    )


def _hex_file(payloads: Sequence[int]) -> str:
    """For ``$readmemh``: one number a line."""
    return "".join(f"{line}\n" for line in [made_by(), *(f"{payload:x}" for payload in payloads)])


def _fill(template: str, **values: object) -> str:
    for name, value in values.items():
        template = template.replace(f"@{name}@", str(value))
    return template
