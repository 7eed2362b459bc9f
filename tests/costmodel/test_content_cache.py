from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from costmodel import ContentCache, content_key, default_cache_root
from quantizers.errors import UsageError


def _entries(cache: ContentCache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if path.is_file()]


def test_value_comes_back_whatever_the_order_of_the_key(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.put({"a": 1, "b": [2.5, None]}, {"luts": 80})
    assert ContentCache(tmp_path).get({"b": [2.5, None], "a": 1}) == {"luts": 80}
    assert cache.get({"a": 2, "b": [2.5, None]}) is None


def test_key_is_sha256_of_canonical_json() -> None:
    text = '{"a":"\\u00e9","b":[1,null]}'
    assert content_key({"b": [1, None], "a": "é"}) == hashlib.sha256(text.encode()).hexdigest()


def test_namespaces_are_apart(tmp_path: Path) -> None:
    ContentCache(tmp_path, namespace="synthesis").put("k", 1)
    assert ContentCache(tmp_path, namespace="accuracy").get("k") is None


def test_later_value_replaces_the_earlier(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.put("k", 1)
    cache.put("k", 2)
    assert cache.get("k") == 2
    assert len(_entries(cache)) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"value": 80}', b"\xff\xfe"])
def test_damaged_entry_is_absent(tmp_path: Path, damage: bytes) -> None:
    cache = ContentCache(tmp_path)
    cache.put("k", 80)
    (entry,) = _entries(cache)
    entry.write_bytes(damage)
    assert cache.get("k") is None
    cache.put("k", 81)
    assert cache.get("k") == 81


def test_altered_and_truncated_entries_are_absent(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.put("k", {"luts": 80})
    (entry,) = _entries(cache)
    text = entry.read_text()
    entry.write_text(text.replace("80", "81"))
    assert cache.get("k") is None
    entry.write_text(text[:-5])
    assert cache.get("k") is None


def test_no_temporary_file_stays_after_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ContentCache(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        cache.put("k", 1)
    assert _entries(cache) == []


def test_writers_of_one_key_do_not_disturb_each_other(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.put("k", [i] * 1000), range(64)))
    value = cache.get("k")
    assert value == [value[0]] * 1000
    assert len(_entries(cache)) == 1


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UsageError) as caught:
        ContentCache(tmp_path / "cache")
    assert str(caught.value) == (
        f"cannot write to the cache folder {tmp_path / 'cache' / 'synthesis'}: Not a directory; "
        "set BITFRONT_CACHE to a folder that can be written"
    )
    assert caught.value.given == str(tmp_path / "cache" / "synthesis")


@pytest.mark.parametrize("namespace", ["", "../up", "A", "a/b"])
def test_namespace_is_a_plain_name(tmp_path: Path, namespace: str) -> None:
    with pytest.raises(UsageError) as caught:
        ContentCache(tmp_path, namespace=namespace)
    assert str(caught.value) == (
        f"a cache namespace is lower-case letters, digits, '-' and '_', not {namespace!r}"
    )


@pytest.mark.parametrize("key", [{1, 2}, float("nan"), object()])
def test_keys_and_values_are_json(tmp_path: Path, key: object) -> None:
    cache = ContentCache(tmp_path)
    with pytest.raises(UsageError, match=r"^a cache key or value must be plain JSON: "):
        cache.get(key)
    with pytest.raises(UsageError, match=r"^a cache key or value must be plain JSON: "):
        cache.put("k", key)
    assert _entries(cache) == []


def test_default_root_is_chosen_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "here"))
    assert default_cache_root() == tmp_path / "here"
    cache = ContentCache(namespace="accuracy")
    assert cache.folder == tmp_path / "here" / "accuracy"
    monkeypatch.delenv("BITFRONT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_cache_root() == tmp_path / "xdg" / "bitfront"
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_cache_root() == Path.home() / "Library" / "Caches" / "bitfront"


def test_entry_is_plain_json(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.put("k", {"luts": 80})
    (entry,) = _entries(cache)
    assert json.loads(entry.read_text())["value"] == {"luts": 80}
    assert entry.stem == content_key("k")
