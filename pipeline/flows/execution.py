"""One execution of the stages: it skips unchanged stages, runs the others through DVC and keeps their results."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pipeline.dvc import Outcome
from pipeline.errors import FlowError, WorkspaceError
from pipeline.flows.dvc_process import DvcProcess
from pipeline.flows.plan import Plan
from pipeline.flows.terminal import Terminal
from pipeline.tracking.dvc_integrity import require_sound_outputs
from pipeline.tracking.parent_run_id import PARENT_FILE_VARIABLE, REGISTERS_VARIABLE
from pipeline.tracking.stage_outputs import Outputs
from pipeline.workspace import STATE

ALL_STAGES = "all"
PARENT_FILE = STATE / "flow-run"  # contains the id of the flow's MLflow run during a run


@dataclass(frozen=True)
class Result:
    """The outcome of a stage."""

    stage: str
    outcome: Outcome | Literal["not reached"]
    seconds: float = 0.0
    is_temporary: bool = False  # it failed because a network or a server did not respond

    @property
    def up_to_date(self) -> bool:
        """True if its outputs match the current data, code and parameters."""
        return self.outcome in ("ran", "restored", "unchanged")


class Execution:
    """The stages of one run in one workspace. The end of its `with` block ends processes that still run.

    One DVC process reproduces all pending stages, and `run` follows its output stage by stage. After a failure, `run`
    starts another one for the remaining stages.

    Args:
        until: the last stage to run; None runs all.
        force: a stage to run even if nothing changed, or `all`; with None, DVC decides.
    """

    def __init__(self, workspace: Path, terminal: Terminal, until: str | None, force: str | None) -> None:
        self.workspace, self.terminal, self.until, self.force = workspace, terminal, until, force
        self.plan = Plan(())  # the stages of this run
        self.results: dict[str, Result] = {}  # by stage of the plan
        self.parent_file = workspace / PARENT_FILE
        self._stages = 0  # number of stages in the workspace
        self._pending: tuple[str, ...] = ()
        self._process: DvcProcess | None = None
        self._is_started = False  # the process reproduces stages

    @property
    def is_whole(self) -> bool:
        """True if every stage of the workspace is up to date, so that the outputs belong together."""
        return len(self.results) == self._stages and all(result.up_to_date for result in self.results.values())

    def prepare(self) -> None:
        """Read the plan, and start its stages while the servers are still starting.

        They start early only if the first one has no upstream stages. It then fetches data, and the flow's MLflow run
        exists long before a stage needs it.

        Raises:
            FlowError: DVC cannot read the workspace, or cannot run the stages that `until` and `force` name.
        """
        self.parent_file.unlink(missing_ok=True)
        whole = self._open_process().read_plan()
        self._stages = len(whole.stages)
        self.plan = whole.until(self.until) if self.until else whole
        if self.force not in (None, ALL_STAGES, *self.plan.names):
            whole.require(str(self.force))
            raise FlowError(f"--until {self.until} ends before {self.force}, which --force asks for")
        self.results = {name: Result(name, "not reached") for name in self.plan.names}
        self._pending = self.plan.pending(self._forced)
        if not self._pending:
            self._end_process()
        elif not self.plan.stage(self._pending[0]).upstream:
            self._start(self._pending[0])

    def run(self, name: str, log: Callable[[str], None]) -> Result:
        """Run a stage, or follow it if it has already started. Pass each line of output to `log`."""
        if name not in self._pending:
            result = Result(name, "unchanged")
        else:
            if not self._is_started:
                self._start(name)
            assert self._process
            try:
                with self.terminal.waiting(name, announce=False):
                    ended = self._process.follow(name, log)
                outcome = ended.outcome
                if outcome == "restored" and not self._is_sound(name, log):
                    outcome = "failed"
            except BaseException:
                self._end_process()
                raise
            if outcome == "failed" or name == self._pending[-1]:
                self._end_process()
            result = Result(name, outcome, ended.seconds, ended.is_temporary)
        self.results[name] = result
        return result

    def _is_sound(self, name: str, log: Callable[[str], None]) -> bool:
        """Return True if DVC restored undamaged outputs. Else delete them: the next run must not skip the stage."""
        try:
            require_sound_outputs(self.workspace, name)
        except WorkspaceError as error:
            for line in f"{name} failed: {error}".splitlines():
                self.terminal.show(line)
                log(line)
            for path in map(self.workspace.joinpath, Outputs(self.workspace).locked_outputs(name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return False
        return True

    @property
    def _forced(self) -> frozenset[str]:
        return frozenset(self.plan.names if self.force == ALL_STAGES else [self.force] if self.force else [])

    def _start(self, name: str) -> None:
        """Start to reproduce a stage and the pending stages after it, except those downstream of a failed one."""
        process = self._process
        if not process:  # it has ended because a stage failed
            process = self._open_process()
            process.read_plan()
        failed = {result.stage for result in self.results.values() if result.outcome == "failed"} - {name}
        blocked = self.plan.downstream(failed)
        later = self._pending[self._pending.index(name) :]
        process.reproduce([stage for stage in later if stage not in blocked], self._forced)
        self._is_started = True

    def _open_process(self) -> DvcProcess:
        environment = {PARENT_FILE_VARIABLE: str(self.parent_file.absolute())}
        if self.until in (None, "register"):
            environment[REGISTERS_VARIABLE] = "1"
        self._process = DvcProcess(self.workspace, self.terminal.show, environment)
        return self._process

    def _end_process(self) -> None:
        if self._process:
            self._process.end()
        self._process, self._is_started = None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_process()
        self.parent_file.unlink(missing_ok=True)
