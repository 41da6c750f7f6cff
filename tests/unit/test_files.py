"""Atomic writes and digests."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import re
from functools import partial
from pathlib import Path
from typing import IO

import pytest
from dvc.utils.serialize import loads_yaml

from pipeline.files import (
    atomic_directory,
    atomic_file,
    file_digest,
    parse_yaml,
    read_cached_json,
    read_json,
    write_json,
)
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "pipeline"


def test_a_failed_write_leaves_the_former_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("former")
    with pytest.raises(RuntimeError), atomic_file(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "former"
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_at_once_do_not_write_into_each_other(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with atomic_file(target) as one, atomic_file(target) as other:
        one.write_text("one, which is longer")
        other.write_text("other")
    assert target.read_text() == "one, which is longer"  # the last to end
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "a [1].json"
    left = tmp_path / ".a [1].json.0123abcd.partial"
    left.write_text("hal")
    with atomic_file(target) as written:
        assert [path.name for path in tmp_path.iterdir()] == [written.name]
        write_json(target, {})
        assert written.exists()  # its writer lives
        written.write_text("whole")
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each begins while others create their temporary files, which it must not take for those of killed writers."""
    target = tmp_path / "file.json"
    with multiprocessing.get_context("fork").Pool(8) as writers:
        for _ in range(50):
            writers.map(partial(write_json, target), range(8), chunksize=1)  # raises what they raise
            assert read_json(target) in range(8)
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_whose_file_is_removed_before_it_is_locked_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in a fixed order: another writer removes the file between its creation and its lock."""
    lock, target = fcntl.flock, tmp_path / "file"

    def write_first(file: IO[bytes], operation: int) -> None:
        monkeypatch.undo()
        write_json(target, {"a": "other"})
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", write_first)
    with atomic_file(target) as written:
        assert written.exists()
        written.write_text("{}")
    assert read_json(target) == {}
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_without_a_file_name_gets_the_targets(tmp_path: Path) -> None:
    """As `write` raises it on a full disk."""
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "file")


def test_a_failed_directory_leaves_the_former_one(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    with atomic_directory(target) as partial:
        (partial / "a").write_text("former")
    with pytest.raises(RuntimeError), atomic_directory(target) as partial:
        (partial / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "former"
    with atomic_directory(target) as partial:
        (partial / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_the_same_bytes_for_the_same_values(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "바지"})
    write_json(tmp_path / "b", {"a": "바지", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_json(tmp_path / "a") == {"a": "바지", "b": 1}


@pytest.mark.parametrize("left", [b"", b"\0\0\0", b'{"a": ', b"\xff"])
def test_what_a_power_cut_left_of_json_counts_as_nothing(tmp_path: Path, left: bytes) -> None:
    assert read_cached_json(tmp_path / "a") is None
    (tmp_path / "a").write_bytes(left)
    assert read_cached_json(tmp_path / "a") is None
    write_json(tmp_path / "a", {"a": 1})
    assert read_cached_json(tmp_path / "a") == {"a": 1}


def test_json_refuses_what_json_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a", float("nan"))
    assert not list(tmp_path.iterdir())


def test_digests_are_those_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"x" * 100_000).hexdigest()
    assert file_digest(tmp_path / "a", "md5") == hashlib.md5(b"x" * 100_000).hexdigest()


def test_yaml_is_read_as_dvc_reads_it() -> None:
    """YAML 1.1 reads each of these as something else: text, True, 15, 90."""
    text = "- 1e-05\n- yes\n- 017\n- 1:30\n- off\n- 0o17\n"
    assert parse_yaml(text) == loads_yaml(text) == [1e-05, "yes", 17, "1:30", "off", 15]


@pytest.mark.parametrize("text", ["!!int ''", "!!bool x", "[" * 100_000, "- " * 100_000, "{a: " * 50_000])
def test_what_no_parser_can_take_is_refused_as_no_yaml(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_yaml(text)


def test_only_one_module_reads_yaml() -> None:
    readers = [path for path in PACKAGE.rglob("*.py") if re.search(r"yaml\.(safe_)?load|YAML\(", path.read_text())]
    assert readers == [PACKAGE / "files.py"]
