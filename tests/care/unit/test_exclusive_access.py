"""Exclusive access to a repository."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.care.exclusive_access import exclusive_access
from pipeline.errors import WorkspaceError
from pipeline.workspace import lock

SPARE = 40  # files that may be open besides: the fixed locks are fifteen


@pytest.fixture
def few_files() -> Iterator[None]:
    """Lower the limit of open files of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + SPARE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_locks_of_many_trainings_are_checked_without_keeping_them_open(
    tmp_path: Path, few_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: 'true'}}\n")
    locks = tmp_path / ".pipeline/locks"
    locks.mkdir(parents=True)
    for number in range(2 * SPARE):
        (locks / f"training-{number:04}.lock").touch()
    with (
        exclusive_access(tmp_path, with_servers=True),
        pytest.raises(WorkspaceError),
        lock("stage train", wait=0, remedy="", root=tmp_path),
    ):
        pass
    with (
        lock(f"training {SPARE:04}", wait=0, remedy="", root=tmp_path),
        pytest.raises(WorkspaceError, match=f"training-{SPARE:04}"),
        exclusive_access(tmp_path, with_servers=False),
    ):
        pass
