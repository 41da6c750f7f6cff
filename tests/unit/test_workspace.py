"""Workspaces, the repository they belong to, and locks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import WorkspaceError
from pipeline.workspace import find_workspace, is_held, lock, main_repository
from tests.conftest import REPOSITORY


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@example.invalid"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    path = tmp_path / "repository"
    path.mkdir()
    (path / "dvc.yaml").write_text("stages: {}\n")
    git(path, "init", "--quiet")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "start")
    return path


def test_a_workspace_is_found_from_below(repository: Path) -> None:
    below = repository / "a" / "b"
    below.mkdir(parents=True)
    assert find_workspace(below) == repository


def test_outside_a_workspace_the_error_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"dvc\.yaml here or in a directory above"):
        find_workspace(tmp_path)


def test_a_repository_is_its_own_main_repository(repository: Path) -> None:
    assert main_repository(repository) == repository


def test_a_worktree_leads_to_its_main_repository(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", str(tmp_path / "worktree"))
    assert main_repository(tmp_path / "worktree") == repository


def test_dvc_names_the_main_repository_of_a_temporary_copy(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(repository))
    assert main_repository(tmp_path / "copy") == repository


def test_a_directory_without_git_is_its_own_main_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert main_repository(tmp_path) == tmp_path


HOLD = """
import sys
from pathlib import Path
from pipeline.workspace import lock
with lock("stage train", wait=0, remedy="wait", root=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_has_one_holder_and_ends_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(WorkspaceError, match=f"process {holder.pid}"),
        lock("stage train", wait=0, remedy="wait for it", root=tmp_path),
    ):
        pass
    with lock("stage split", wait=0, remedy="wait for it", root=tmp_path):
        pass  # another stage's lock is free
    assert is_held("stage train", holder.pid, root=tmp_path)
    assert not is_held("stage train", os.getpid(), root=tmp_path)
    holder.kill()
    holder.communicate()
    assert not is_held("stage train", holder.pid, root=tmp_path)  # which it still says
    with lock("stage train", wait=5, remedy="wait for it", root=tmp_path):
        content = json.loads((tmp_path / ".pipeline/locks/stage-train.json").read_text())
        assert content["pid"] != holder.pid


def test_git_ignores_an_environment_that_is_a_link(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".venv").symlink_to(tmp_path)
    git(tmp_path, "check-ignore", ".venv")  # which fails if it is not ignored
