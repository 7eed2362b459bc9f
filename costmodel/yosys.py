"""The process that holds Yosys, seen from outside: started when needed, replaced after an error.

Yosys ends its process on every error and logs to file descriptor 1. Keeping it in a process of its
own leaves standard output and all other threads of the caller alone, and turns an error, a crash or a
kill into an exception. Each process of the caller has its own; it ends with the caller.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, cast

from quantizers.errors import BitfrontError

_WORKER = Path(__file__).with_name("_yosys_worker.py")
_ERROR_LINE = re.compile(r"^.*\b(?:ERROR|error):.*$", re.MULTILINE)


TIME_LIMIT_S = 900
"""Seconds that Yosys may take for one step of one design; then it is ended, also when the caller is gone."""


class SynthesisError(BitfrontError):
    """Yosys could not read or map a design; the message has Yosys' own error line."""


def yosys_version() -> str:
    """Version of the installed Yosys, without starting it."""
    return version("pyosys")


class Yosys:
    """A Yosys process, for one thread of one process: :func:`running_yosys` sees to that.

    Attributes:
        work: folder in which the operations leave their files; theirs are overwritten by the next.
    """

    def __init__(self) -> None:
        self.work = Path(tempfile.mkdtemp(prefix="bitfront-yosys-"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(self.work), str(TIME_LIMIT_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(self.work)},
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the caller, who then ends this process
        )
        self._requests = cast(IO[str], self._process.stdin)
        self._replies = cast(IO[str], self._process.stdout)

    def request(self, operation: str, **arguments: object) -> dict[str, Any]:
        """Runs one operation of ``_yosys_worker`` and returns its reply.

        Raises:
            SynthesisError: Yosys found an error or died; this object is of no more use then.
        """
        try:
            request = {"operation": operation, "folder": os.getcwd(), **arguments}
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            reply = self._replies.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            raise SynthesisError(self._cause_of_death())
        return cast(dict[str, Any], json.loads(reply))

    def close(self) -> None:
        """Ends the process and removes its files."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # a design's fork and Yosys' own tools too
        self._process.wait()
        self._replies.close()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return f"Yosys did not finish within {TIME_LIMIT_S} s"
        if code < 0:
            return f"Yosys was ended by {signal.Signals(-code).name}"
        log = self.work / "log"
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = _ERROR_LINE.findall(text) or text.strip().splitlines()[-1:]
        return f"Yosys: {lines[0].strip()}" if lines else f"Yosys ended with exit code {code}"


_lock = threading.Lock()
_process: Yosys | None = None


@contextmanager
def running_yosys() -> Iterator[Yosys]:
    """Exclusive use of this process' Yosys for one design.

    An exception in the block ends Yosys; the next use starts it anew.
    """
    global _process
    with _lock:
        try:
            if _process is None:
                _process = Yosys()
            yield _process
            _process.request("done")
        except BaseException:
            close_yosys()
            raise


def close_yosys() -> None:
    """Ends this process' Yosys, if one runs; the next use starts another."""
    global _process
    if _process is not None:
        _process.close()
        _process = None


def _forget() -> None:
    """In a forked child: the parent's Yosys is not ours, nor is a lock that another thread held."""
    global _lock, _process
    _lock, _process = threading.Lock(), None


atexit.register(close_yosys)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
