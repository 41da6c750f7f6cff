"""The stages of `dvc.yaml`: their names, and what each reads and writes. Every list of the stages comes from here."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pipeline.errors import WorkspaceError, remedy_for_committed
from pipeline.files import parse_yaml


@dataclass(frozen=True)
class StageDefinition:
    """The paths that a stage declares. Templates such as `${dataset.path}` are not resolved."""

    deps: tuple[str, ...]
    outs: tuple[str, ...]

    def reads_from(self, other: "StageDefinition") -> bool:
        """Return True if a dependency is an output of the other stage, lies in one, or contains one."""
        return any(
            dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/")
            for dep in self.deps
            for out in other.outs
        )


def read_stages(workspace: Path = Path()) -> dict[str, StageDefinition]:
    """Read the stages of a workspace by name. Each comes after the stages whose outputs it reads.

    Raises:
        WorkspaceError: `dvc.yaml` is missing or damaged.
    """
    file = workspace / "dvc.yaml"
    try:
        content = (parse_yaml(file.read_bytes()) or {}).get("stages") or {}
        stages = {
            name: StageDefinition(tuple(_paths(entry.get("deps", ()))), tuple(_paths(entry.get("outs", ()))))
            for name, entry in content.items()
        }
    except FileNotFoundError:
        raise WorkspaceError(f"{file} is missing", remedy=remedy_for_committed(file)) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise WorkspaceError(f"{file} is damaged", found=str(error), remedy=remedy_for_committed(file)) from None
    order = TopologicalSorter({name: _upstream(name, stages) for name in stages}).static_order()
    return {name: stages[name] for name in order}


def stages_up_to(name: str, stages: Mapping[str, StageDefinition]) -> tuple[str, ...]:
    """Return the names of a stage and of all stages it depends on, in the order of `read_stages`."""
    needed = {name}
    for stage in reversed(list(stages)):
        if stage in needed:
            needed.update(_upstream(stage, stages))
    return tuple(stage for stage in stages if stage in needed)


def _upstream(name: str, stages: Mapping[str, StageDefinition]) -> list[str]:
    return [other for other in stages if other != name and stages[name].reads_from(stages[other])]


def _paths(entries: Iterable[str | Mapping[str, Any]]) -> Iterator[str]:
    """Yield the paths of a list in `dvc.yaml`. An entry with options is a mapping from its path to them."""
    for entry in entries:
        yield entry if isinstance(entry, str) else next(iter(entry))
