"""The plan of a run: the stages in order, each with its changes. It is read once, before anything starts."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import FlowError

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

    def downstream(self, names: Collection[str]) -> tuple[str, ...]:
        """Return these stages and all stages downstream of them, in order."""
        found: list[str] = []
        for stage in self.stages:
            if stage.name in names or set(stage.upstream) & set(found):
                found.append(stage.name)
        return tuple(found)

    def pending(self, forced: Collection[str] = ()) -> tuple[str, ...]:
        """Return the stages that DVC must look at: changed or forced ones, and all stages downstream of them."""
        return self.downstream({stage.name for stage in self.stages if stage.changes} | set(forced))

    def require(self, name: str) -> None:
        """Raise a FlowError if no stage has this name."""
        if name not in self.names:
            raise FlowError(f"there is no stage {name!r}", expected=f"one of {', '.join(self.names)}", found=repr(name))


def parse_plan(content: Mapping[str, Any]) -> Plan:
    """Create a plan from its JSON.

    Args:
        content: `order`, the names of the stages; `upstream`, for each stage the stages whose outputs it reads; and
            `status`, the output of `dvc status --json`.
    """
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
