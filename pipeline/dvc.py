"""All uses of DVC: its commands in processes, its Python interface, and the formats of its output and its rwlock.

No other module imports DVC: docs/decisions/2026-11-28-if-dvc-stalls.md.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline.errors import FlowError, WorkspaceError, remedy_for_committed
from pipeline.git import find_reason

Outcome = Literal["ran", "restored", "unchanged", "failed"]

TRANSFER_SECONDS = 600  # for a push or a pull; transferred files are kept, and the next attempt continues

ANNOUNCEMENTS: tuple[tuple[re.Pattern[str], Outcome], ...] = (
    (re.compile(r"Stage '([^']+)' didn't change, skipping$"), "unchanged"),
    (re.compile(r"Stage '([^']+)' is cached - skipping run, checking out outputs$"), "restored"),
    (re.compile(r"Running stage '([^']+)':$"), "ran"),
    (re.compile(r"ERROR: failed to reproduce '([^']+)'"), "failed"),
)
EXIT_CODE = re.compile(r".* exited with (-?\d+)$")
ADVICE = re.compile(
    r"(Updating|Generating) lock file '|To track the changes with git, run:$|\tgit add |To enable auto staging, run:$|"
    r"\tdvc config core.autostage true$|Use `dvc push` to send your updates|Data and pipelines are up to date.$|$"
)


@dataclass(frozen=True)
class Announcement:
    """A message of `dvc repro` about a stage: what DVC starts to do with it, or that it failed."""

    stage: str
    outcome: Outcome
    exit_code: int | None = None  # of the command of a failed stage


def parse_announcement(line: str) -> Announcement | None:
    """Parse a line of `dvc repro`. Returns None if it announces nothing."""
    for pattern, outcome in ANNOUNCEMENTS:
        if found := pattern.match(line):
            code = EXIT_CODE.match(line) if outcome == "failed" else None
            return Announcement(found[1], outcome, int(code[1]) if code else None)
    return None


def is_advice(line: str) -> bool:
    """Return True for advice that DVC repeats after every stage. The run prints the useful part once."""
    return bool(ADVICE.match(line))


def start_python(
    *module: str,
    environment: Mapping[str, str],
    workspace: Path | None = None,
    without: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENTS` in its own process group, with pipes to its input and from its output.

    `cmd: python -m …` of a stage finds this interpreter even if no virtual environment is active, and the output of a
    stage is not buffered.

    Args:
        environment: variables to add to those that it inherits.
        workspace: the directory in which it starts; None for the current one.
        without: prefixes of environment variables that it does not inherit.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=workspace,
        env=inherited | {"PATH": path, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to all processes of the group that a process leads. Does nothing if all have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS denies a signal to a group of zombies
        os.killpg(process.pid, number)


def run_in_checkout(
    directory: Path,
    *arguments: str,
    seconds: float | None = None,
    without: tuple[str, ...] = (),
    on_line: Callable[[str], None] = lambda line: None,
) -> tuple[int, list[str]]:
    """Run a DVC command in a temporary directory. The command ends with this process, even after `kill -9`.

    Args:
        seconds: the time limit, after which the command is killed; None sets no limit.
        without: prefixes of environment variables that it does not inherit.
        on_line: called with each line as soon as it is printed.

    Returns:
        its exit code and the lines that it printed, without DVC's advice.
    """
    # Import the module from the current directory: the commit in `directory` may not have it.
    attached_dvc = ("pipeline.process_lifetime", "dvc", "--cd", str(directory), "--wait-for-lock")
    cache = {"DVC_SITE_CACHE_DIR": str(site_cache(directory))}
    process = start_python(*attached_dvc, *arguments, environment=cache, without=without)
    assert process.stdin
    assert process.stdout
    limit = threading.Timer(seconds or 0, signal_group, (process, signal.SIGKILL))
    if seconds is not None:
        limit.start()
    lines = []
    with process.stdin, process.stdout as output:
        try:
            for text in output:
                if not is_advice(line := text.rstrip()):
                    lines.append(line)
                    on_line(line)
        finally:
            limit.cancel()
            signal_group(process, signal.SIGKILL)
            process.wait()
    return process.returncode, lines


def add(path: Path, *, remedy: str) -> None:
    """Add a file or a directory to DVC, which writes its pointer `PATH.dvc`.

    Raises:
        FlowError: DVC cannot add it. The message has `remedy`.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "add", "--quiet", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise FlowError(f"DVC cannot add {path}", found=(result.stderr or result.stdout).strip(), remedy=remedy)


def run_command(arguments: Sequence[str]) -> int:
    """Run a `dvc` command in this process, and return its exit code."""
    import dvc.cli

    sys.argv = ["dvc", *arguments]
    return int(dvc.cli.main(list(arguments)))


def query_plan() -> dict[str, Any]:
    """Read the stages of the current directory and their status. `flows.plan.parse_plan` describes the format.

    Raises:
        FlowError: DVC cannot read them.
    """
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo
    from dvc.stage import PipelineStage

    try:
        with Repo() as repo, lock_repo(repo):  # without this lock, DVC reads its files twice
            status = repo.status()
            graph = repo.index.graph
            stages = [stage for stage in networkx.dfs_postorder_nodes(graph) if isinstance(stage, PipelineStage)]
            upstream = {
                stage.addressing: [node.addressing for node in graph.successors(stage) if node in stages]
                for stage in stages
            }
    except DvcException as error:
        raise FlowError(str(error)) from None
    return {"order": list(upstream), "upstream": upstream, "status": status}


def query_diff(workspace: Path, kind: str, *arguments: str) -> dict[str, Any]:
    """Return the output of `dvc params diff` or `dvc metrics diff`: by file, and by name, the values `old` and `new`.

    Raises:
        FlowError: DVC cannot read them.
    """
    command = [sys.executable, "-m", "dvc", kind, "diff", "--json", *arguments]
    asked = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise FlowError(
            f"dvc {kind} diff failed",
            found=find_reason(asked.stderr),
            remedy=remedy_for_committed(workspace / "dvc.yaml"),
        )
    found: dict[str, Any] = json.loads(asked.stdout or "{}")
    return found


def find_cache(workspace: Path) -> Path | None:
    """Return the directory of objects in DVC's cache. None if the workspace does not use DVC.

    Raises:
        WorkspaceError: DVC's settings cannot be read.
    """
    if not (workspace / ".dvc").is_dir():
        return None
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    asked = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise WorkspaceError("DVC's settings cannot be read", found=asked.stderr.strip(), remedy="dvc config --list")
    return workspace / asked.stdout.strip() / "files/md5"


def find_used_objects(workspace: Path, commits: Sequence[str]) -> tuple[set[str], Path, Path]:
    """Return the MD5 of the objects that branches, tags, experiments and these commits use.

    Returns:
        the MD5s, the directory of the objects, and the directory of the run-cache.

    Raises:
        FlowError: DVC cannot read one of the commits.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(workspace)) as repo, repo.lock:
            # force: ignore directories whose list is not in the cache, for example from another machine.
            used = repo.used_objs(
                all_branches=True, all_tags=True, all_experiments=True, revs=list(commits) or None, force=True
            )
            digests = {info.value for infos in used.values() for info in infos}
            return digests, Path(repo.cache.local.path), Path(repo.cache.local_cache_dir) / "runs"
    except DvcException as error:
        raise FlowError(
            "DVC cannot list the data in use", found=str(error), remedy="correct it, or delete that branch or tag"
        ) from None


def share_cache(workspace: Path, directory: Path) -> None:
    """Configure DVC in `directory` with the workspace's cache and remotes, including their passwords.

    Raises:
        FlowError: DVC's settings cannot be read.
    """
    from dvc.config import Config, ConfigError

    try:
        settings = Config(workspace / ".dvc").read()  # paths in it are absolute
        with Config(directory / ".dvc").edit("local") as local:
            local["remote"] = settings["remote"]
            local["cache"] = {"dir": str(workspace / ".dvc/cache"), **settings["cache"]}
            local["core"] = {name: value for name, value in settings["core"].items() if name == "remote"}
    except ConfigError as error:
        raise FlowError("DVC's settings cannot be read", found=str(error), remedy="dvc config --list") from None


def edit_yaml(path: Path) -> AbstractContextManager[dict[str, Any]]:
    """Return a context with the content of a YAML file, which is written at its end. Comments stay."""
    from dvc.utils.serialize import modify_yaml

    context: AbstractContextManager[dict[str, Any]] = modify_yaml(str(path))
    return context


def site_cache(directory: Path) -> Path:
    """Return DVC's site cache for a temporary directory. DVC's default, `/var/tmp/dvc`, would keep it forever."""
    return directory / ".dvc/tmp/site"


def remove_stale_rwlock_entries(workspace: Path) -> None:
    """Remove entries of ended processes from DVC's rwlock, and replace a file that a killed DVC left truncated.

    DVC does the first itself, unless another process has the same id now, for example after a restart of the machine.
    It then refuses to run. It also refuses a file that is not JSON: it writes the file in place, so a kill can truncate
    it.
    """
    path = workspace / ".dvc/tmp/rwlock"
    try:
        before = path.read_text(encoding="utf-8")
        if _without_stale_entries(before) == before:
            return
        from dvc.lock import make_lock

        with make_lock(f"{path}.lock", tmp_dir=str(path.parent)):  # DVC also takes this lock for every change
            path.write_text(_without_stale_entries(path.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return  # the file is missing, or DVC will report the error in it


def _without_stale_entries(text: str) -> str:
    """Return the rwlock's content with the entries of DVC processes that still run.

    Its format: `{"write": {PATH: HOLDER}, "read": {PATH: [HOLDER, …]}}`.
    """
    try:
        locked: Mapping[str, Mapping[str, Any]] = json.loads(text)
    except json.JSONDecodeError:  # DVC was killed while it wrote the file
        return "{}"
    write = {path: holder for path, holder in locked.get("write", {}).items() if _is_dvc(holder["pid"])}
    read = {path: [one for one in holders if _is_dvc(one["pid"])] for path, holders in locked.get("read", {}).items()}
    kept = {"write": write, "read": {path: holders for path, holders in read.items() if holders}}
    return text if kept == locked else json.dumps(kept)


def _is_dvc(pid: int) -> bool:
    try:
        return "dvc" in " ".join(psutil.Process(pid).cmdline())
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
