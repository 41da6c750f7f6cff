"""One stage through DVC: a process group of its own, whose output is read as it comes, which never outlives the run."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import psutil

from pipeline.errors import TEMPORARY_FAILURE

Outcome = Literal["ran", "restored", "unchanged", "failed"]

STOP_SECONDS = 10  # for a training that is told to stop to close its MLflow run

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
    """What DVC announces to do with a stage, if the line is such a message. It is the first thing that DVC prints."""
    return next((outcome for pattern, outcome in MESSAGES if pattern.match(line)), None)


def failed_exit_code(line: str) -> int | None:
    """The exit code of a stage's command, if the line is DVC's message that it failed."""
    found = EXIT_CODE.match(line)
    return int(found[1]) if found else None


def is_advice(line: str) -> bool:
    """Whether the line is one of those that DVC repeats after every stage; the run says what is worth knowing once."""
    return bool(ADVICE.match(line))


class StageProcess:
    """`dvc repro --single-item STAGE`, from its start."""

    def __init__(
        self,
        stage: str,
        *,
        workspace: Path,
        forced: bool = False,
        environment: Mapping[str, str],
        show: Callable[[str], None],
    ) -> None:
        """Start it.

        Args:
            environment: variables besides this process's own.
            show: called with each line of output, in another thread.
        """
        self.stage = stage
        self.outcome: Outcome | None = None  # None until DVC has said what it does
        self.exit_code: int | None = None  # of the stage's own command, if that is what failed
        self.seconds = 0.0
        self._closed = False  # nobody holds the other end of its output any more
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._show = show
        self._started = time.monotonic()
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
        self._process = subprocess.Popen(
            [*command, *(["--force"] if forced else []), stage],
            cwd=workspace,
            env={**os.environ, **launch_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"output-of-{stage}")
        self._reading = executor.submit(self._read)
        executor.shutdown(wait=False)

    def lines(self) -> Iterator[str]:
        """What it prints, as it comes, until it ends. `outcome` and `seconds` are final afterwards."""
        while (line := self._lines.get()) is not None:
            yield line
        self._reading.result()

    @property
    def may_succeed_later(self) -> bool:
        """It failed because a server or a network did not answer, and said so by its exit code."""
        return self.outcome == "failed" and self.exit_code == TEMPORARY_FAILURE

    def end(self) -> None:
        """End every process of the group: politely, then not. Does nothing when all have ended.

        The stage's own command is told first: DVC then sees it fail, frees its locks and ends by itself, whereas a
        stage that loses its DVC ends at once and closes nothing.
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
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers so for a group of zombies
            os.killpg(self._process.pid, number)


def launch_environment() -> dict[str, str]:
    """What every DVC that this project starts has in its environment.

    `cmd: python -m …` must find this interpreter, also where no environment is active, and a stage's lines must come
    as they are printed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, "PYTHONUNBUFFERED": "1", "PIPELINE_FLOW_PID": str(os.getpid())}
