"""Errors of the operating system in words."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.stages.entrypoint import explain


def test_a_full_disk_is_named_with_both_files_and_the_space_on_the_disk_of_the_second(tmp_path: Path) -> None:
    """As `shutil.copyfile` raises it."""
    copy = Path("/proc/none/copy")  # a file system of its own, of which nothing is ever free
    told = explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "file"), None, str(copy)))
    assert told.problem == f"cannot read or write {tmp_path / 'file'} or {copy}"
    assert told.found == "No space left on device (0 MiB free on the disk of /proc)"
    assert "free space" in told.remedy


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "permissions"), (errno.EROFS, "mount"), (errno.ENOENT, "deleted"), (errno.EDQUOT, "quota")],
)
def test_only_a_full_disk_is_called_one(tmp_path: Path, number: int, remedy: str) -> None:
    told = explain(OSError(number, os.strerror(number), str(tmp_path / "none/file")))
    assert str(tmp_path / "none/file") in told.problem
    assert remedy in told.remedy
    assert ("MiB free" in told.found) == (number == errno.EDQUOT)


def test_an_error_without_a_file_names_none() -> None:
    told = explain(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    assert (told.problem, told.found) == ("cannot read or write a file, or reach a server", "Connection refused")
