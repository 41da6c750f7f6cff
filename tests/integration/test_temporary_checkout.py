"""A commit of the past in a directory of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from dvc.config import Config

from pipeline.errors import FlowError, WorkspaceError
from pipeline.flows.temporary_checkout_data import provide_dataset_files
from pipeline.temporary_checkout import REPRODUCTIONS, checkout
from pipeline.tracking.provenance import read_tree
from pipeline.tracking.stage_outputs import dvc_digest
from pipeline.workspace import main_repository


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.invalid")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one commit, whose DVC has a cache and a remote of its own."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    path = tmp_path / "repository"
    (path / ".dvc").mkdir(parents=True)
    (path / ".dvc/config").write_text("[core]\n    remote = team\n['remote \"team\"']\n    url = ../../team\n")
    (path / ".dvc/config.local").write_text("['remote \"far\"']\n    url = ssh://host/far\n    password = secret\n")
    (path / ".dvc/.gitignore").write_text("/config.local\n/cache\n")
    (path / ".gitignore").write_text("/.pipeline/\n")
    (path / "dvc.yaml").write_text("stages: {}\n")
    (path / "code.py").write_text("one\n")
    git(path, "init", "--quiet", "--initial-branch", "main")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "start")
    return path


def test_it_holds_the_commit_with_its_diff_and_leaves_no_trace(repository: Path) -> None:
    (repository / "code.py").write_text("two\n")
    (repository / "new file.bin").write_bytes(bytes(range(256)))
    (repository / "staged.txt").write_text("staged\n")
    git(repository, "add", "staged.txt")
    (repository / "staged.txt").write_text("staged, and edited since\n")
    git(repository, "config", "diff.noprefix", "true")  # of the user, and no concern of the record
    tree = read_tree(repository)
    assert tree
    (repository / "code.py").write_text("three\n")
    git(repository, "commit", "--quiet", "--all", "--message", "later")
    before = git(repository, "for-each-ref"), git(repository, "worktree", "list"), git(repository, "status", "--short")
    with checkout(repository, tree.commit, tree.diff) as directory:
        assert (directory / "code.py").read_text() == "two\n"
        assert (directory / "new file.bin").read_bytes() == bytes(range(256))
        assert (directory / "staged.txt").read_text() == "staged, and edited since\n"
        assert main_repository(directory) == directory  # no stage looks for the reader's records or batches
    assert not directory.exists()
    after = git(repository, "for-each-ref"), git(repository, "worktree", "list"), git(repository, "status", "--short")
    assert after == before


def test_it_uses_the_cache_and_the_remotes_of_the_workspace(repository: Path, tmp_path: Path) -> None:
    with checkout(repository, git(repository, "rev-parse", "HEAD"), b"") as directory:
        settings = Config(directory / ".dvc").read()
    assert settings["cache"]["dir"] == str(repository / ".dvc/cache")
    assert settings["remote"]["team"]["url"] == str(tmp_path / "team")  # a relative address leads where it did
    assert settings["remote"]["far"]["password"] == "secret"


def test_imported_data_of_the_commit_is_restored_and_not_copied_from_the_workspace(repository: Path) -> None:
    own = repository / "data/own/parts"
    own.mkdir(parents=True)
    (repository / "params.yaml").write_text("dataset:\n  path: data/own/parts\n")
    digests = {}
    for content in ("first", "second"):
        (own / "train.parquet").write_text(content)
        subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", str(own)], cwd=repository, check=True)
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--message", content)
        digests[git(repository, "rev-parse", "HEAD")] = dvc_digest(own)
    for commit, digest in digests.items():
        with checkout(repository, commit) as directory:
            assert provide_dataset_files(repository, directory, digest)
            content = git(repository, "log", "-1", "--format=%s", commit)
            assert (directory / "data/own/parts/train.parquet").read_text() == content


def test_a_commit_that_no_branch_has_any_more_can_be_taken(repository: Path) -> None:
    (repository / "code.py").write_text("amended away\n")
    git(repository, "commit", "--quiet", "--all", "--message", "draft")
    draft = git(repository, "rev-parse", "HEAD")
    git(repository, "reset", "--quiet", "--hard", "HEAD~1")
    with checkout(repository, draft, b"") as directory:
        assert (directory / "code.py").read_text() == "amended away\n"


def test_a_project_below_the_top_of_its_repository(repository: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    repository.rename(outer / "project")
    project = outer / "project"
    (project / ".git").rename(outer / ".git")
    git(outer, "add", "--all")
    git(outer, "commit", "--quiet", "--message", "move")
    (project / "code.py").write_text("two\n")
    tree = read_tree(project)
    assert tree
    with checkout(project, tree.commit, tree.diff) as directory:
        assert (directory / "dvc.yaml").is_file()
        assert (directory / "code.py").read_text() == "two\n"


def test_a_commit_of_another_clone_is_an_error_that_leaves_nothing(repository: Path) -> None:
    with pytest.raises(FlowError, match="is not in this repository"), checkout(repository, "0" * 40, b""):
        pass
    assert list((repository / REPRODUCTIONS).iterdir()) == []


def test_what_a_killed_one_left_is_removed_by_the_next(repository: Path) -> None:
    left = repository / REPRODUCTIONS / "left"
    left.mkdir(parents=True)
    (left / "file").touch()
    with checkout(repository, git(repository, "rev-parse", "HEAD"), b"") as directory:
        assert [path.name for path in (repository / REPRODUCTIONS).iterdir()] == [directory.name]


def test_there_is_one_at_a_time(repository: Path) -> None:
    with (
        checkout(repository, git(repository, "rev-parse", "HEAD"), b"") as directory,
        pytest.raises(WorkspaceError, match="another process holds the lock of reproductions"),
        checkout(repository, git(repository, "rev-parse", "HEAD"), b""),
    ):
        pass
    assert not directory.exists()
