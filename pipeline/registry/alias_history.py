"""The history of alias moves: one MLflow run for each move, and a run `order` with their order.

MLflow overwrites an alias and keeps no history of it. The experiment `NAME history` holds one run per move, with the
facts as tags, and one run `order` with a param per move: `000012` is the run id of move 12. A run without a number is a
move that never happened.
"""

import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import TrackingError
from pipeline.tracking import provenance
from pipeline.tracking.parent_run_id import read_parent_run
from pipeline.tracking.queries import find_or_none

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

Kind = Literal["registration", "promotion", "rollback", "external"]
State = Literal["done", "void", "pending"]
Versions = Mapping[str, str]  # by alias

ROLE_TAG = "history.role"  # of a run of the history
ORDER, MOVE = "order", "move"  # its values
PROCESS_TAG = "history.process"  # not `processes.PROCESS_TAG`: a move of a dead process is completed, not killed
EVIDENCE = "evidence."  # prefix of the tags with a move's evidence
STATES: dict[str, State] = {"RUNNING": "pending", "FINISHED": "done", "KILLED": "void"}  # by the status of the run
MAX_RUNS = 50_000  # the most that MLflow returns at once


@dataclass(frozen=True)
class Move:
    """One move of an alias."""

    number: int  # from 1, without gaps
    state: State  # void: claimed but not carried out, because the alias or the version had changed
    when: int  # milliseconds since 1970, by the clock of the process that moved it
    who: str  # `user@machine` or `flow run ID`; `unknown` for an external move
    kind: Kind
    alias: str
    origin: str | None  # version before the move; None: the alias did not exist
    target: str | None  # version after the move; None: the alias was removed
    reason: str
    evidence: Mapping[str, str]
    superseded: int | None  # number of the alias's previous move
    model: str | None  # SHA-256 of the target's model file: MLflow reuses version numbers after a deletion
    before: Versions
    after: Versions
    process: str
    run: str

    @property
    def result(self) -> Versions:
        """All aliases after the move has ended."""
        return self.before if self.state == "void" else self.after

    def __str__(self) -> str:
        return f"{self.alias}: {format_version(self.origin)} to {format_version(self.target)}"


@dataclass(frozen=True)
class History:
    """The aliases of a registered model, and their moves."""

    client: "MlflowClient"
    name: str
    aliases: Versions
    order: "Run | None" = None  # None: there is no history yet
    moves: Sequence[Move] = ()  # in order, without those whose run was deleted for good
    last: int = 0  # the highest claimed number
    unclaimed: Sequence[str] = ()  # ids of runs without a number
    root: Path | None = None  # main repository that records a new champion as an event; None: the current directory's

    def find_version(self, number: str | None) -> "ModelVersion | None":
        """Find a version by its number. None if it does not exist."""
        return find_or_none(self.client.get_model_version, self.name, number) if number else None

    def require_version(self, number: str) -> "ModelVersion":
        """Return a version by its number.

        Raises:
            TrackingError: it does not exist.
        """
        found = self.find_version(number)
        if found is None:
            problem = f"{self.name} has no version {number}"
            raise TrackingError(problem, expected="the number of an existing version", remedy="pipeline versions")
        return found


def load_history(client: "MlflowClient", name: str) -> History:
    """Load the history and the present aliases. Restores a history that was deleted in MLflow's pages."""
    from mlflow.entities import ViewType

    order = _find_order(client, name)
    if order is None:
        return History(client, name, find_aliases(client, name))
    numbers = {run: int(number) for number, run in order.data.params.items() if "." not in number}
    query = f"tags.`{ROLE_TAG}` = '{MOVE}'"
    runs = client.search_runs([order.info.experiment_id], query, ViewType.ALL, MAX_RUNS)
    moves = [read_move(numbers[run.info.run_id], run) for run in runs if run.info.run_id in numbers]
    moves.sort(key=lambda move: move.number)
    unclaimed = [run.info.run_id for run in runs if run.info.run_id not in numbers and _is_active(run)]
    return History(client, name, find_aliases(client, name), order, moves, max(numbers.values(), default=0), unclaimed)


def _find_order(client: "MlflowClient", name: str) -> "Run | None":
    """Find the run `order`, and restore it if somebody deleted it. Returns None if there is no history yet."""
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(f"{name} history")
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    found = client.search_runs([experiment.experiment_id], f"tags.`{ROLE_TAG}` = '{ORDER}'", ViewType.ALL, 1)
    if not found:
        raise TrackingError(
            f"the experiment `{experiment.name}` is not the history of {name}'s aliases",
            expected=f"a run with the tag {ROLE_TAG}: {ORDER}",
            remedy="rename that experiment in MLflow's pages, then run the command again",
        )
    if not _is_active(found[0]):
        client.restore_run(found[0].info.run_id)
    return found[0]


def create_order(client: "MlflowClient", name: str) -> "Run":
    """Create the experiment with the run `order`. It gets its name last, so that no other process finds it empty."""
    from mlflow.exceptions import MlflowException

    experiment = client.create_experiment(f"{name} history {uuid.uuid4().hex[:8]}")
    order = client.create_run(experiment, tags={ROLE_TAG: ORDER, "mlflow.user": current_actor()}, run_name=ORDER)
    try:
        client.rename_experiment(experiment, f"{name} history")
    except MlflowException:  # another process was faster; the error code depends on the database
        client.delete_experiment(experiment)
        if not (other := _find_order(client, name)):
            raise
        return other
    return order


def read_move(number: int, run: "Run") -> Move:
    """Read a move from its run."""
    tags = run.data.tags
    state = STATES[run.info.status]
    return Move(
        number=number,
        state="void" if state == "pending" and not _is_active(run) else state,  # deleted in MLflow's pages
        when=run.info.start_time,
        who=tags["who"],
        kind=tags["kind"],
        alias=tags["alias"],
        origin=tags.get("from"),
        target=tags.get("to"),
        reason=tags["reason"],
        evidence={key.removeprefix(EVIDENCE): value for key, value in tags.items() if key.startswith(EVIDENCE)},
        superseded=int(tags["superseded"]) if "superseded" in tags else None,
        model=tags.get("model"),
        before=json.loads(tags["aliases.before"]),
        after=json.loads(tags["aliases.after"]),
        process=tags[PROCESS_TAG],
        run=run.info.run_id,
    )


def _is_active(run: "Run") -> bool:
    return bool(run.info.lifecycle_stage == "active")


def write_once(client: "MlflowClient", order: "Run", key: str, value: str) -> bool:
    """Write a param of the run `order`. Returns False if it has another value already."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_param(order.info.run_id, key, value)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return False
    return True


def find_aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    """Map each alias to its version. Returns an empty dict if the registered model does not exist."""
    model = find_or_none(client.get_registered_model, name)
    return {alias: str(version) for alias, version in model.aliases.items()} if model else {}


def find_aliases_of(client: "MlflowClient", name: str, version: str) -> tuple[str, ...]:
    """Return the aliases of a version, sorted."""
    return tuple(sorted(alias for alias, number in find_aliases(client, name).items() if number == version))


def current_actor() -> str:
    """Return the user and machine, or the flow run, that moves an alias."""
    flow = read_parent_run()
    return f"flow run {flow}" if flow else f"{provenance.user()}@{platform.node()}"


def format_version(version: str | None) -> str:
    """Format a version number for messages."""
    return f"version {version}" if version else "none"
