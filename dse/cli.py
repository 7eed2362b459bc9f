"""The ``dse`` command. Every command takes ``--json``: then one JSON document goes to stdout."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shlex
import signal
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dse import console
from quantizers.errors import BitfrontError, UsageError

if TYPE_CHECKING:  # commands import what they need, so that 'dse --help' need not wait
    from dse.costing import BlockCost

EXIT_SOME_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_SIGNAL = 128  # plus the signal's number, as shells have it

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which number format, quantization method and datapath for this network on this FPGA?",
)

hardware_app = typer.Typer(
    no_args_is_help=True, help="The blocks of hardware: list, write as Verilog, simulate, synthesise."
)
app.add_typer(hardware_app, name="hw")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, logs on stderr.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value; may be repeated."),
]
BlockName = Annotated[str, typer.Argument(metavar="BLOCK", help="A block of 'dse hw list', such as mac.")]
WeightFormat = Annotated[
    str | None,
    typer.Option("--weights", help="Weight format, such as e2m1; needed by blocks that take formats."),
]
ActivationFormat = Annotated[
    str | None, typer.Option("--activations", help="Activation format. Default: as weights.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the random stimuli.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what an earlier call wrote.")]
TextFile = Annotated[
    Path | None, typer.Option("--text", help="UTF-8 text. Default: the Python language reference.")
]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder, or file, of the workload's data.")]


class Stopped(BaseException):
    """Ctrl-C or SIGTERM; not a ``KeyboardInterrupt``, which Typer swallows.

    Attributes:
        signal: which one.
        resume: the command that goes on from here; empty where there is nothing to go on with.
    """

    def __init__(self, number: int, resume: str = "") -> None:
        self.signal = signal.Signals(number)
        self.resume = resume
        kept = f"; what is finished is kept, continue with: {resume}" if resume else ""
        super().__init__(f"stopped by {self.signal.name}{kept}")


def _show_version(wanted: bool) -> None:
    if wanted:
        console.show(f"bitfront {importlib.metadata.version('bitfront')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """What belongs to no command."""


@app.command()
def sweep(
    study: Annotated[Path, typer.Argument(help="Study file (TOML), such as sweeps/quickstart.toml.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/NAME.")] = None,
    settings: Overrides = None,
    engine: Annotated[str, typer.Option(help="local, or dask for a cluster.")] = "local",
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes. Default: all cores.")] = None,
    as_json: AsJson = False,
) -> int:
    """Run a study: quantize, synthesise, draw the Pareto front. Run again to continue."""
    from dse.any_study import load_study
    from dse.engine import make_engine
    from dse.sweep import run
    from reports import write_report

    plan = load_study(study, settings or [])
    folder = out or Path("runs") / plan.name
    try:
        with (
            _stdout_to_stderr(),
            make_engine(engine, workers=workers, scheduler=scheduler) as pool,
            console.SweepProgress() as progress,
        ):
            result = run(plan, folder, engine=pool, progress=progress)
        report_file = write_report(result)
    except Stopped as stop:
        raise Stopped(stop.signal, resume=shlex.join(["dse", *sys.argv[1:]])) from None
    if as_json:
        _print_json(
            {
                "run": str(folder),
                "points": len(result.results),
                "failed": len(result.failed),
                "fronts": [front.as_json() for front in result.fronts()],
            }
        )
    else:
        console.show_run(result)
        console.show(f"report: {report_file}")
    return EXIT_SOME_FAILED if result.failed else 0


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder that 'dse sweep' wrote.")],
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: AsJson = False,
) -> int:
    """Write report.html and the figures of a run again."""
    from dse.sweep import load_run
    from reports import write_report

    file = write_report(load_run(folder))
    if as_json:
        _print_json({"run": str(folder), "report": str(file)})
    else:
        console.show(f"report: {file}")
    if open_:
        webbrowser.open(file.resolve().as_uri())
    return 0


@app.command()
def pareto(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder that 'dse sweep' wrote.")],
    x: Annotated[str, typer.Option(help="Metric, such as luts.")] = "luts",
    y: Annotated[str, typer.Option(help="Metric, such as accuracy.")] = "accuracy",
    as_json: AsJson = False,
) -> int:
    """Print the non-dominated points of a run for two metrics."""
    from dse.metrics import metric
    from dse.pareto import compute_fronts
    from dse.sweep import load_run

    metric(x), metric(y)
    run = load_run(folder)
    table = run.table()
    if table.empty:
        msg = f"{str(folder)!r} holds no finished point yet"
        if run.failed:
            msg = f"{msg}: {len(run.failed)} failed, the first with: {console.reason_of(run.failed[0])}"
        raise UsageError(msg, given=folder, expected=["a run with finished points"])
    fronts = compute_fronts(table, x, y)
    if as_json:
        _print_json({"run": str(folder), "fronts": [front.as_json() for front in fronts]})
    else:
        for front in fronts:
            console.show_front(front)
    return 0


@app.command()
def cost(
    files: Annotated[list[Path] | None, typer.Argument(help="More files for --verilog.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weight format, such as e2m1; none for blocks that take no formats.")
    ] = None,
    activations: Annotated[str | None, typer.Option(help="Activation format, such as e4m3.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every format of --bits, weights = activations.")
    ] = False,
    bits: Annotated[str, typer.Option(help="Bit widths for --all: 8 or 3-8.")] = "3-8",
    block: Annotated[str, typer.Option(help="Which block of the hardware.")] = "mac",
    settings: Overrides = None,
    part: Annotated[str, typer.Option(help="FPGA part.")] = "xc7z020",
    verilog: Annotated[
        Path | None, typer.Option(help="Cost this Verilog or SystemVerilog instead; more files may follow.")
    ] = None,
    top: Annotated[str | None, typer.Option(help="Top module of --verilog.")] = None,
    place: Annotated[
        bool, typer.Option("--place", help="Also the clock frequency after place and route on an ECP5.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Count what a datapath costs: a block of ours, for its formats if it takes any, or anybody's Verilog."""
    from dse import costing

    if verilog is not None:
        costing.reject_with_verilog(
            weights=weights, activations=activations, all=every or None, set=settings, place=place
        )
        designs = [costing.cost_of_verilog([verilog, *(files or [])], top=top, part=part)]
    elif files or top:
        msg = "files and --top belong to --verilog, which is missing"
        raise UsageError(msg, given=files or top, expected=["--verilog FILE... --top NAME"])
    else:
        formats = costing.chosen_formats(block, weights, activations, bits if every else None)
        parameters = costing.block_parameters(block, settings or [])
        designs = costing.cost_of_blocks(
            block, formats, parameters, part=part, place=place, progress=console.track
        )
    _tell_costs(designs, as_json)
    return 0


@hardware_app.command("list")
def list_blocks(as_json: AsJson = False) -> int:
    """The blocks, what they are and what can be set of them."""
    from dse import hardware

    blocks = hardware.list_blocks()
    if as_json:
        _print_json({"blocks": blocks})
    else:
        console.show_blocks(blocks)
    return 0


@hardware_app.command()
def emit(
    context: typer.Context,
    block: BlockName,
    weights: WeightFormat = None,
    activations: ActivationFormat = None,
    settings: Overrides = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")] = Path("."),
    count: Annotated[int, typer.Option(min=1, help="Outputs that the test bench checks.")] = 200,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> int:
    """Write BLOCK.v, and BLOCK_tb.v: a test bench that checks it against the reference model."""
    from dse import hardware

    _check_weights(context, block, weights)
    chosen = hardware.choose_block(block, weights, activations, settings or [])
    files = hardware.emit(chosen, out, count=count, seed=seed, force=force)
    if as_json:
        _print_json({"design": chosen.as_json(), "files": [str(file) for file in files]})
    else:
        for file in files:
            console.show(f"wrote {file}")
    return 0


@hardware_app.command()
def simulate(
    context: typer.Context,
    block: BlockName,
    weights: WeightFormat = None,
    activations: ActivationFormat = None,
    settings: Overrides = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Outputs to check. Default: 1000, amaranth 50.")
    ] = None,
    seed: Seed = 0,
    simulator: Annotated[
        str | None, typer.Option(help="verilator (default), or amaranth (about 1000 times slower).")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write waveforms (VCD), with amaranth.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> int:
    """Run random stimuli under random stalls and compare with the reference model."""
    from dse import hardware

    _check_weights(context, block, weights)
    chosen = hardware.choose_block(block, weights, activations, settings or [])
    result = hardware.simulate(chosen, count=count, seed=seed, simulator=simulator, trace=trace, force=force)
    if as_json:
        _print_json(result.as_json())
    else:
        console.show_simulation(result)
    for mismatch in result.first_mismatches:
        console.log(str(mismatch))
    return EXIT_SOME_FAILED if result.mismatches else 0


@hardware_app.command("synthesize")
def synthesize_block(
    context: typer.Context,
    block: BlockName,
    weights: WeightFormat = None,
    activations: ActivationFormat = None,
    settings: Overrides = None,
    part: Annotated[str, typer.Option(help="FPGA part.")] = "xc7z020",
    as_json: AsJson = False,
) -> int:
    """Count what one design costs, as 'dse cost' does."""
    from dse import costing

    _check_weights(context, block, weights)
    formats = costing.block_formats(block, weights, activations)
    parameters = costing.block_parameters(block, settings or [])
    designs = costing.cost_of_blocks(block, [formats], parameters, part=part, progress=console.track)
    _tell_costs(designs, as_json)
    return 0


def _check_weights(context: typer.Context, block: str, weights: str | None) -> None:
    """Raise as Typer does for an option that is missing: whether it is needed depends on the block."""
    from dse.costing import takes_formats

    if weights is None and takes_formats(block):
        context.fail("Missing option '--weights'.")


def _tell_costs(designs: list[BlockCost], as_json: bool) -> None:
    if as_json:
        _print_json({"designs": [design.as_json() for design in designs]})
    else:
        console.show_costs(designs)


@app.command()
def estimate(
    model: Annotated[
        str | None, typer.Argument(help="A model, such as BitNet-3B; the usual ones are listed without.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="ternary, int2, int3, int4, ... Default: as the usual ones.")
    ] = None,
    activations: Annotated[str, typer.Option(help="Activation format.")] = "int8",
    part: Annotated[str, typer.Option(help="FPGA part.")] = "xc7z020",
    context: Annotated[
        str | None, typer.Option(help="Tokens in the KV cache, such as 1024 or 1024,8192,131072.")
    ] = None,
    caches: Annotated[
        bool, typer.Option("--caches", help="A row for each usual codec of the KV cache.")
    ] = False,
    kv_codec: Annotated[
        list[str] | None,
        typer.Option(help="A codec of the KV cache, such as 'kivi(bits=4)'; may be repeated."),
    ] = None,
    blocks: Annotated[
        bool | None,
        typer.Option(
            "--blocks/--no-blocks",
            help="Caches with InfLLM v2's selection of blocks only, or without it only. Default: both.",
            show_default=False,
        ),
    ] = None,
    settings: Overrides = None,
    as_json: AsJson = False,
) -> int:
    """Tokens per second of a language model on the table-lookup engine, and what limits them."""
    from dse import estimates

    found = estimates.estimate(
        model,
        weights,
        part=part,
        activations=activations,
        contexts=context,
        settings=settings or [],
        caches=estimates.Caches.asked(caches, kv_codec or [], blocks),
        tell=console.log,
    )
    if as_json:
        _print_json({"estimates": [row.as_json() for row in found]})
    elif found[0].cached is not None:
        console.show_cache_estimates(found, with_inputs=model is not None)
    else:
        console.show_estimates(found, with_inputs=model is not None)
    return 0


@app.command()
def accumulator(
    workload: Annotated[str, typer.Argument(help="A workload, such as fmnist-resnet.")],
    weights: Annotated[str, typer.Option(help="Weight format, such as e2m1.")],
    activations: Annotated[str | None, typer.Option(help="Activation format. Default: as weights.")] = None,
    recipe: Annotated[str, typer.Option(help="Steps, such as 'gptq + bias_correction'.")] = "round",
    overflow: Annotated[str, typer.Option(help="wrap or saturate.")] = "wrap",
    bits: Annotated[
        str | None, typer.Option(help="Widths: 16 or 10-20. Default: from safe ones down.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Evaluation images. Default: all.")] = None,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> int:
    """Accuracy on exact integer accumulators of falling width, and the width that is always safe."""
    from dse.accumulators import accuracy_by_width
    from dse.inspection import check_data_is_used

    check_data_is_used(workload, data)
    with _stdout_to_stderr():
        result = accuracy_by_width(
            workload,
            weights,
            activations or weights,
            recipe=recipe,
            overflow=overflow,
            bits=bits,
            data=data,
            evaluation_images=images,
            progress=console.track,
        )
    if as_json:
        _print_json(result.as_json())
    else:
        console.show_accumulators(result)
    return 0


@app.command()
def verify(
    workload: Annotated[str, typer.Argument(help="A workload, such as fmnist-vit, or a language model.")],
    layer: Annotated[
        str | None, typer.Option(help="Name of a layer with weights; a wrong one lists them.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weight format, such as e2m1.")] = None,
    activations: Annotated[str | None, typer.Option(help="Activation format. Default: as weights.")] = None,
    recipe: Annotated[str, typer.Option(help="Steps, such as 'gptq + bias_correction'.")] = "round",
    vectors: Annotated[int, typer.Option(min=1, help="Positions of the output to check.")] = 64,
    block: Annotated[str, typer.Option(help="mvu, or lut_kernel (weights of up to 4 bits).")] = "mvu",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A size of it: pe, simd; lanes, groups."),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option("--kv-codec", help="Of a language model's cache, such as 'rotated(bits=4, sinks=1)'."),
    ] = None,
    text: TextFile = None,
    windows: Annotated[int, typer.Option(min=1, help="Of the text, with --kv-codec.")] = 1,
    length: Annotated[int, typer.Option(min=16, help="Tokens of a window, with --kv-codec.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Draws the positions, or the pauses of streams.")] = 0,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> int:
    """A layer's inputs, or a model's keys and values, through simulated hardware, against the software."""
    from dse.inspection import check_data_is_used

    check_data_is_used(workload, data)
    if codec is not None:
        return _verify_cache(
            workload, codec, layer=layer, weights=weights, seed=seed, as_json=as_json,
            given={"text": text, "windows": windows, "length": length, "data": data},
        )  # fmt: skip
    from dse.costing import parse_settings
    from dse.verification import verify_layer

    if layer is None or weights is None:
        msg = "say what to verify: --layer NAME --weights F, or --kv-codec CODEC of a language model"
        raise UsageError(msg, expected=["--layer NAME --weights F", "--kv-codec CODEC"])
    with _stdout_to_stderr():
        found = verify_layer(
            workload,
            layer,
            weights=weights,
            activations=activations or weights,
            recipe=recipe,
            data=data,
            vectors=vectors,
            block=block,
            parameters=parse_settings(settings or []),
            seed=seed,
        )
    if as_json:
        _print_json(found.as_json())
    else:
        console.show_verification(found)
    return EXIT_SOME_FAILED if found.mismatches else 0


def _verify_cache(
    model: str,
    codec: str,
    *,
    layer: str | None,
    weights: str | None,
    given: dict[str, Any],
    seed: int,
    as_json: bool,
) -> int:
    from dse.cache_verification import verify_cache
    from dse.caches import CacheText

    if layer is not None or weights is not None:
        msg = "--kv-codec is of the whole model; --layer and --weights do not go with it"
        raise UsageError(msg, given=layer or weights, expected=["--kv-codec alone"])
    with _stdout_to_stderr():
        found = verify_cache(CacheText.of(model, **given), codec, seed=seed)
    if as_json:
        _print_json(found.as_json())
    else:
        console.show_cache_verification(found)
    return EXIT_SOME_FAILED if found.mismatches else 0


@app.command()
def diagnose(
    model: Annotated[str, typer.Argument(help="A language model, such as smollm2-135m.")],
    text: TextFile = None,
    windows: Annotated[int, typer.Option(min=1, help="Of the text.")] = 2,
    length: Annotated[int, typer.Option(min=17, help="Tokens of a window.")] = 512,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> int:
    """Look at a language model's keys and values: which codecs of its cache can pay, before any is run."""
    from dse.kv_diagnosis import diagnose_cache
    from dse.workloads.language import load_language_model, load_text, windows_of

    with _stdout_to_stderr():
        loaded = load_language_model(model, data)
        found = diagnose_cache(loaded, windows_of(loaded, load_text(text), length=length, count=windows))
    if as_json:
        _print_json({"model": model, **found.as_json()})
    else:
        console.show(f"{model}, {found.windows} windows of {found.window_tokens} tokens of {found.text}")
        for sentence in found.verdict():
            console.show(f"- {sentence}")
    return 0


@app.command()
def codecs(as_json: AsJson = False) -> int:
    """The codecs of a cache of keys and values, and their parameters."""
    from quantizers.kv_cache.registry import SCHEMES, describe_cache_scheme

    described = [describe_cache_scheme(kind) for kind in SCHEMES.values()]
    if as_json:
        _print_json({"codecs": described})
    else:
        console.show_codecs(described)
    return 0


@app.command()
def recipes(as_json: AsJson = False) -> int:
    """The steps of post-training quantization that a study's recipes are made of."""
    from quantizers.recipes import NAMED, STEPS, describe_step

    steps = [describe_step(step) for step in STEPS.values()]
    if as_json:
        _print_json({"steps": steps, "named": NAMED})
    else:
        console.show_recipes(steps, NAMED)
    return 0


@app.command()
def formats(
    name: Annotated[
        str | None, typer.Argument(help="A format, such as e4m3; all are listed without.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Properties of the number formats, and the value table of one."""
    from quantizers.formats import common_formats, describe_format, parse_format

    chosen = list(common_formats()) if name is None else [parse_format(name)]
    if as_json:
        _print_json({"formats": [describe_format(fmt, table=name is not None) for fmt in chosen]})
    elif name is None:
        console.show_formats([describe_format(fmt) for fmt in chosen])
    else:
        console.show_format(describe_format(chosen[0], table=True))
    return 0


@app.command()
def workloads(
    name: Annotated[str | None, typer.Argument(help="A workload; all are listed without.")] = None,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> int:
    """The networks there are; for one, where its data is and its float accuracy."""
    from dse.inspection import inspect_workload, workload_list

    if name is None:
        listing = workload_list(data)
        if as_json:
            _print_json({"workloads": listing})
        else:
            console.show_workloads(listing)
        return 0
    with _stdout_to_stderr():
        facts = inspect_workload(name, data)
    if as_json:
        _print_json({"workloads": [facts]})
    else:
        console.show_workload(facts)
    return 0


def main() -> NoReturn:
    """Entry point: errors become one message, or one JSON document, and an exit code."""
    try:
        with _signals_raise():
            code = app(prog_name="dse", standalone_mode=False)
    except BitfrontError as error:
        given, expected = (
            (error.given, error.expected) if isinstance(error, UsageError) else ("", list[str]())
        )
        _tell(f"error: {error}", given=given, expected=expected, error=str(error))
        code = EXIT_WRONG_USE
    except Stopped as stop:
        _tell(str(stop), error=str(stop), expected=[stop.resume] if stop.resume else [])
        code = EXIT_SIGNAL + stop.signal
    except Exception as error:
        # Typer's own complaints (no such option, missing argument) have no public class in common.
        if not hasattr(error, "format_message"):
            raise
        code = _tell_complaint(error)
    sys.exit(code or 0)


def _tell_complaint(error: Any) -> int:
    message = error.format_message().strip()
    if message:  # empty where the help was shown instead
        context = error.ctx.command_path if error.ctx else "dse"
        _tell(
            f"error: {message}\ntry '{context} --help'",
            error=message,
            given=getattr(error, "option_name", ""),
            expected=list(getattr(error, "possibilities", None) or []),
        )
    return int(error.exit_code)


def _tell(text: str, *, error: str, given: str = "", expected: list[str]) -> None:
    if _wants_json():
        _print_json({"error": error, "given": given, "expected": expected})
    console.log(text)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise :class:`Stopped`; one that the caller ignores (nohup, &) stays ignored."""

    def stop(number: int, frame: object) -> NoReturn:
        raise Stopped(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Around the user's own code: what it prints, or a command that it starts, is not our output."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _wants_json() -> bool:
    # An error can come before the command has read its options.
    return "--json" in sys.argv


def _print_json(document: Any) -> None:
    # Flushed here: a reader that is gone (| head) must not be found out after the last line of code.
    print(json.dumps(document, indent=2, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
