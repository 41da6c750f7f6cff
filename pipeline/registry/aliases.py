"""Moves of the aliases of registered models.

MLflow has no compare-and-set for aliases. It does guarantee that a param of a run is written once: if several processes
write the same param, the first one wins. A move has four steps:

1. Create the run of the move, with everything that is needed to carry it out.
2. Claim the next number in the history (`alias_history`). A process that loses the claim deletes its run and retries.
3. Move the alias.
4. End the run: FINISHED, or KILLED if the alias could not be moved. The move is then void.

A number is claimed only after the move before it has ended, so only one process moves aliases at a time. If a process
dies after step 2, the next command does steps 3 and 4. It first claims this as well (param `000012.1`), because other
commands may try the same, and the slower one would move the alias back after a later move. If an alias is not where the
last move left it, somebody moved it without the pipeline, for example in MLflow's pages. A move of kind `external`
records this.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import TrackingError
from pipeline.events import record_event
from pipeline.registry.alias_history import (
    EVIDENCE,
    MOVE,
    PROCESS_TAG,
    ROLE_TAG,
    History,
    Kind,
    Move,
    Versions,
    create_order,
    current_actor,
    find_aliases,
    format_version,
    load_history,
    read_move,
    write_once,
)
from pipeline.tracking.experiments import HISTORY, describe
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.processes import is_running, this_process
from pipeline.tracking.training_runs import milliseconds

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CHAMPION: Literal["champion"] = "champion"
CHALLENGER: Literal["challenger"] = "challenger"
ANY_VERSION = "any"  # a value of `expected`
WAIT_SECONDS = 30  # for another process to end its move
POLL_SECONDS = 0.2


class AliasChanged(TrackingError):
    """The alias was moved after the caller decided where to move it."""


def recover(client: "MlflowClient", name: str, root: Path | None = None) -> History:
    """Load the history. If needed, first complete an unfinished move and record external moves.

    Args:
        root: the main repository that records a new champion as an event; None: that of the current directory.

    Raises:
        TrackingError: another process has begun a move and does not end it.
    """
    while True:
        history = replace(load_history(client, name), root=root)
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


def move_alias(
    client: "MlflowClient",
    name: str,
    alias: str,
    version: str,
    *,
    reason: str,
    evidence: Mapping[str, str],
    expected: str | None = ANY_VERSION,
    root: Path | None = None,
) -> None:
    """Move an alias to a new version, as `register` decided. Does nothing if it is there already.

    Args:
        evidence: the basis of the decision: figures, digests, ids.
        expected: the version of the alias when this was decided; None: the alias did not exist.
        root: see `recover`.

    Raises:
        AliasChanged: the alias is not at the expected version.
    """
    history = recover(client, name, root)
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
        history = recover(history.client, history.name, history.root)


def _try_move(
    history: History, kind: Kind, alias: str, after: Versions, reason: str, evidence: Mapping[str, str]
) -> Move | None:
    """Take the four steps of a move. Returns None if another process claimed the number first."""
    client, number = history.client, history.last + 1
    order = history.order or create_order(client, history.name)
    describe(client, client.get_experiment(order.info.experiment_id), HISTORY, history.name)
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
    if not write_once(client, order, f"{number:06d}", run.info.run_id):
        client.delete_run(run.info.run_id)
        return None
    for other in history.unclaimed:  # their processes are dead, or can no longer claim this number
        client.delete_run(other)
    return _carry_out(history, order, read_move(number, run))


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
    if move.alias == CHAMPION and not obstacle:
        evidence = {"from": move.before.get(CHAMPION), "kind": move.kind, "reason": move.reason}
        version = move.after.get(CHAMPION)
        record_event("model.promoted", evidence, dataset=name, version=version, root=history.root)
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
    if write_once(history.client, order, f"{move.number:06d}.{claims + 1}", claim):
        _carry_out(history, order, move)


def _find_owner(client: "MlflowClient", order: "Run", move: Move) -> tuple[str, int]:
    """Find the process that may carry out a move, and the number of claims to complete it."""
    params = client.get_run(order.info.run_id).data.params
    claims = sum(key.startswith(f"{move.number:06d}.") for key in params)
    return params[f"{move.number:06d}.{claims}"].partition(" ")[2] if claims else move.process, claims


def _differences(before: Versions, after: Versions) -> list[str]:
    """List the aliases that differ between two states of a registered model."""
    return sorted(alias for alias in before.keys() | after.keys() if before.get(alias) != after.get(alias))
