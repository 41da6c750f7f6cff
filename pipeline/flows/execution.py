"""One execution of the stages: it skips unchanged stages, runs the others through DVC and keeps their results."""

import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pipeline.dvc import Outcome, StageProcess, forget_dead_holders, start_dvc
from pipeline.errors import FlowError, WorkspaceError
from pipeline.flows.plan import Plan, Stage, read_plan
from pipeline.flows.terminal import Terminal
from pipeline.tracking.dvc_cache import require_sound_outputs
from pipeline.tracking.outputs import Outputs

ALL_STAGES = "all"


@dataclass(frozen=True)
class Result:
    """The outcome of a stage."""

    stage: str
    outcome: Outcome | Literal["not reached"]
    seconds: float = 0.0
    may_succeed_later: bool = False  # it failed because a network or a server did not respond

    @property
    def up_to_date(self) -> bool:
        """True if its outputs match the current data, code and parameters."""
        return self.outcome in ("ran", "restored", "unchanged")


class Execution:
    """The stages of one run in one workspace. The end of its `with` block ends processes that still run.

    Args:
        until: the last stage to run; None runs all.
        force: a stage to run even if nothing changed, or `all`; with None, DVC decides.
    """

    def __init__(self, workspace: Path, terminal: Terminal, until: str | None, force: str | None) -> None:
        self.workspace, self.terminal, self.until, self.force = workspace, terminal, until, force
        self.environment: dict[str, str] = {}  # added to the environment of the stages
        self.plan = Plan(())  # the stages of this run
        self.results: dict[str, Result] = {}  # by stage of the plan
        self._stages = 0  # number of stages in the workspace
        self._process: StageProcess | None = None
        self._next_dvc: subprocess.Popen[str] | None = None
        self._ended = False
        self._lock = threading.Lock()

    @property
    def is_whole(self) -> bool:
        """True if every stage of the workspace is up to date, so that the outputs belong together."""
        return len(self.results) == self._stages and all(result.up_to_date for result in self.results.values())

    def prepare(self) -> None:
        """Read the plan and start its first stage, while the servers are still starting.

        Only a stage without upstream stages starts early. It fetches data and opens no MLflow run, so it does not need
        the flow's run.

        Raises:
            FlowError: DVC cannot read the workspace, or cannot run the stages that `until` and `force` name.
        """
        forget_dead_holders(self.workspace)
        self._next_dvc = start_dvc(self.workspace)
        whole = read_plan(self.workspace)
        self._stages = len(whole.stages)
        self.plan = whole.until(self.until) if self.until else whole
        if self.force not in (None, ALL_STAGES, *self.plan.names):
            whole.require(str(self.force))
            raise FlowError(f"--until {self.until} ends before {self.force}, which --force asks for")
        self.results = {name: Result(name, "not reached") for name in self.plan.names}
        pending = self.plan.pending(self._forced)
        if pending and not pending[0].upstream:
            self._start(pending[0].name)

    def run(self, name: str, log: Callable[[str], None]) -> Result:
        """Run a stage, or continue with its process if it started early. Pass each line of output to `log`."""
        if self._is_unchanged(self.plan.stage(name)):
            result = Result(name, "unchanged")
        else:
            process = self._process or self._start(name)
            try:
                with self.terminal.waiting(name, announce=False):
                    for line in process.lines():
                        log(line)
            finally:
                process.end()
                self._process = None
            assert process.outcome
            if process.outcome == "restored" and not self._is_sound(name, log):
                process.outcome = "failed"
            result = Result(name, process.outcome, process.seconds, process.may_succeed_later)
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

    def _is_unchanged(self, stage: Stage) -> bool:
        """Return True if DVC can skip the stage: it is not forced, and neither it nor a stage upstream changed."""
        before = {self.results[name].outcome for name in stage.upstream}
        return not stage.changes and stage.name not in self._forced and before <= {"unchanged"}

    def _start(self, name: str) -> StageProcess:
        with self._lock:
            if self._ended:
                raise FlowError("the run has been stopped")
            self._process = StageProcess(
                name,
                self._next_dvc or start_dvc(self.workspace),
                forced=name in self._forced,
                environment=self.environment,
                show=self.terminal.show,
            )
            self._next_dvc = start_dvc(self.workspace) if name != self.plan.names[-1] else None
            return self._process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            if self._process:
                self._process.end()
            if self._next_dvc:
                self._next_dvc.kill()  # it has not started a stage
                self._next_dvc.communicate()
