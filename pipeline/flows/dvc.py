"""One stage through DVC: a process group of its own whose output is read as it comes and which never outlives the run."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import psutil

Outcome = Literal["ran", "restored", "unchanged", "failed"]

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: something did not answer that may answer later
STOP_SECONDS = 10  # for a training that is told to stop to close its MLflow run

# What DVC says first tells what it does; anything later is the stage's own output.
MESSAGES: tuple[tuple[re.Pattern[str], Outcome], ...] = (
    (re.compile(r"Stage '[^']+' didn't change, skipping$"), "unchanged"),
    (re.compile(r"Stage '[^']+' is cached - skipping run, checking out outputs$"), "restored"),
    (re.compile(r"Running stage '[^']+':$"), "ran"),
)
EXIT_CODE = re.compile(r"^ERROR: failed to reproduce .*exited with (\d+)$")
ADVICE = re.compile(  # the same after every stage; the run says what is worth knowing once, at its end
    r"(Updating|Generating) lock file|To track the changes with git|\s+git add |To enable auto staging|"
    r"\s+dvc config core.autostage|Use `dvc push`|Data and pipelines are up to date|$"
)


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
        self._reader = threading.Thread(target=self._read, name=f"output of {stage}", daemon=True)
        self._reader.start()

    def lines(self) -> Iterator[str]:
        """What it prints, as it comes, until it ends. `outcome` and `seconds` are final afterwards."""
        while (line := self._lines.get()) is not None:
            yield line
        if self._process.wait():
            self.outcome = "failed"

    @property
    def may_succeed_later(self) -> bool:
        """It failed because a server or a network did not answer, and said so by its exit code."""
        return self.outcome == "failed" and self.exit_code == TEMPORARY_FAILURE

    def end(self) -> None:
        """End every process of the group: politely, then not. Does nothing when all have ended.

        The stage's own command is told first: DVC then sees it fail, frees its locks and ends by itself, whereas a
        stage that loses its DVC ends at once and closes nothing.
        """
        if not self._reader.is_alive():  # its pipe is closed: nobody is left to write to it
            return
        try:
            for tell in (self._terminate_innermost, lambda: self._signal(signal.SIGTERM)):
                tell()
                self._reader.join(STOP_SECONDS / 2)
        finally:
            self._signal(signal.SIGKILL)
            self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout
        for text in self._process.stdout:
            line = text.rstrip()
            if self.outcome is None:
                self.outcome = next((outcome for pattern, outcome in MESSAGES if pattern.match(line)), None)
            if code := EXIT_CODE.match(line):
                self.exit_code = int(code[1])
            if not ADVICE.match(line):
                self._show(line)
                self._lines.put(line)
        self._process.wait()
        self.seconds = time.monotonic() - self._started
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
