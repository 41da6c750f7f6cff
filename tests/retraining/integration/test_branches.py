"""Pushing the branches of retrainings."""

import os
from pathlib import Path

import pytest

from pipeline.files import read_json
from pipeline.git import commit, git
from pipeline.retraining import branches

FIRST, SECOND = "retrain/20260101T000000Z", "retrain/20260102T000000Z"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two finished retrainings that are not pushed. It has no remote."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch", "main")
    for name in ("main", FIRST, SECOND):
        git(root, "checkout", "--quiet", "-B", name)
        commit(root, f"{name}\n\n{branches.OUTCOME}: champion\n", author_of=root)
        if name != "main":
            branches.mark_unpushed(root, root, name)
    git(root, "checkout", "--quiet", "main")
    return root


def add_remote(repository: Path, name: str) -> Path:
    path = repository.with_name(f"{name}.git")
    git(repository, "init", "--quiet", "--bare", str(path))
    git(repository, "remote", "add", name, str(path))
    return path


def pushed(remote: Path) -> set[str]:
    return set(git(remote, "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain/").split())


def test_a_branch_that_cannot_be_pushed_does_not_stop_the_others(repository: Path) -> None:
    remote = add_remote(repository, "origin")
    git(repository, "push", "--quiet", "origin", f"{SECOND}:refs/heads/{FIRST}")  # another's, of the same name
    (problem,) = branches.push_missing(repository, repository)
    assert pushed(remote) == {FIRST, SECOND}
    assert problem.startswith(f"{FIRST} is not pushed: git push failed: ! [rejected]")
    assert "hint" not in problem
    assert read_json(repository / branches.UNPUSHED) == {FIRST: ["data", "commits"], SECOND: ["data"]}


def test_with_several_remotes_only_a_configured_one_is_pushed_to(repository: Path) -> None:
    first, last = (add_remote(repository, name) for name in ("alice", "zeta"))
    assert branches.push_missing(repository, repository) == ()
    assert pushed(first) == pushed(last) == set()
    git(repository, "config", "remote.pushDefault", "zeta")
    branches.push_missing(repository, repository)
    assert (pushed(first), pushed(last)) == (set(), {FIRST, SECOND})


def test_a_corrupt_list_of_unpushed_branches_is_rebuilt(repository: Path) -> None:
    remote = add_remote(repository, "origin")
    git(repository, "push", "--quiet", "origin", FIRST)
    (repository / branches.UNPUSHED).write_bytes(b"")
    assert branches.push_missing(repository, repository) == ()
    assert pushed(remote) == {FIRST, SECOND}
    assert read_json(repository / branches.UNPUSHED) == {SECOND: ["data"]}


def test_the_only_remote_is_pushed_to(repository: Path) -> None:
    remote = add_remote(repository, "team")
    assert branches.push_missing(repository, repository) == ()
    assert pushed(remote) == {FIRST, SECOND}
