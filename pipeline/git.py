"""Run git unattended: without prompts, hooks and signatures."""

import os
import shlex
import subprocess
from pathlib import Path

from pipeline.errors import FlowError

UNATTENDED = {
    "core.hooksPath": "/dev/null",
    "commit.gpgSign": "false",
    "push.gpgSign": "false",
    "core.askPass": "",
    "core.autocrlf": "false",  # check out commits from before .gitattributes unchanged, too
    "credential.interactive": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
# Git sets these while it runs a user's hook or alias. They would redirect every command to that repository.
GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")
INITIALISE = "git init && git add . && git commit -m 'Start from the archive'"
SET_AUTHOR = "git config --global user.name 'YOUR NAME' && git config --global user.email YOU@EXAMPLE.COM"
AUTHOR = {"user.name": "pipeline", "user.email": "pipeline@localhost"}  # if none is configured


def git(directory: Path, *arguments: str, stdin: bytes | None = None, seconds: float | None = None) -> str:
    """Run a git command and return its output without trailing line breaks.

    Args:
        seconds: the time limit, after which the command is killed; None sets no limit.

    Raises:
        FlowError: the command failed. The error is temporary if the time limit is the reason.
    """
    settings = [part for name, value in UNATTENDED.items() for part in ("-c", f"{name}={value}")]
    asking = ("GIT_ASKPASS", "SSH_ASKPASS")
    environment = {name: value for name, value in os.environ.items() if name not in (*GIT_VARIABLES, *asking)}
    environment |= {"GIT_TERMINAL_PROMPT": "0"}
    environment.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20")
    command = ["git", *settings, "-C", str(directory), *arguments]
    piped = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=seconds, **piped)
    except subprocess.TimeoutExpired:
        found = f"no end after {seconds:.0f} s"
        raise FlowError(f"git {arguments[0]} failed", found=found, temporary=True) from None
    if done.returncode:
        raise FlowError(f"git {arguments[0]} failed", found=os.fsdecode(done.stderr).strip())
    return os.fsdecode(done.stdout).rstrip("\n")


def require_repository(workspace: Path) -> None:
    """Check that a directory is in a git repository: DVC and retrainings need commits. An unpacked archive has none.

    Raises:
        FlowError: git is not installed, or cannot read the repository.
    """
    try:
        git(workspace, "rev-parse", "--git-dir")
    except FileNotFoundError:
        raise FlowError("git is not installed", expected="the command git", remedy="install git") from None
    except FlowError as error:
        is_absent = "not a git repository" in error.found
        initialise = f"{SET_AUTHOR} && {INITIALISE}" if lacks_author(workspace) else INITIALISE
        raise FlowError(
            f"{workspace} is not a git repository" if is_absent else f"git cannot read {workspace}",
            expected="a clone: DVC, experiments and retrainings work on commits",
            found=error.found,
            remedy=f"cd {shlex.quote(str(workspace))} && {initialise}" if is_absent else "",
        ) from None


def lacks_author(workspace: Path) -> bool:
    """Return True if git has no name or no email address for the author of a commit."""
    return any(git_or_none(workspace, "config", "--get", name) is None for name in AUTHOR)


def git_or_none(directory: Path, *arguments: str) -> str | None:
    """Run a git command and return its output without trailing line breaks; None if it fails."""
    try:
        return git(directory, *arguments)
    except FlowError:
        return None


def describe_commit(directory: Path) -> str:
    """Describe the commit of a checkout and its uncommitted changes: `1a2b3c4d5e`. Empty outside a git repository."""
    try:
        commit = git_or_none(directory, "rev-parse", "--short=10", "HEAD")
        changed = commit and git_or_none(directory, "status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # git is not installed
        return ""
    return f"{commit}{', with uncommitted changes' if changed else ''}" if commit else ""


def find_reason(output: str) -> str:
    """Return the line of a failed command's output that contains the reason, not git's advice after it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(("! [", "fatal:", "error:", "ERROR:"))]
    return next(iter([*reasons, *reversed(lines)]), "")


def commit(directory: Path, message: str, *, author_of: Path) -> str:
    """Commit the index, even without changes, and return the commit's SHA-1.

    Args:
        author_of: the repository whose configured author becomes the author of the commit.
    """
    author = [
        part
        for name, value in AUTHOR.items()
        for part in ("-c", f"{name}={git_or_none(author_of, 'config', '--get', name) or value}")
    ]
    git(directory, *author, "commit", "--quiet", "--allow-empty", "--no-verify", "--file=-", stdin=message.encode())
    return git(directory, "rev-parse", "HEAD")
