"""What the command line shows a person: tables, progress, messages. No computing here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import track as rich_track
from rich.table import Table
from rich.text import Text

from dse.design import setting_text
from dse.metrics import METRICS, Figure, Provenance

if TYPE_CHECKING:  # importing these loads torch, which 'dse --help' must not wait for
    from costmodel.kv_cache import CachedRate
    from dse.accumulators import AccumulatorResult
    from dse.cache_verification import CacheVerification
    from dse.costing import BlockCost
    from dse.estimates import Estimate
    from dse.hardware import Simulation
    from dse.pareto import Front
    from dse.store import Result
    from dse.sweep import Run
    from dse.verification import Verification

ItemT = TypeVar("ItemT")

_out = Console(highlight=False, emoji=False)
_err = Console(stderr=True, highlight=False, emoji=False)


def show(text: str) -> None:
    """A line of result, on stdout."""
    _out.print(text, markup=False, soft_wrap=True)


def log(text: str) -> None:
    """A line of log, on stderr."""
    _err.print(text, markup=False, soft_wrap=True)


def track(items: Iterable[ItemT], total: int) -> Iterable[ItemT]:
    """*items*, of which there are *total*, with a progress bar on stderr."""
    # A bar that is not drawn would still leave an empty line.
    disable = not _err.is_terminal
    return rich_track(items, "working", total=total, console=_err, transient=True, disable=disable)


class SweepProgress:
    """A bar with the time left, float accuracies and failures as they come; on stderr."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=_err,
        )
        self._task = self._bar.add_task("sweep", total=None)

    def __enter__(self) -> SweepProgress:
        return self  # the bar starts with the work: a study that is refused shows none

    def __exit__(self, *exception: object) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def started(self, total: int, done: int) -> None:
        if done:
            log(f"{done} of {total} points are already there")
        self._bar.reset(self._task, total=total, completed=done)
        self._bar.start()

    def float_accuracy(self, workload: str, accuracy: Figure | None, error: str | None) -> None:
        if accuracy is None:
            log(f"{workload}: no float accuracy: {error}")
        else:
            log(f"{workload}: float accuracy {_percent(accuracy)}")

    def finished(self, result: Result) -> None:
        if result.error is not None:
            log(f"failed: {result.design.workload} {result.design.label}: {reason_of(result)}")
        self._bar.update(self._task, advance=1, description=result.design.workload)


def reason_of(result: Result) -> str:
    """Why a point failed, in one line: the last of its traceback."""
    lines = (result.error or "").strip().splitlines()
    return lines[-1] if lines else ""


def _percent(figure: Figure) -> str:
    text = f"{100 * figure.value:.2f} %"
    if figure.interval is None:
        return text
    return f"{text} (95 % interval {100 * figure.interval[0]:.1f} to {100 * figure.interval[1]:.1f})"


def _add(table: Table, *cells: str) -> None:
    """A row of plain text: brackets in a cell are no markup."""
    table.add_row(*(Text(cell) for cell in cells))


def show_run(run: Run) -> None:
    """The fronts over all families, and what failed."""
    for front in run.fronts():
        if front.family == "all":
            show_front(front)
    for workload, layers in run.layers_in_float.items():
        show(f"{workload}: products of {layers} stay in float; no format and no cost here covers them")
    if run.failed:
        table = Table("workload", "design", "reason", title="failed points")
        for result in run.failed:
            name = f"{result.design.family} {result.design.label}"
            _add(table, result.design.workload, name, reason_of(result))
        _out.print(table)


def show_front(front: Front) -> None:
    """The rows of one front; below, its hypervolume in the units of the table."""
    choices, kind = ["weights", "activations"], "formats"
    if "codec" in front.rows:
        choices, kind = ["codec"], "codecs"
    elif "design" in front.rows:
        formats = [name for name in choices if name in front.rows and front.rows[name].notna().any()]
        choices, kind = ["design", *formats, "variant"], "designs"
    title = Text(f"{front.workload}: {front.y} against {front.x}, {front.family} {kind}")
    if "recipe" in front.rows and front.rows["recipe"].nunique() > 1:
        choices.append("recipe")
    table = Table(*choices, title=title, title_justify="left")
    for name in (front.x, front.y):
        table.add_column(METRICS[name].label, justify="right")
    for row in front.rows.to_dict(orient="records"):
        figures = [_cell_with_interval(name, row) for name in (front.x, front.y)]
        if "recipe" in choices:
            from quantizers.recipes import recipe_label  # loads torch, as whoever has recipes has done

            row["recipe"] = recipe_label(row["recipe"])
        # A block without formats among others that have some: not a number.
        _add(table, *("" if row[name] != row[name] else str(row[name]) for name in choices), *figures)
    _out.print(table)
    if front.hypervolume is not None:
        metrics = [METRICS[name] for name in (front.x, front.y)]
        volume = front.hypervolume * 100 ** sum(metric.percent for metric in metrics)
        unit = " x ".join(metric.label for metric in metrics)
        worst = " and ".join(
            f"{metric.label} {_cell(metric.name, value)}"
            for metric, value in zip(metrics, front.reference, strict=True)
        )
        show(f"hypervolume {volume:.4g}, in {unit}; reference point: {worst}, the worst of all points")


def _cell(name: str, value: float) -> str:
    if METRICS[name].percent:
        return f"{100 * value:.2f}"
    return f"{value:g}" if value == int(value) else f"{value:.2f}"


def _cell_with_interval(name: str, row: Mapping[Any, Any]) -> str:
    low, high = (row.get(f"{name}_{end}") for end in ("low", "high"))
    if low is None or high is None or low != low:
        return _cell(name, row[name])
    factor = 100 if METRICS[name].percent else 1
    return f"{_cell(name, row[name])} [{factor * low:.1f}, {factor * high:.1f}]"


def _figure_with_interval(name: str, figure: Figure) -> str:
    low, high = figure.interval or (None, None)
    return _cell_with_interval(name, {name: figure.value, f"{name}_low": low, f"{name}_high": high})


def show_costs(designs: Sequence[BlockCost]) -> None:
    """One row a design; what all designs share stands below the table, once."""
    choices = [name for name in designs[0].design if designs[0].design[name] is not None]
    varied = [name for name in choices if len({str(d.design[name]) for d in designs}) > 1]
    metrics = [name for name in METRICS if any(name in design.metrics for design in designs)]
    unused = [
        name for name in metrics if all(d.metrics[name].value == 0 for d in designs if name in d.metrics)
    ]
    table = Table()
    for name in varied:
        table.add_column(name)
    shown = [name for name in metrics if name not in unused]
    for name in shown:
        table.add_column(_heading(name), justify="right", overflow="fold")
    for design in designs:
        figures = [
            _figure_with_interval(name, design.metrics[name]) if name in design.metrics else ""
            for name in shown
        ]
        _add(table, *(str(design.design[name]) for name in varied), *figures)
    _out.print(table)
    shared = [f"{name} {_text(designs[0].design[name])}" for name in choices if name not in varied]
    show(", ".join(shared) + (f"; no {', '.join(unused)}" if unused else ""))
    tools = ", ".join(f"{name} {text}" for name, text in designs[0].tools.items())
    show(f"luts: LUT6 sites after pairing; logic delay without routing; {tools}")
    for design in designs:
        of = ", ".join(_text(design.design[name]) for name in varied)
        for note in design.notes:
            show(f"note: {of}: {note}" if of else f"note: {note}")


def _heading(name: str) -> str:
    """``logic_delay_ns`` as ``logic delay (ns)``; counts have no unit."""
    what, _, unit = name.rpartition("_")
    units = {"ns": "ns", "bits": "bits", "mhz": "MHz"}
    return f"{what.replace('_', ' ')} ({units[unit]})" if unit in units else name.replace("_", " ")


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else setting_text(value)


def show_estimates(estimates: Sequence[Estimate], *, with_inputs: bool) -> None:
    """One row an estimate; below, what all rows share, or every input of each model with its source."""
    rates = [estimate.rate for estimate in estimates]
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    table.add_column("weights")
    for heading in (
        "context", "lanes", "enough", "LUTs", "cycles", "busy %", "MB", "compute", "memory", "tokens/s",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    table.add_column("limit")
    table.add_column("fits")
    for rate in rates:
        enough = "-" if rate.enough_lanes is None else str(rate.enough_lanes)
        _add(
            table,
            *(rate.model, rate.weights, str(rate.context), str(rate.lanes), enough, f"{rate.luts:.0f}"),
            *(f"{rate.cycles}", f"{100 * rate.lane_use:.0f}", f"{rate.read_bytes / 1e6:.0f}"),
            *(f"{rate.compute_bound:.3g}", f"{rate.memory_bound:.3g}", f"{rate.tokens_per_second:.3g}"),
            *(rate.limit, "yes" if rate.fits else "no"),
        )
    _print_wide(table)
    show(
        f"{rates[0].part}, for each token; compute, memory: what each allows, tokens/s. Lanes: as many as "
        "fit; enough: as many as keep up with the memory; busy: share of their lookups that are of weights; "
        "MB: read, of weights and cache; fits: both into the memory. Attention scores are not counted, so "
        "these are upper limits."
    )
    if not with_inputs:
        show("every input with its source: dse estimate MODEL, or --json")
        return
    shown: set[str] = set()
    for rate in rates:
        if rate.weights not in shown:
            shown.add(rate.weights)
            _show_inputs(rate.weights, rate.inputs, {r.context for r in rates})


def show_cache_estimates(estimates: Sequence[Estimate], *, with_inputs: bool) -> None:
    """For each model one row a cache and length; below, what the columns are, or every input."""
    caches = [estimate.cached for estimate in estimates if estimate.cached is not None]
    models: dict[tuple[str, str], list[CachedRate]] = {}
    for cached in caches:
        models.setdefault((cached.rate.model, cached.rate.weights), []).append(cached)
    for (model, weights), rows in models.items():
        first = rows[0].rate
        show(
            f"{model} on {first.part}: {weights} weights of {first.weight_bytes / 1e6:.0f} MB; {first.lanes} "
            f"lanes allow {first.compute_bound:.3g} tokens/s"
        )
        _print_wide(_cache_table(rows))
    show(
        "bits: of a cached element, metadata counted; stored: MB of the whole cache, which with the weights "
        "fits into the memory or not; read: MB of the cache, for each token; GB/s: of weights and cache, at "
        "tokens/s; blocks: InfLLM v2's selection, for models trained for it, dense where the context is too "
        "short for it; reader: lanes that a codec's reader must have to keep this rate, in brackets those "
        f"that keep up with the memory where nothing is read ahead; {caches[0].reader.value:.0f} are built. "
        "Attention scores are not counted, so these are upper limits."
    )
    if not with_inputs:
        show("every input with its source: dse estimate MODEL, or --json")
        return
    for (_, weights), rows in models.items():
        _show_cache_inputs(weights, rows)


def _cache_table(rows: Sequence[CachedRate]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("context", justify="right")
    table.add_column("cache")
    table.add_column("blocks")
    for heading in ("bits", "stored", "read", "GB/s", "tokens/s"):
        table.add_column(heading, justify="right")
    table.add_column("limit")
    table.add_column("fits")
    table.add_column("reader", justify="right")
    for cached in rows:
        rate, use = cached.rate, cached.use
        blocks = "no" if cached.selection is None else "dense" if cached.is_dense else "yes"
        _add(
            table,
            *(str(rate.context), cached.coding.name, blocks, f"{cached.coding.bits:.2f}"),
            *(f"{use.stored_bytes / 1e6:.1f}", f"{use.read_bytes / 1e6:.1f}"),
            *(f"{cached.bytes_per_second / 1e9:.2f}", f"{rate.tokens_per_second:.3g}"),
            *(rate.limit, "yes" if rate.fits else "no"),
            f"{cached.reader_lanes} ({cached.burst_reader_lanes})",
        )
    return table


def _show_cache_inputs(weights: str, rows: Sequence[CachedRate]) -> None:
    """What all rows share; then what each codec has of its own."""
    shared = {n: v for cached in rows for n, v in cached.inputs.items() if n not in cached.coding.inputs}
    _show_inputs(weights, shared, {cached.rate.context for cached in rows})
    table = Table("cache", "input", box=None, pad_edge=False)
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("source")
    for coding in dict.fromkeys(cached.coding for cached in rows):
        for name, value in coding.inputs.items():
            _add(table, coding.name, name, f"{value.value:,.6g}", value.unit, value.source)
    _print_wide(table)


def _show_inputs(title: str, inputs: Mapping[str, Any], contexts: set[int]) -> None:
    table = Table("input", title=Text(f"{title} weights"), title_justify="left", box=None, pad_edge=False)
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("source")
    for name, value in inputs.items():
        text = f"{value.value:,.6g}" if value.value != int(value.value) else f"{value.value:,.0f}"
        if name == "context":
            text = ", ".join(map(str, sorted(contexts)))
        _add(table, name, text, value.unit, value.source)
    _print_wide(table)


def _print_wide(table: Table) -> None:
    """Whole lines, however narrow the terminal is: figures are not to be broken."""
    Console(highlight=False, emoji=False, width=max(_out.width, _WIDE)).print(table)


_WIDE = 150


def show_blocks(blocks: Sequence[Mapping[str, Any]]) -> None:
    """For each block what it is, whether it takes formats, and one row a parameter."""
    for block in blocks:
        formats = "" if block.get("formats", True) else " (takes no formats)"
        title = Text(f"{block['name']}{formats}: {block['meaning']}")
        table = Table("parameter", "default", "what it sets", title=title, title_justify="left")
        for parameter in block["parameters"]:
            default = "" if parameter["default"] is None else setting_text(parameter["default"])
            _add(table, parameter["name"], default, parameter["meaning"])
        _out.print(table)


def show_simulation(result: Simulation) -> None:
    """What was checked, and how fast."""
    show(f"{result.chosen.name}, {result.chosen.describe()}, simulator {result.simulator}")
    show(
        f"{result.checked} outputs checked, {result.mismatches} mismatches, "
        f"{result.cycles} cycles, {result.cycles_per_second:,.0f} cycles/s"
    )


def show_verification(found: Verification) -> None:
    """What was compared, and whether all of it agrees."""
    matrices = f"{found.groups} of " if found.groups > 1 else ""
    sizes = ", ".join(f"{name} {value}" for name, value in found.parameters.items())
    show(
        f"{found.workload}, {found.layer} ({found.kind}), {found.weights} x {found.activations}: "
        f"{matrices}{found.rows} x {found.columns} on {found.block} ({sizes}), "
        f"{found.accumulator_bits}-bit sums"
    )
    what = "sums" if found.rounding_differences is None else "sums and codes"
    show(
        f"{found.checked} {what} checked, {found.mismatches} mismatches, {found.cycles} cycles, "
        f"{found.cycles_per_second:,.0f} cycles/s"
    )
    if found.rounding_differences is not None:
        show(
            f"integer multipliers in place of real scales changed {found.rounding_differences} codes, "
            f"here and in software (largest relative error {found.largest_scale_error:.1e})"
        )


def show_cache_verification(found: CacheVerification) -> None:
    """What was compared, and the perplexity with what the hardware gave."""
    show(
        f"{found.model}, {found.codec}: {found.windows} x {found.window_tokens} tokens of {found.text}, "
        f"{found.layers} layers"
    )
    show(
        f"{found.checked} elements checked, {found.mismatches} mismatches, {found.cycles} cycles, "
        f"{found.cycles_per_second:,.0f} cycles/s"
    )
    of_hardware = "" if found.perplexity is None else f"{found.perplexity:.4f} with those of the hardware, "
    show(
        f"perplexity {of_hardware}{found.software_perplexity:.4f} with keys and values of the software, "
        f"{found.exact_perplexity:.4f} uncompressed"
    )


def show_codecs(described: Sequence[Mapping[str, Any]]) -> None:
    """Each codec as it is written with its defaults, what it does, and its source."""
    for codec in described:
        parameters = ", ".join(f"{name}={value}" for name, value in codec["parameters"].items())
        show(f"{codec['name']}({parameters})\n    {codec['what']}\n    {codec['source']}".rstrip())


def show_accumulators(result: AccumulatorResult) -> None:
    """One row a width; below, which width is safe and where accuracy starts to fall."""
    design = result.design
    title = "{workload}, {weights} x {activations}, {recipe}, accumulators that {overflow}".format(**design)
    table = Table(title=Text(title), title_justify="left")
    for heading in (
        "accumulator bits",
        "overflowing layers",
        "accuracy %",
        "points lost (95 % interval)",
    ):
        table.add_column(heading, justify="right")
    exact = f"{100 * result.accuracy.value:.2f}"
    _add(table, f"{max(result.safe_bits.values())} or more", "0", exact, "")
    for width in result.widths:
        drop = width.drop_points
        low, high = drop.interval or (drop.value, drop.value)
        lost = f"{drop.value:.2f} ({low:.2f} to {high:.2f})"
        _add(table, str(width.bits), str(width.overflowing_layers), f"{100 * width.accuracy.value:.2f}", lost)
    _out.print(table)
    falls = result.falls_at_bits
    where = "at none of these widths" if falls is None else f"at {falls} bits"
    show(f"{design['evaluation_images']} images; accuracy falls beyond chance {where}")
    if result.not_run_bits:
        show(f"{result.not_run_bits[0]} bits and fewer were not run: more than 20 points are lost above")


def show_recipes(steps: Sequence[Mapping[str, Any]], named: Mapping[str, str]) -> None:
    """Each step as it is written with its defaults, what it does, and its source; then named recipes."""
    for step in steps:
        parameters = ", ".join(f"{name}={value}" for name, value in step["parameters"].items())
        show(f"{step['name']}({parameters})\n    {step['what']}\n    {step['source']}")
    show("\nA recipe joins steps in this order: 'equalize + gptq(damping=0.1) + bias_correction'.")
    show("'round' has no step. By name:")
    for name, text in named.items():
        show(f"- {name}: {text}")


def show_formats(descriptions: Sequence[Mapping[str, Any]]) -> None:
    """One row a format."""
    columns = ("name", "family", "bits", "minimum", "maximum", "smallest_step")
    table = Table(*(column.replace("_", " ") for column in columns))
    for description in descriptions:
        _add(table, *(f"{description[c]:g}" if c in _NUMBERS else str(description[c]) for c in columns))
    _out.print(table)


_NUMBERS = ("bits", "minimum", "maximum", "smallest_step")


def show_format(description: Mapping[str, Any]) -> None:
    """All properties of a format and its value table."""
    show_facts({name: value for name, value in description.items() if name != "values"})
    if "values" not in description:
        return
    table = Table("code", "value")
    for code, value in enumerate(description["values"]):
        _add(table, str(code), str(value))
    _out.print(table)


def show_workloads(listing: Sequence[Mapping[str, Any]]) -> None:
    """One row a workload; below, what keeps those that are not available."""
    table = Table("name", "available", "what it is")
    for entry in listing:
        _add(table, entry["name"], entry["available"].partition(":")[0], entry["description"])
    _out.print(table)
    for entry in listing:
        available, _, reason = entry["available"].partition(": ")
        if available == "no":
            show(f"- {reason}")


def show_workload(facts: Mapping[str, Any]) -> None:
    """As :func:`show_facts`, with the accuracy in percent where there is one."""
    if "float_accuracy" not in facts:
        show_facts({name: f"{v:.4f}" if isinstance(v, float) else v for name, v in facts.items()})
        return
    low, high = facts["float_accuracy_interval"]
    accuracy = Figure(facts["float_accuracy"], Provenance.MEASURED, (low, high))
    others = {name: value for name, value in facts.items() if name != "float_accuracy_interval"}
    show_facts({**others, "float_accuracy": _percent(accuracy)})


def show_facts(facts: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        _add(table, name.replace("_", " "), str(value))
    _out.print(table)
