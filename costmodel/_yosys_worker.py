"""The process that holds Yosys: run by path from ``costmodel.yosys``, imports nothing of this project.

Yosys logs to file descriptor 1 and ends the process on any error, so it gets a process of its own:
standard output and standard error go to ``log`` in the work folder that is the first argument,
requests come in and replies go out as one line of JSON each over the former standard input and output.
The second argument is the time in seconds that one request may take.

Every design is worked on in a fork, from its first request to ``done``: Yosys breaks ties by the order
in which it met names, so a figure would depend on the designs before it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_LATEST_ARRIVAL = re.compile(r"^Latest arrival time in '.*' is (\d+):", re.MULTILINE)
_UNTIMED = re.compile(r"Module '([^']*)' has no timing arcs|Cell type '([^$'][^']*)' not recogni[sz]ed")
_CONNECTED = re.compile(r"^ *connect \\(\S+(?: \[[\d:]+\])?) ", re.MULTILINE)
_CONFLICT = re.compile(
    r"^Warning: (?:multiple conflicting drivers for (?P<module>.*?)\.\\?(?P<net>\S+)(?: (?P<bit>\[.*\]))?:"
    r"|Drivers conflicting with a constant .*:)\n(?P<drivers>(?:    .*\n)+)",
    re.MULTILINE,
)


def _take_over_descriptors(work: Path) -> tuple[Any, Any, int]:
    """Moves requests and replies to private descriptors, which the tools that Yosys starts do not inherit."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = os.open(work / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    return requests, replies, log


class _Session:
    """One Yosys design, with the library of cells kept for all requests."""

    def __init__(self, work: Path) -> None:
        from pyosys import libyosys  # after the descriptors are moved

        self._work = work
        self._design = libyosys.Design()
        self._run("read_verilog", "-lib", "-specify", "+/xilinx/cells_sim.v")
        self._library = self._module_names()
        self._run("design", "-save", "libs")

    def map(
        self, rtlil: str, top: str, stages: Sequence[str], options: str, is_purged: bool
    ) -> dict[str, Any]:
        """Maps module *top* of the file *rtlil*; leaves it in ``netlist.json`` of the work folder."""
        self._run("design", "-load", "libs")
        self._run("read_rtlil", rtlil)
        self._run("hierarchy", "-check", "-top", top)
        for stage in stages:
            self._run("synth_xilinx", *options.split(), "-top", top, "-run", stage)
            if is_purged:
                self._run("opt_clean", "-purge")
        self._run("select", top)
        self._run("write_json", "-noscopeinfo", "-selected", str(self._work / "netlist.json"))
        self._run("select", "-clear")
        return {}

    def time(self) -> dict[str, Any]:
        """The longest path, in ps, of the module mapped last, which has no combinational loop."""
        return _read_timing(self._report("sta"))

    def elaborate(self, files: Sequence[str], top: str, reader: str) -> dict[str, Any]:
        """Reads Verilog and leaves *top* and what it uses in ``rtlil`` of the work folder.

        Replies the names of the modules found, only, when *top* is none of them, and the first net with
        conflicting drivers, only, when there is one.
        """
        self._run("design", "-load", "libs")
        if reader == "slang":
            self._run("read_slang", "--top", top, *files)
        else:
            self._run("read_verilog", "-sv", *files)
        found = sorted(self._module_names() - self._library)
        if top not in found:
            return {"modules": found}
        self._run("hierarchy", "-check", "-top", top)
        self._run("proc", "-noopt")  # the optimisation at its end would drop conflicting drivers
        if _CONFLICT.search(self._report("check")):
            connections = self._report("dump")
            self._run("tribuf")
            conflict = _find_conflict(self._report("check"), connections)
            if conflict and conflict.startswith("net $"):
                self._run("opt_clean")  # gives a generated net the name it has in the source
                conflict = _find_conflict(self._report("check"), connections)
            if conflict:
                return {"conflict": conflict}
        self._run("opt_expr", "-keepdc")
        self._run("write_rtlil", "-selected", str(self._work / "rtlil"))
        return {}

    def _report(self, *words: str) -> str:
        """What a pass writes."""
        report = self._work / "report"
        self._run("tee", "-q", "-o", str(report), *words)
        return report.read_text()

    def _run(self, *words: str) -> None:
        from pyosys import libyosys

        self._design.run_pass(libyosys.StringVector(list(words)))

    def _module_names(self) -> set[str]:
        return {name.str().removeprefix("\\") for name in self._design.modules_}


def _read_timing(report: str) -> dict[str, Any]:
    """The latest arrival in ps, if there is a path; the kinds of cell without timing arcs, if there are."""
    untimed = {(match[1] or match[2]).rpartition("\\")[2] for match in _UNTIMED.finditer(report)}
    if untimed:
        return {"untimed": sorted(untimed)}
    latest = _LATEST_ARRIVAL.search(report)
    return {"delay_ps": int(latest[1])} if latest else {}


def _find_conflict(report: str, connections: str) -> str | None:
    """The first net with conflicting drivers in a report of ``check``; those of a tristate bus are none.

    The report does not name a net that a constant drives too: it is one connected twice.
    """
    for match in _CONFLICT.finditer(report):
        drivers = [line.strip() for line in match["drivers"].splitlines()]
        if match["net"] is None:
            nets = _CONNECTED.findall(connections)
            twice = next((net for net in nets if nets.count(net) > 1), "(unnamed)")
            return f"net {twice.replace(' ', '')} has a constant and another driver"
        if not all(driver.endswith("($tribuf)") for driver in drivers):
            return f"net {match['net']}{match['bit'] or ''} of {match['module']} has {len(drivers)} drivers"
    return None


def _serve(work: Path, limit_s: int) -> None:
    requests, replies, log = _take_over_descriptors(work)
    session = _Session(work)
    operations: dict[str, Callable[..., dict[str, Any]]] = {
        "elaborate": session.elaborate,
        "map": session.map,
        "time": session.time,
    }
    for line in requests:
        child = os.fork()
        if child:
            _end_as(os.waitpid(child, 0)[1])
            continue
        for step in itertools.chain([line], requests):
            signal.alarm(limit_s)  # without a handler: the system ends the process, also inside Yosys
            os.ftruncate(log, 0)
            request = json.loads(step)
            operation = request.pop("operation")
            reply = {}
            if operation != "done":
                os.chdir(request.pop("folder"))
                reply = operations[operation](**request)
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
            if operation == "done":
                os._exit(0)
    shutil.rmtree(work, ignore_errors=True)  # the parent may be gone


def _end_as(status: int) -> None:
    """End this process as the child ended, unless that went well."""
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    elif os.WEXITSTATUS(status):
        os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
