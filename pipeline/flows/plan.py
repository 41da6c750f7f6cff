"""What DVC would run, in which order, and why: read once before anything starts.

DVC is asked in a process of its own, which costs what one `dvc status` costs: `dvc status --json` knows no order, and
a second command for that would take as long again. `python -m pipeline.flows.plan` is that process.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FlowError, mend_committed
from pipeline.git import require_repository
from pipeline.params import PARAMS_FILE

SHOWN = 4  # files or params named in a reason; more are counted


@dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml` as DVC finds it."""

    name: str
    upstream: tuple[str, ...]  # stages whose outputs it reads
    changes: tuple[str, ...]  # what differs from `dvc.lock`, in words; empty: nothing


@dataclass(frozen=True)
class Plan:
    """The stages, each after those it depends on."""

    stages: tuple[Stage, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def until(self, name: str) -> "Plan":
        """Only this stage and what it depends on.

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
        """The stages to hand to DVC: changed or forced ones, and all that are downstream of one."""
        found: dict[str, Stage] = {}
        for stage in self.stages:
            if stage.changes or stage.name in forced or any(name in found for name in stage.upstream):
                found[stage.name] = stage
        return tuple(found.values())

    def require(self, name: str) -> None:
        """Refuse a name that is no stage."""
        if name not in self.names:
            raise FlowError(f"there is no stage {name!r}", expected=f"one of {', '.join(self.names)}", found=repr(name))


def read_plan(workspace: Path) -> Plan:
    """Ask DVC about every stage of `dvc.yaml`.

    Raises:
        FlowError: DVC cannot read `dvc.yaml` or `dvc.lock`, or the workspace is none of its own.
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
            remedy=mend_committed(broken) if broken else "dvc status --verbose",
        )
    return parse_plan(json.loads(asked.stdout))


def parse_plan(content: Mapping[str, Any]) -> Plan:
    """A plan from what `python -m pipeline.flows.plan` prints."""
    upstream, status = content["upstream"], content["status"]
    return Plan(
        tuple(Stage(name, tuple(upstream[name]), tuple(_describe(status.get(name, ())))) for name in content["order"])
    )


def _describe(findings: Any) -> Iterator[str]:
    """`dvc status` on one stage, such as `[{"changed deps": {"a": "modified"}}, "changed command"]`, in words."""
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
    """Print what DVC knows as one line of JSON, or its complaint on stderr."""
    from dvc.exceptions import DvcException

    try:
        print(json.dumps(_ask_dvc()))
    except DvcException as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
