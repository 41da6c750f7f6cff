"""The plan of a run: the stages in order, each with its changes. It is read once, before anything starts.

`python -m pipeline.flows.plan` reads it from DVC in a separate process, in the time of one `dvc status`. The output of
`dvc status --json` has no order, and a second command for the order would double the time.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FlowError, remedy_for_committed
from pipeline.git import require_repository
from pipeline.params import PARAMS_FILE

SHOWN = 4  # maximum number of files or params in a reason; the others are only counted


@dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml` and its changes."""

    name: str
    upstream: tuple[str, ...]  # stages whose outputs it reads
    changes: tuple[str, ...]  # differences from `dvc.lock`, as text; empty if unchanged


@dataclass(frozen=True)
class Plan:
    """The stages in order: each comes after the stages it depends on."""

    stages: tuple[Stage, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    def stage(self, name: str) -> Stage:
        """Return the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def until(self, name: str) -> "Plan":
        """Return a plan of this stage and the stages it depends on.

        Raises:
            FlowError: `dvc.yaml` has no such stage.
        """
        self.require(name)
        needed = {name}
        for stage in reversed(self.stages):
            if stage.name in needed:
                needed.update(stage.upstream)
        return Plan(tuple(stage for stage in self.stages if stage.name in needed))

    def pending(self, forced: frozenset[str] = frozenset()) -> tuple[Stage, ...]:
        """Return the stages that DVC must run: changed or forced ones, and all stages downstream of them."""
        found: dict[str, Stage] = {}
        for stage in self.stages:
            if stage.changes or stage.name in forced or any(name in found for name in stage.upstream):
                found[stage.name] = stage
        return tuple(found.values())

    def require(self, name: str) -> None:
        """Raise a FlowError if no stage has this name."""
        if name not in self.names:
            raise FlowError(f"there is no stage {name!r}", expected=f"one of {', '.join(self.names)}", found=repr(name))


def read_plan(workspace: Path) -> Plan:
    """Read the plan of a workspace from DVC.

    Raises:
        FlowError: DVC cannot read `dvc.yaml` or `dvc.lock`, or the workspace is not a git repository.
    """
    command = [sys.executable, "-m", "pipeline.flows.plan"]
    asked = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False, start_new_session=True)
    if asked.returncode:
        require_repository(workspace)
        message = asked.stderr.strip()
        files = ("dvc.lock", "dvc.yaml", str(PARAMS_FILE))
        broken = next((workspace / name for name in files if name in message), None)
        raise FlowError(
            "DVC cannot read this workspace",
            found=message.replace("\n", "\n" + 12 * " ") or f"exit code {asked.returncode}",
            remedy=remedy_for_committed(broken) if broken else "dvc status --verbose",
        )
    return parse_plan(json.loads(asked.stdout))


def parse_plan(content: Mapping[str, Any]) -> Plan:
    """Create a plan from the output of `python -m pipeline.flows.plan`."""
    upstream, status = content["upstream"], content["status"]
    return Plan(
        tuple(Stage(name, tuple(upstream[name]), tuple(_describe(status.get(name, ())))) for name in content["order"])
    )


def _describe(findings: Any) -> Iterator[str]:
    """Convert `dvc status` of a stage to text. Example: `[{"changed deps": {"a": "modified"}}, "changed command"]`."""
    for finding in findings:
        if isinstance(finding, str):
            yield finding
            continue
        for kind, entries in finding.items():
            by_state: dict[str, list[str]] = {}
            for path, state in entries.items():
                params = isinstance(state, Mapping)
                found = [(f"{path}:{key}", what) for key, what in state.items()] if params else [(path, state)]
                for name, what in found:
                    by_state.setdefault(what, []).append(name)
            for what, names in by_state.items():
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                listed = f"{', '.join(names[:SHOWN])}{more}"
                yield f"output {what}: {listed}" if kind == "changed outs" else f"{what}: {listed}"


def _ask_dvc() -> dict[str, Any]:
    import networkx
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    with Repo() as repo:
        status = repo.status()
        graph = repo.index.graph
        stages = [stage for stage in networkx.dfs_postorder_nodes(graph) if isinstance(stage, PipelineStage)]
        upstream = {
            stage.addressing: [node.addressing for node in graph.successors(stage) if node in stages]
            for stage in stages
        }
    return {"order": list(upstream), "upstream": upstream, "status": status}


def main() -> int:
    """Print the stages and their status as one line of JSON, or DVC's error on stderr."""
    from dvc.exceptions import DvcException

    try:
        print(json.dumps(_ask_dvc()))
    except DvcException as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
