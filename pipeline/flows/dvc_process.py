"""The DVC process of a run. It prints the plan, and then reproduces the stages that the flow asks for.

One process does both, because the import of DVC takes longer than either. `python -m pipeline.flows.dvc_process` prints
the plan as one line of JSON. It then reads one line of JSON, a list of `dvc` commands, and runs them until one fails.
It ends with the flow, even after `kill -9`, because its standard input is a pipe.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Self

import psutil

from pipeline.dvc import (
    Outcome,
    is_advice,
    parse_announcement,
    query_plan,
    remove_stale_rwlock_entries,
    run_command,
    signal_group,
    start_python,
)
from pipeline.errors import TEMPORARY_FAILURE, FlowError, remedy_for_committed
from pipeline.flows.plan import Plan, parse_plan
from pipeline.garbage_collection import collect_rarely
from pipeline.git import require_repository
from pipeline.params import PARAMS_FILE
from pipeline.process_lifetime import end_with_input

PLAN = "plan: "  # before the plan in the output; lines before it are messages of DVC
STOP_SECONDS = 10  # for a training to close its MLflow run after SIGTERM
SIGNAL_SECONDS = 1.0  # until a signal is handled, at most


@dataclass(frozen=True)
class StageRun:
    """The outcome of a stage that DVC was asked to reproduce."""

    outcome: Outcome
    seconds: float
    exit_code: int | None = None  # of the stage's command, if that failed

    @property
    def is_temporary(self) -> bool:
        """True if its exit code reports that a server or a network did not respond."""
        return self.exit_code == TEMPORARY_FAILURE


def read_plan(workspace: Path) -> Plan:
    """Read the plan of a workspace.

    Raises:
        FlowError: DVC cannot read `dvc.yaml` or `dvc.lock`, or the workspace is not a git repository.
    """
    with DvcProcess(workspace) as process:
        return process.read_plan()


class DvcProcess:
    """A DVC process in its own process group. The end of its `with` block ends the group.

    Args:
        show: called with each line of the stages' output as soon as it is printed, in another thread.
        environment: variables to add to that of DVC and the stages.
    """

    def __init__(
        self,
        workspace: Path,
        show: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        remove_stale_rwlock_entries(workspace)
        self._workspace, self._show = workspace, show
        self._process = start_python("pipeline.flows.dvc_process", environment=environment, workspace=workspace)
        self._stages: list[str] = []  # to reproduce, in order, and not yet followed
        self._lines: queue.SimpleQueue[tuple[float, str | None]] = queue.SimpleQueue()  # None: end of the output
        self._next: tuple[float, str | None] | None = None  # read from the queue, but about the next stage
        self._reader: Future[None] | None = None
        self._started = 0.0

    def read_plan(self) -> Plan:
        """Wait for the plan. Call it once.

        Raises:
            FlowError: DVC cannot read `dvc.yaml` or `dvc.lock`, or the workspace is not a git repository.
        """
        assert self._process.stdout
        messages = []
        for text in self._process.stdout:
            if text.startswith(PLAN):
                return parse_plan(json.loads(text.removeprefix(PLAN)))
            messages.append(text.rstrip())
        require_repository(self._workspace)
        files = ("dvc.lock", "dvc.yaml", str(PARAMS_FILE))
        broken = next((self._workspace / name for name in files if any(name in line for line in messages)), None)
        raise FlowError(
            "DVC cannot read this workspace",
            found=("\n" + 12 * " ").join(messages) or f"exit code {self._process.wait()}",
            remedy=remedy_for_committed(broken) if broken else "dvc status --verbose",
        )

    def reproduce(self, stages: Sequence[str], forced: Collection[str]) -> None:
        """Start to reproduce stages in this order. Call it once, after `read_plan`.

        `dvc repro --force STAGE` also forces all stages upstream. Forced stages are therefore reproduced by a command
        of their own, with `--single-item`.
        """
        commands = [
            ["--wait-for-lock", "repro", "--single-item", *(["--force"] if is_forced else []), *names]
            for is_forced, names in groupby(stages, key=lambda name: name in forced)
        ]
        self._stages, self._started = list(stages), time.monotonic()
        executor = ThreadPoolExecutor(1, thread_name_prefix="dvc-output")
        self._reader = executor.submit(self._read)
        executor.shutdown(wait=False)
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # if the process has ended, its output shows why
            self._process.stdin.write(json.dumps(commands) + "\n")
            self._process.stdin.flush()

    def follow(self, stage: str, log: Callable[[str], None]) -> StageRun:
        """Wait until DVC has finished a stage, and pass each line of its output to `log`.

        Call it for each stage to reproduce, in their order, until one has failed.
        """
        assert self._reader
        self._stages.remove(stage)
        outcome: Outcome | None = None
        exit_code = None
        while True:
            moment, line = self._next or self._wait_for_line()
            self._next = None
            announced = parse_announcement(line) if line is not None else None
            if line is None or (announced and announced.stage in self._stages):
                self._next = moment, line
                break
            if announced and announced.stage == stage:
                outcome, exit_code = announced.outcome, announced.exit_code
            log(line)
        if line is None:
            self._reader.result()
            outcome = "failed" if self._process.wait() else outcome or "unchanged"
        run = StageRun(outcome or "failed", moment - self._started, exit_code)
        self._started = moment
        return run

    def end(self) -> None:
        """End all processes of the group: first by SIGTERM, then by SIGKILL. Does nothing if all have ended.

        SIGTERM goes to the stage's command first. DVC then sees it fail, releases its locks and exits. If DVC ended
        first, the stage would exit at once without closing its MLflow run.
        """
        has_ended = self._reader and self._reader.done()  # no process can write to the output any more
        try:
            if not has_ended:
                for terminate in (self._terminate_innermost, lambda: signal_group(self._process, signal.SIGTERM)):
                    terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(STOP_SECONDS / 2)
                        break
        finally:
            if not has_ended:
                signal_group(self._process, signal.SIGKILL)
            self._process.wait()

    def _wait_for_line(self) -> tuple[float, str | None]:
        """Wait for the next line, and return to Python each second, where the handler of a signal can run.

        A signal that arrives when a thread is about to wait does not end the wait. The handler would then run only
        after the next line, which a stage may print an hour later.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=SIGNAL_SECONDS)

    def _read(self) -> None:
        assert self._process.stdout
        try:
            for text in self._process.stdout:
                if not is_advice(line := text.rstrip()):
                    self._show(line)
                    self._lines.put((time.monotonic(), line))
        finally:
            self._lines.put((time.monotonic(), None))

    def _terminate_innermost(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self._process.pid)
            for process in [leader, *leader.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if not process.children():
                        process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def end_group(*_: object) -> None:
    """Handle SIGTERM: pass it to the stage's command, which a shell may separate from this process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.killpg(0, signal.SIGTERM)


def main() -> int:
    """Print the plan, or DVC's error. Then run the `dvc` commands that standard input contains, if any."""
    collect_rarely()
    try:
        print(PLAN, json.dumps(query_plan()), sep="", flush=True)
    except FlowError as error:
        print(error)
        return 1
    if not (commands := sys.stdin.readline()):
        return 0
    signal.signal(signal.SIGTERM, end_group)
    end_with_input()
    for arguments in json.loads(commands):
        if code := run_command(arguments):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
