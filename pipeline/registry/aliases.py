"""Aliases of registered models: moves, and the history of all moves, kept in MLflow.

MLflow overwrites an alias, keeps no history of it, and has no compare-and-set. It does guarantee that a param of a run
is written once: if several processes write the same param, the first one wins. The experiment `NAME history` holds one
run per move, with the facts as tags, and one run `order` with a param per move: `000012` is the run id of move 12.

A move has four steps:

1. Create the run of the move, with everything that is needed to carry it out.
2. Claim the next number, by writing the param. A process that loses the claim deletes its run and starts again.
3. Move the alias.
4. End the run: FINISHED, or KILLED if the alias could not be moved. The move is then void.

A number is claimed only after the move before it has ended, so only one process moves aliases at a time. If a process
dies after step 2, the next command does steps 3 and 4. It first claims this as well (param `000012.1`), because other
commands may try the same. A run without a number is a move that never happened. If an alias is not where the last move
left it, somebody moved it without the pipeline, for example in MLflow's pages. A move of kind `external` records this.
"""

import json
import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pipeline.errors import TrackingError
from pipeline.tracking import provenance
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.parent_run import read_parent_run
from pipeline.tracking.processes import is_running, this_process
from pipeline.tracking.queries import find_or_none
from pipeline.tracking.records import milliseconds

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

Kind = Literal["registration", "promotion", "rollback", "external"]
State = Literal["done", "void", "pending"]
Versions = Mapping[str, str]  # by alias

CHAMPION: Literal["champion"] = "champion"
CHALLENGER: Literal["challenger"] = "challenger"
ANY_VERSION = "any"  # a value of `expected`
DECISION_TAG = "decision"  # of a version, set last: without it, the decision is incomplete
REASON_TAG = "decision.reason"  # of a version
ACCURACY_TAG = "test.accuracy"  # of a version, at registration; `.low` and `.high` are the ends of its 95 % interval
ROLE_TAG = "history.role"  # of a run of the history
ORDER, MOVE = "order", "move"  # its values
PROCESS_TAG = "history.process"  # not `processes.PROCESS_TAG`: a move of a dead process is completed, not killed
EVIDENCE = "evidence."  # prefix of the tags with a move's evidence
STATES: dict[str, State] = {"RUNNING": "pending", "FINISHED": "done", "KILLED": "void"}  # by the status of the run
WAIT_SECONDS = 30  # for another process to end its move
POLL_SECONDS = 0.2
MAX_RUNS = 50_000  # the most that MLflow returns at once


class AliasChanged(TrackingError):
    """The alias was moved after the caller decided where to move it."""


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


def recover(client: "MlflowClient", name: str) -> History:
    """Load the history. If needed, first complete an unfinished move and record external moves.

    Raises:
        TrackingError: another process has begun a move and does not end it.
    """
    while True:
        history = _load(client, name)
        last = history.moves[-1] if history.moves else None
        if history.order and last and last.state == "pending":
            _complete(history, history.order, last)
            continue
        recorded = last.result if last else {}
        changed = _differences(recorded, history.aliases)
        if not changed:
            return history
        after = {alias: to for alias, to in {**recorded, changed[0]: history.aliases.get(changed[0])}.items() if to}
        reason = "moved without the pipeline; noticed at this time"
        _try_move(replace(history, aliases=recorded), "external", changed[0], after, reason, {})


def read_history(client: "MlflowClient", name: str) -> list[Move]:
    """Read all moves of a registered model's aliases, in order. See `recover`."""
    return list(recover(client, name).moves)


def find_aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    """Map each alias to its version. Returns an empty dict if the registered model does not exist."""
    model = find_or_none(client.get_registered_model, name)
    return {alias: str(version) for alias, version in model.aliases.items()} if model else {}


def find_aliases_of(client: "MlflowClient", name: str, version: str) -> tuple[str, ...]:
    """Return the aliases of a version, sorted."""
    return tuple(sorted(alias for alias, number in find_aliases(client, name).items() if number == version))


def move_alias(
    client: "MlflowClient",
    name: str,
    alias: str,
    version: str,
    *,
    reason: str,
    evidence: Mapping[str, str],
    expected: str | None = ANY_VERSION,
) -> None:
    """Move an alias to a new version, as `register` decided. Does nothing if it is there already.

    Args:
        evidence: the basis of the decision: figures, digests, ids.
        expected: the version of the alias when this was decided; None: the alias did not exist.

    Raises:
        AliasChanged: the alias is not at the expected version.
    """
    history = recover(client, name)
    if history.aliases.get(alias) != version:
        make_move(history, "registration", alias, version, reason, evidence, expected)


def make_move(
    history: History, kind: Kind, alias: str, version: str, reason: str, evidence: Versions, expected: str | None
) -> Move:
    """Move an alias to a version. A new champion loses the alias `challenger`."""
    while True:
        history.require_version(version)
        origin = history.aliases.get(alias)
        if expected not in (ANY_VERSION, origin):
            raise AliasChanged(
                f"cannot move {alias} of {history.name} to version {version}: another move came first",
                expected=f"{alias} at {format_version(expected)}",
                found=f"{alias} at {format_version(origin)}",
                remedy=f"pipeline history; if version {version} is still the better one, run the command again",
            )
        after = {**history.aliases, alias: version}
        if alias == CHAMPION and after.get(CHALLENGER) == version:
            del after[CHALLENGER]
        move = _try_move(history, kind, alias, after, reason, evidence)
        if move and move.state == "done":
            return move
        history = recover(history.client, history.name)


def _try_move(
    history: History, kind: Kind, alias: str, after: Versions, reason: str, evidence: Mapping[str, str]
) -> Move | None:
    """Take the four steps of a move. Returns None if another process claimed the number first."""
    client, number = history.client, history.last + 1
    order = history.order or _create_order(client, history.name)
    target = history.find_version(after.get(alias))
    earlier = [move.number for move in history.moves if move.alias == alias and move.state == "done"]
    who = "unknown" if kind == "external" else current_actor()
    facts = {
        ROLE_TAG: MOVE,
        PROCESS_TAG: this_process(),
        "kind": kind,
        "who": who,
        "alias": alias,
        "from": history.aliases.get(alias),
        "to": after.get(alias),
        "reason": reason,
        "model": target.tags.get(MODEL_TAG) if target else None,
        "superseded": str(earlier[-1]) if earlier else None,
        "aliases.before": json.dumps(history.aliases, sort_keys=True),
        "aliases.after": json.dumps(after, sort_keys=True),
        **{EVIDENCE + key: value for key, value in evidence.items()},
        "mlflow.user": who,
    }
    title = f"{number} {alias}: {format_version(facts['from'])} to {format_version(facts['to'])}"
    tags = {key: value for key, value in facts.items() if value}
    run = client.create_run(order.info.experiment_id, tags=tags, run_name=title)
    if not _write_once(client, order, f"{number:06d}", run.info.run_id):
        client.delete_run(run.info.run_id)
        return None
    for other in history.unclaimed:  # their processes are dead, or can no longer claim this number
        client.delete_run(other)
    return _carry_out(history, order, _read_move(number, run))


def _carry_out(history: History, order: "Run", move: Move) -> Move:
    """Move the aliases of a claimed move and end its run. Repeating it after a crash has the same result."""
    client, name, obstacle = history.client, history.name, ""
    changed = [] if move.kind == "external" else _differences(move.before, move.after)
    aliases = find_aliases(client, name)
    for alias in changed:
        if aliases.get(alias) not in (move.before.get(alias), move.after.get(alias)):
            obstacle = f"{alias} was at {format_version(aliases.get(alias))} by then"
        elif alias in move.after and not history.find_version(move.after[alias]):
            obstacle = f"{format_version(move.after[alias])} was deleted"
    if _find_owner(client, order, move)[0] != this_process():
        problem = f"cannot move {move.alias} of {name}: MLflow answered too slowly, and another process took over"
        raise TrackingError(problem, remedy="pipeline history", temporary=True)
    for alias in [] if obstacle else changed:
        if alias in move.after:
            client.set_registered_model_alias(name, alias, move.after[alias])
        else:
            client.delete_registered_model_alias(name, alias)
    if obstacle:
        client.set_tag(move.run, "void", f"not carried out: {obstacle}")
    client.set_terminated(move.run, "KILLED" if obstacle else "FINISHED")
    return replace(move, state="void" if obstacle else "done")


def _complete(history: History, order: "Run", move: Move) -> None:
    """Wait for the end of a move. Complete it if its process is dead, or is on another machine and takes too long."""
    owner, claims = _find_owner(history.client, order, move)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        is_alive = owner != this_process() and is_running(owner)  # None: on another machine
        is_late = time.monotonic() > deadline
        if history.client.get_run(move.run).info.status != "RUNNING":  # read after its process was found dead
            return
        if is_alive and is_late:
            raise TrackingError(
                f"another process is moving an alias of {history.name}",
                expected=f"the end of the move within {WAIT_SECONDS} s",
                found=f"move {move.number} ({move}), by {move.who}, process {owner}",
                remedy="end that process, then run the command again",
                temporary=True,
            )
        if is_alive is False or is_late:
            break
        time.sleep(POLL_SECONDS)
    claim = f"{milliseconds()} {this_process()}"
    if _write_once(history.client, order, f"{move.number:06d}.{claims + 1}", claim):
        _carry_out(history, order, move)


def _find_owner(client: "MlflowClient", order: "Run", move: Move) -> tuple[str, int]:
    """Find the process that may carry out a move, and the number of claims to complete it."""
    params = client.get_run(order.info.run_id).data.params
    claims = sum(key.startswith(f"{move.number:06d}.") for key in params)
    return params[f"{move.number:06d}.{claims}"].partition(" ")[2] if claims else move.process, claims


def _write_once(client: "MlflowClient", order: "Run", key: str, value: str) -> bool:
    """Write a param of the run `order`. Returns False if it has another value already."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_param(order.info.run_id, key, value)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return False
    return True


def _load(client: "MlflowClient", name: str) -> History:
    from mlflow.entities import ViewType

    order = _find_order(client, name)
    if order is None:
        return History(client, name, find_aliases(client, name))
    numbers = {run: int(number) for number, run in order.data.params.items() if "." not in number}
    query = f"tags.`{ROLE_TAG}` = '{MOVE}'"
    runs = client.search_runs([order.info.experiment_id], query, ViewType.ALL, MAX_RUNS)
    moves = [_read_move(numbers[run.info.run_id], run) for run in runs if run.info.run_id in numbers]
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


def _create_order(client: "MlflowClient", name: str) -> "Run":
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


def _read_move(number: int, run: "Run") -> Move:
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


def _differences(before: Versions, after: Versions) -> list[str]:
    """List the aliases that differ between two states of a registered model."""
    return sorted(alias for alias in before.keys() | after.keys() if before.get(alias) != after.get(alias))


def current_actor() -> str:
    flow = read_parent_run()
    return f"flow run {flow}" if flow else f"{provenance.user()}@{platform.node()}"


def format_version(version: str | None) -> str:
    return f"version {version}" if version else "none"
