"""One pass over the stages: which of them go to DVC, the process that is at work, and what became of each."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import FlowError
from pipeline.flows.dvc import Outcome, StageProcess
from pipeline.flows.plan import Plan, Stage, read_plan
from pipeline.flows.terminal import Terminal

ALL_STAGES = "all"


@dataclass(frozen=True)
class Result:
    """What became of a stage."""

    stage: str
    outcome: Outcome | Literal["not run"]
    seconds: float = 0.0
    may_succeed_later: bool = False  # it failed because something did not answer


class Execution:
    """The stages of one run in one workspace.

    Args:
        until: the last stage to run; None runs all.
        force: a stage to run even if nothing changed, or `all`; None leaves everything to DVC.
    """

    def __init__(self, workspace: Path, terminal: Terminal, until: str | None, force: str | None) -> None:
        self.workspace = workspace
        self.environment: dict[str, str] = {}  # of the stages, besides this process's own
        self.results: dict[str, Result] = {}
        self._terminal, self._until, self._force = terminal, until, force
        self._plan: Plan | None = None
        self._process: StageProcess | None = None
        self._ended = False
        self._lock = threading.Lock()

    @property
    def plan(self) -> Plan:
        """The stages of this run. `prepare` must have read them."""
        if self._plan is None:
            raise RuntimeError("the plan has not been read")
        return self._plan

    @property
    def forced(self) -> frozenset[str]:
        if self._force == ALL_STAGES:
            return frozenset(self.plan.names)
        return frozenset([self._force] if self._force else [])

    def prepare(self) -> None:
        """Read the plan, and give its first stage a head start over the servers that are still coming up.

        Only a stage that nothing precedes gets one: it fetches data and opens no MLflow run, so that it need not know
        the flow's.

        Raises:
            FlowError: DVC cannot read the workspace, or there is no stage of that name.
        """
        plan = read_plan(self.workspace)
        for name in {self._until, self._force} - {None, ALL_STAGES}:
            plan.require(str(name))
        self._plan = plan.until(self._until) if self._until else plan
        if self._force and self._force != ALL_STAGES and self._force not in self._plan.names:
            raise FlowError(f"--until {self._until} ends before {self._force}, which --force names")
        pending = self._plan.pending(self.forced)
        if pending and not pending[0].upstream:
            self._start(pending[0].name)

    def is_unchanged(self, stage: Stage) -> bool:
        """Whether DVC need not even be asked: nothing differs in the stage or in what came out of those before it."""
        touched = any(self.results[name].outcome != "unchanged" for name in stage.upstream)
        return not (stage.changes or stage.name in self.forced or touched)

    def run(self, stage: Stage, log: Callable[[str], None]) -> Result:
        """Run a stage to its end, or take over the process that had a head start. Each line it prints goes to `log`."""
        if self.is_unchanged(stage):
            result = Result(stage.name, "unchanged")
        else:
            process = self._process or self._start(stage.name)
            with self._terminal.waiting(stage.name, announce=False):
                try:
                    for line in process.lines():
                        log(line)
                finally:
                    process.end()
                    self._process = None
            result = Result(stage.name, process.outcome or "failed", process.seconds, process.may_succeed_later)
        self.results[stage.name] = result
        return result

    def end(self) -> None:
        """End what is running, and start nothing more."""
        with self._lock:
            self._ended = True
            if self._process:
                self._process.end()

    def _start(self, name: str) -> StageProcess:
        with self._lock:
            if self._ended:
                raise FlowError("the run has been stopped")
            self._process = StageProcess(
                name,
                workspace=self.workspace,
                forced=name in self.forced,
                environment=self.environment,
                show=self._terminal.show,
            )
            return self._process
