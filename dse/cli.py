"""The ``dse`` command. Every command takes ``--json``: then one JSON document goes to stdout."""

from __future__ import annotations

import json
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dse import console
from quantizers.errors import BitfrontError, UsageError

EXIT_SOME_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which number format, quantization method and datapath for this network on this FPGA?",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, logs on stderr.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value; may be repeated."),
]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder of the workload's images.")]


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
    from dse.engine import make_engine
    from dse.study import Study
    from dse.sweep import run
    from reports import write_report

    plan = Study.load(study, settings or [])
    folder = out or Path("runs") / plan.name
    pool = make_engine(engine, workers=workers, scheduler=scheduler)
    with pool, console.SweepProgress() as progress:
        try:
            result = run(plan, folder, engine=pool, progress=progress)
        except KeyboardInterrupt:
            console.log(f"stopped; what is finished is kept. 'dse sweep {study}' goes on from there.")
            return EXIT_INTERRUPTED
    report_file = write_report(result)
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
    table = load_run(folder).table()
    if table.empty:
        msg = f"{str(folder)!r} holds no finished point yet"
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
    weights: Annotated[str | None, typer.Option(help="Weight format, such as e2m1.")] = None,
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
    as_json: AsJson = False,
) -> int:
    """Count what a datapath costs: ours for a pair of formats, or anybody's Verilog."""
    from dse import costing

    if verilog is not None:
        costing.reject_with_verilog(weights=weights, activations=activations, all=every or None, set=settings)
        designs = [costing.cost_of_verilog([verilog, *(files or [])], top=top, part=part)]
    elif files or top:
        msg = "files and --top belong to --verilog, which is missing"
        raise UsageError(msg, given=files or top, expected=["--verilog FILE... --top NAME"])
    else:
        pairs = costing.chosen_pairs(weights, activations, bits if every else None)
        parameters = costing.block_parameters(block, settings or [])
        designs = costing.cost_of_blocks(block, pairs, parameters, part=part, progress=console.track)
    if as_json:
        _print_json({"designs": [design.as_json() for design in designs]})
    else:
        console.show_costs(designs)
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
        listing = workload_list()
        if as_json:
            _print_json({"workloads": listing})
        else:
            console.show_workloads(listing)
        return 0
    facts = inspect_workload(name, data)
    if as_json:
        _print_json({"workloads": [facts]})
    else:
        console.show_facts(facts)
    return 0


def main() -> NoReturn:
    """Entry point: errors become one message, or one JSON document, and an exit code."""
    try:
        code = app(standalone_mode=False)
    except BitfrontError as error:
        code = _tell(error)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as error:
        # Click's own complaints (no such option, missing argument) know how to show themselves.
        show, exit_code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or exit_code is None:
            raise
        if _wants_json():
            _print_json({"error": getattr(error, "message", str(error)), "given": "", "expected": []})
        show()
        code = exit_code
    sys.exit(code or 0)


def _tell(error: BitfrontError) -> int:
    if _wants_json():
        given = error.given if isinstance(error, UsageError) else ""
        expected = error.expected if isinstance(error, UsageError) else []
        _print_json({"error": str(error), "given": given, "expected": expected})
    console.log(f"error: {error}")
    return EXIT_WRONG_USE


def _wants_json() -> bool:
    # An error can come before the command has read its options.
    return "--json" in sys.argv


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
