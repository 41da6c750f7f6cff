"""The branches that retrainings leave, `retrain/<UTC timestamp>`: what each took in, what came of it, how it gets out.

A retraining makes at most two commits on top of the one it retrains: first the pointers of new batches and changed
parameters, which is the commit that its runs name, then `dvc.lock`. Trailers of these commits are its memory, which
travels with the branch to every clone. A branch whose last commit has no result is a retraining that did not end.
"""

import configparser
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkout import RETRAININGS, checkout
from pipeline.dvc import TRANSFER_SECONDS, run_in_checkout
from pipeline.errors import TEMPORARY_FAILURE, FlowError, PipelineError
from pipeline.files import read_kept, write_json
from pipeline.git import git, git_or_none, telling_line
from pipeline.workspace import STATE

PREFIX = "retrain/"
TAKES = "Retrain-Takes"  # of the first commit: a digest of all that this retraining looks at
INPUT = "Retrain-Input"  # of the last commit: the same
RESULT = "Retrain-Result"  # the same digest as it will be for this commit, once somebody has merged it
OUTCOME = "Retrain-Outcome"
VERSION = "Retrain-Version"
PUSH = "Retrain-Push"  # of the last commit of a branch that stays here: NEVER
NEVER = "never"
UNPUSHED = STATE / "retraining" / "unpushed.json"  # branches by name, with those PARTS that have yet to be pushed
PARTS = ("data", "commits")


@dataclass(frozen=True)
class Branch:
    """A retraining, as its branch tells."""

    name: str
    commit: str
    trailers: Mapping[str, str]
    is_remote: bool  # fetched from there, or pushed to it


def read_branches(workspace: Path) -> list[Branch]:
    """The retrainings that the repository knows, its own and those fetched from remotes."""
    form = "%(refname)%00%(objectname)%00%(contents:trailers:only,unfold)%00"
    patterns = (f"refs/heads/{PREFIX}*", f"refs/remotes/*/{PREFIX}*")
    parts = iter(git(workspace, "for-each-ref", f"--format={form}", *patterns).split("\0"))
    found = []
    for name, commit, text in zip(parts, parts, parts, strict=False):
        trailers = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        is_remote = name.strip().startswith("refs/remotes/")  # a line ends between two of them
        found.append(Branch(name[name.index(PREFIX) :], commit, trailers, is_remote))
    return found


def require_room(workspace: Path) -> None:
    """Refuse a repository with a branch `retrain`: git can then have no branch below that name."""
    if git_or_none(workspace, "rev-parse", "--verify", "--quiet", "refs/heads/retrain"):
        raise FlowError(
            "a branch named `retrain` is in the way",
            expected=f"room for branches {PREFIX}TIME",
            remedy="git branch -m retrain ANOTHER-NAME",
        )


def new_name(workspace: Path) -> str:
    """A name that no retraining has: of two in the same second, or when the clock was set back, one gets a number."""
    stamp = PREFIX + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    taken = {branch.name for branch in read_branches(workspace)}
    numbered = (f"{stamp}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (stamp, *numbered) if name not in taken)


def bring(workspace: Path, directory: Path, name: str) -> None:
    """Give the reader's repository the commit that a checkout stands on, as the branch `name`."""
    git(workspace, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(directory), f"HEAD:refs/heads/{name}")


def mark_unpushed(workspace: Path, root: Path, name: str) -> None:
    """Note that a branch and its data have yet to be pushed, wherever a remote is or will be configured."""
    write_json(root / UNPUSHED, _read_unpushed(workspace, root) | {name: list(PARTS)})


def describe_push(workspace: Path) -> str:
    """Where branches and their data are pushed to, in words; empty for nowhere."""
    remote, has_dvc_remote = _find_remote(workspace), _has_dvc_remote(workspace)
    parts = [f"branch to the git remote {remote}"] if remote else []
    return " and ".join([*parts, *(["data to the default DVC remote"] if has_dvc_remote else [])])


def push_missing(workspace: Path, root: Path, tell: Callable[[str], None] = lambda line: None) -> tuple[str, ...]:
    """Push the finished retrainings that remotes lack: data first, so that who fetches a branch finds what it names.

    Args:
        tell: called with a line before each branch is pushed.

    Returns:
        what could not be pushed, in words. Nothing is lost: the next retraining tries again.
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
                tell(f"pushing the data of {name} to the default DVC remote")
                _push_data(workspace, commits[name])
                parts.remove("data")
            if "commits" in parts and remote and not ("data" in parts and has_dvc_remote):
                reference = f"refs/heads/{name}"
                tell(f"pushing {name} to {remote}")
                git(workspace, "push", "--quiet", remote, f"{reference}:{reference}", seconds=TRANSFER_SECONDS)
                parts.remove("commits")
        except PipelineError as error:
            problems.append(f"{name} is not pushed: {error.problem}: {telling_line(error.found)}")
            if error.exit_code == TEMPORARY_FAILURE:
                break  # the others would wait as long for the same remote
    left = {name: parts for name, parts in unpushed.items() if parts and (name in commits or name not in pending)}
    write_json(root / UNPUSHED, left)
    return tuple(problems)


def _is_to_push(branch: Branch) -> bool:
    """Whether a retraining has ended and may leave this repository."""
    return OUTCOME in branch.trailers and branch.trailers.get(PUSH) != NEVER


def _read_unpushed(workspace: Path, root: Path) -> dict[str, list[str]]:
    """What is noted; without a note that can be read, all of each branch that no remote is known to have."""
    noted = read_kept(root / UNPUSHED)
    if noted is not None:
        return dict(noted)
    ended = [branch for branch in read_branches(workspace) if _is_to_push(branch)]
    pushed = {branch.name for branch in ended if branch.is_remote}
    return {branch.name: list(PARTS) for branch in ended if branch.name not in pushed}


def _push_data(workspace: Path, commit: str) -> None:
    with checkout(workspace, commit, place=RETRAININGS) as directory:
        ended, lines = run_in_checkout(directory, "push", "--quiet", seconds=TRANSFER_SECONDS)
    if ended:
        # The time limit kills it.
        raise FlowError("dvc push failed", found="\n".join(lines), temporary=ended < 0)


def _find_remote(workspace: Path) -> str | None:
    """The git remote to push to: the configured one, that of the current branch, `origin`, or the only one.

    None where there is none, or where nothing says which of several it is.
    """
    remotes = git(workspace, "remote").splitlines()
    default = git_or_none(workspace, "config", "--get", "remote.pushDefault")
    branch = git_or_none(workspace, "symbolic-ref", "--quiet", "--short", "HEAD")
    of_branch = git_or_none(workspace, "config", "--get", f"branch.{branch}.remote") if branch else None
    wanted = (default, of_branch, "origin", *(remotes if len(remotes) == 1 else ()))
    return next((name for name in wanted if name in remotes), None)


def _has_dvc_remote(workspace: Path) -> bool:
    """Whether the project has a default remote. Read without DVC, whose import takes longer than all else here."""
    settings = configparser.RawConfigParser(strict=False)
    settings.read([workspace / ".dvc/config", workspace / ".dvc/config.local"], encoding="utf-8")
    return bool(settings.get("core", "remote", fallback=""))
