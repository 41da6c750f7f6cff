"""Branches of retrainings, `retrain/<UTC timestamp>`: read, create and push them.

A retraining adds at most two commits to the commit that it retrains. The first has the pointers of new batches and
the changed parameters; the retraining's runs name this commit. The second has `dvc.lock`. Trailers of these commits
record the input and the result, so every clone has them. A branch whose last commit has no outcome is an unfinished
retraining.
"""

import configparser
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.dvc import TRANSFER_SECONDS, run_in_checkout
from pipeline.errors import TEMPORARY_FAILURE, FlowError, PipelineError
from pipeline.files import read_cached_json, write_json
from pipeline.git import find_reason, git, git_or_none
from pipeline.temporary_checkout import RETRAININGS, checkout
from pipeline.workspace import STATE

PREFIX = "retrain/"
TAKEN = "Retrain-Takes"  # first commit: digest of the input
INPUT = "Retrain-Input"  # last commit: the same digest
RESULT = "Retrain-Result"  # last commit: digest of the input after this branch is merged
OUTCOME = "Retrain-Outcome"
VERSION = "Retrain-Version"
PUSH = "Retrain-Push"  # last commit: NEVER, if the branch must not be pushed
NEVER = "never"
UNPUSHED = STATE / "retraining" / "unpushed.json"  # branch name: those PARTS that are not pushed yet
PARTS = ("data", "commits")


@dataclass(frozen=True)
class Branch:
    """A retraining's branch, as read from git."""

    name: str
    commit: str
    trailers: Mapping[str, str]
    is_remote: bool  # fetched from a remote, or pushed to it


def read_branches(workspace: Path) -> list[Branch]:
    """Read the branches of all retrainings, local ones and those fetched from remotes."""
    form = "%(refname)%00%(objectname)%00%(contents:trailers:only,unfold)%00"
    patterns = (f"refs/heads/{PREFIX}*", f"refs/remotes/*/{PREFIX}*")
    parts = iter(git(workspace, "for-each-ref", f"--format={form}", *patterns).split("\0"))
    found = []
    for name, commit, text in zip(parts, parts, parts, strict=False):
        trailers = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        is_remote = name.strip().startswith("refs/remotes/")  # git prints a line break between records
        found.append(Branch(name[name.index(PREFIX) :], commit, trailers, is_remote))
    return found


def refuse_conflicting_branch(workspace: Path) -> None:
    """Refuse a repository with a branch `retrain`: git cannot create `retrain/TIME` next to it."""
    if git_or_none(workspace, "rev-parse", "--verify", "--quiet", "refs/heads/retrain"):
        raise FlowError(
            f"git cannot create branches {PREFIX}TIME next to a branch `retrain`",
            expected="no branch `retrain`",
            remedy="git branch -m retrain ANOTHER-NAME",
        )


def new_name(workspace: Path) -> str:
    """Create an unused branch name from the time. If the name exists already, append a number."""
    stamp = PREFIX + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    taken = {branch.name for branch in read_branches(workspace)}
    numbered = (f"{stamp}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (stamp, *numbered) if name not in taken)


def fetch_head(workspace: Path, directory: Path, name: str) -> None:
    """Fetch the HEAD commit of a checkout into the user's repository, as the branch `name`."""
    git(workspace, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(directory), f"HEAD:refs/heads/{name}")


def mark_unpushed(workspace: Path, root: Path, name: str) -> None:
    """Record that a branch and its data are not pushed yet, even if no remote is configured yet."""
    write_json(root / UNPUSHED, _read_unpushed(workspace, root) | {name: list(PARTS)})


def describe_push(workspace: Path) -> str:
    """Describe where branches and their data are pushed to; empty without a remote."""
    remote, has_dvc_remote = _find_remote(workspace), _has_dvc_remote(workspace)
    parts = [f"branch to the git remote {remote}"] if remote else []
    return " and ".join([*parts, *(["data to the default DVC remote"] if has_dvc_remote else [])])


def push_missing(workspace: Path, root: Path, show: Callable[[str], None] = lambda line: None) -> tuple[str, ...]:
    """Push finished retrainings that the remotes lack: data first, so that a fetched branch always has its data.

    Args:
        show: called with a line before each branch is pushed.

    Returns:
        a message for each branch that could not be pushed. The next retraining retries.
    """
    unpushed = _read_unpushed(workspace, root)
    commits = {branch.name: branch.commit for branch in read_branches(workspace) if _is_to_push(branch)}
    pending = {name: parts for name, parts in unpushed.items() if name in commits and parts}
    if not pending:
        return ()
    problems: list[str] = []
    remote, has_dvc_remote = _find_remote(workspace), _has_dvc_remote(workspace)
    for name, parts in pending.items():
        try:
            if "data" in parts and has_dvc_remote:
                show(f"pushing the data of {name} to the default DVC remote")
                _push_data(workspace, commits[name])
                parts.remove("data")
            if "commits" in parts and remote and not ("data" in parts and has_dvc_remote):
                reference = f"refs/heads/{name}"
                show(f"pushing {name} to {remote}")
                git(workspace, "push", "--quiet", remote, f"{reference}:{reference}", seconds=TRANSFER_SECONDS)
                parts.remove("commits")
        except PipelineError as error:
            problems.append(f"{name} is not pushed: {error.problem}: {find_reason(error.found)}")
            if error.exit_code == TEMPORARY_FAILURE:
                break  # other branches would wait as long for the same remote
    left = {name: parts for name, parts in unpushed.items() if parts and (name in commits or name not in pending)}
    write_json(root / UNPUSHED, left)
    return tuple(problems)


def _is_to_push(branch: Branch) -> bool:
    """Check that a retraining has finished and that its branch may be pushed."""
    return OUTCOME in branch.trailers and branch.trailers.get(PUSH) != NEVER


def _read_unpushed(workspace: Path, root: Path) -> dict[str, list[str]]:
    """Read the list of unpushed branches. If it is missing or corrupt, list finished branches not on a remote."""
    unpushed = read_cached_json(root / UNPUSHED)
    if unpushed is not None:
        return dict(unpushed)
    finished = [branch for branch in read_branches(workspace) if _is_to_push(branch)]
    pushed = {branch.name for branch in finished if branch.is_remote}
    return {branch.name: list(PARTS) for branch in finished if branch.name not in pushed}


def _push_data(workspace: Path, commit: str) -> None:
    with checkout(workspace, commit, parent=RETRAININGS) as directory:
        code, lines = run_in_checkout(directory, "push", "--quiet", seconds=TRANSFER_SECONDS)
    if code:
        # A negative exit code means that the time limit killed it.
        raise FlowError("dvc push failed", found="\n".join(lines), temporary=code < 0)


def _find_remote(workspace: Path) -> str | None:
    """Find the git remote to push to: the configured one, the current branch's, `origin`, or the only one.

    Returns None if there is no remote, or several and none of these rules selects one.
    """
    remotes = git(workspace, "remote").splitlines()
    default = git_or_none(workspace, "config", "--get", "remote.pushDefault")
    branch = git_or_none(workspace, "symbolic-ref", "--quiet", "--short", "HEAD")
    of_branch = git_or_none(workspace, "config", "--get", f"branch.{branch}.remote") if branch else None
    candidates = (default, of_branch, "origin", *(remotes if len(remotes) == 1 else ()))
    return next((name for name in candidates if name in remotes), None)


def _has_dvc_remote(workspace: Path) -> bool:
    """Check for a default DVC remote. Reads the files directly, because importing DVC is slow."""
    settings = configparser.RawConfigParser(strict=False)
    settings.read([workspace / ".dvc/config", workspace / ".dvc/config.local"], encoding="utf-8")
    return bool(settings.get("core", "remote", fallback=""))
