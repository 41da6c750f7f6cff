"""DVC's processes: start them, read their output line by line, and end them with the run.

The import of DVC takes more than half of the time of a `dvc repro` of one stage. The next DVC process therefore starts
while a stage still runs: `python -m pipeline.dvc` imports DVC, waits for its arguments on standard input, and then runs
`dvc` with them. This module also removes stale entries from DVC's rwlock.
"""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline.errors import TEMPORARY_FAILURE

Outcome = Literal["ran", "restored", "unchanged", "failed"]

TRANSFER_SECONDS = 600  # for a push or a pull; transferred files are kept, and the next attempt continues
STOP_SECONDS = 10  # for a training to close its MLflow run after SIGTERM

MESSAGES: tuple[tuple[re.Pattern[str], Outcome], ...] = (
    (re.compile(r"Stage '[^']+' didn't change, skipping$"), "unchanged"),
    (re.compile(r"Stage '[^']+' is cached - skipping run, checking out outputs$"), "restored"),
    (re.compile(r"Running stage '[^']+':$"), "ran"),
)
EXIT_CODE = re.compile(r"ERROR: failed to reproduce .*exited with (-?\d+)$")
ADVICE = re.compile(
    r"(Updating|Generating) lock file '|To track the changes with git, run:$|\tgit add |To enable auto staging, run:$|"
    r"\tdvc config core.autostage true$|Use `dvc push` to send your updates|Data and pipelines are up to date.$|$"
)


def announced_outcome(line: str) -> Outcome | None:
    """Return the outcome that DVC announces in this line, if any. DVC prints this line first."""
    return next((outcome for pattern, outcome in MESSAGES if pattern.match(line)), None)


def failed_exit_code(line: str) -> int | None:
    """Return the exit code of a stage's command if the line is DVC's message that it failed."""
    found = EXIT_CODE.match(line)
    return int(found[1]) if found else None


def is_advice(line: str) -> bool:
    """Return True for advice that DVC repeats after every stage. The run prints the useful part once."""
    return bool(ADVICE.match(line))


def start_dvc(workspace: Path) -> subprocess.Popen[str]:
    """Start a DVC process that waits for its arguments. It exits if its standard input closes without any."""
    return _start("pipeline.dvc", workspace=workspace)


def _start(
    *module: str, workspace: Path | None = None, without: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENTS` in its own process group, with pipes to its input and from its output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=workspace,
        env=inherited | launch_environment() | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def forget_dead_holders(workspace: Path) -> None:
    """Remove stale entries from DVC's rwlock, and replace a file that a killed DVC left truncated.

    DVC removes the entries of an ended process, unless another process has the same id now, for example after a restart
    of the machine. DVC then refuses to run. It also refuses a file that is not JSON: it writes the file in place, so a
    kill can truncate it.
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
    try:
        used = json.loads(text)
    except json.JSONDecodeError:  # DVC was killed while it wrote the file
        return "{}"
    kept = _without_dead_holders(used)
    return text if kept == used else json.dumps(kept)


def _without_dead_holders(used: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return only the entries of DVC processes. Format: `{"write": {PATH: HOLDER}, "read": {PATH: [HOLDER, …]}}`."""
    write = {path: holder for path, holder in used.get("write", {}).items() if _is_dvc(holder["pid"])}
    read = {path: [one for one in holders if _is_dvc(one["pid"])] for path, holders in used.get("read", {}).items()}
    return {"write": write, "read": {path: holders for path, holders in read.items() if holders}}


def _is_dvc(pid: int) -> bool:
    try:
        return "dvc" in " ".join(psutil.Process(pid).cmdline())
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


def launch_environment() -> dict[str, str]:
    """Return the environment variables for every DVC process that this project starts.

    `cmd: python -m …` must find this interpreter even if no virtual environment is active. The output of a stage must
    not be buffered.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, "PYTHONUNBUFFERED": "1", "PIPELINE_FLOW_PID": str(os.getpid())}


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
    attached_dvc = ("pipeline.process", "dvc", "--cd", str(directory), "--wait-for-lock")
    process = _start(*attached_dvc, *arguments, without=without, DVC_SITE_CACHE_DIR=str(site_cache(directory)))

    def end() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS denies a signal to a group of zombies
            os.killpg(process.pid, signal.SIGKILL)

    assert process.stdin
    assert process.stdout
    limit = threading.Timer(seconds or 0, end)
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
            end()
            process.wait()
    return process.returncode, lines


def site_cache(directory: Path) -> Path:
    """Return DVC's site cache for a temporary directory. DVC's default, `/var/tmp/dvc`, would keep it forever."""
    return directory / ".dvc/tmp/site"


class StageProcess:
    """A process that runs `dvc --wait-for-lock repro --single-item STAGE`."""

    def __init__(
        self,
        stage: str,
        dvc: subprocess.Popen[str],
        *,
        forced: bool,
        environment: Mapping[str, str],
        show: Callable[[str], None],
    ) -> None:
        """Start the stage in a waiting DVC process.

        Args:
            dvc: the process, from `start_dvc`.
            environment: variables to add to that of DVC.
            show: called with each line of output, in another thread.
        """
        self.stage = stage
        self.outcome: Outcome | None = None  # None until DVC has announced it
        self.exit_code: int | None = None  # of the stage's command, if that failed
        self.seconds = 0.0
        self._closed = False  # no process can write to its output any more
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._show = show
        self._started = time.monotonic()
        self._process = dvc
        arguments = ["--wait-for-lock", "repro", "--single-item", *(["--force"] if forced else []), stage]
        assert dvc.stdin
        order = json.dumps({"arguments": arguments, "environment": dict(environment)})
        with contextlib.suppress(BrokenPipeError), dvc.stdin as stdin:  # if DVC has ended, its output shows why
            stdin.write(order)
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"output-of-{stage}")
        self._reading = executor.submit(self._read)
        executor.shutdown(wait=False)

    def lines(self) -> Iterator[str]:
        """Yield each line of output until the process ends. Then `outcome` and `seconds` are final."""
        while (line := self._lines.get()) is not None:
            yield line
        self._reading.result()

    @property
    def may_succeed_later(self) -> bool:
        """True if its exit code reports that a server or a network did not respond."""
        return self.outcome == "failed" and self.exit_code == TEMPORARY_FAILURE

    def end(self) -> None:
        """End all processes of the group: first by SIGTERM, then by SIGKILL. Does nothing if all have ended.

        SIGTERM goes to the stage's command first. DVC then sees it fail, releases its locks and exits. If DVC ended
        first, the stage would exit at once without closing its MLflow run.
        """
        if self._closed:
            return
        try:
            for tell in (self._terminate_innermost, lambda: self._signal(signal.SIGTERM)):
                tell()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS / 2)
                    break
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout
        try:
            for text in self._process.stdout:
                line = text.rstrip()
                self.outcome = self.outcome or announced_outcome(line)
                self.exit_code = self.exit_code or failed_exit_code(line)
                if not is_advice(line):
                    self._show(line)
                    self._lines.put(line)
            self._closed = True
            self.outcome = "failed" if self._process.wait() else self.outcome or "unchanged"
            self.seconds = time.monotonic() - self._started
        finally:
            self._lines.put(None)

    def _terminate_innermost(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self._process.pid)
            for process in [leader, *leader.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if not process.children():
                        process.terminate()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS denies a signal to a group of zombies
            os.killpg(self._process.pid, number)


def main() -> int:
    """Import the modules that DVC needs to reproduce a stage, wait for arguments, and run `dvc` with them."""
    import dvc.cachemgr
    import dvc.cli.parser
    import dvc.data_cloud
    import dvc.lock
    import dvc.repo.reproduce
    import dvc.scm

    if not (text := sys.stdin.read()):
        return 0
    order = json.loads(text)
    os.environ.update(order["environment"])
    sys.argv = ["dvc", *order["arguments"]]
    return int(dvc.cli.main(order["arguments"]))


if __name__ == "__main__":
    sys.exit(main())
