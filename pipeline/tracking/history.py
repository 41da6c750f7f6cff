"""Every move of an alias, in order, kept in MLflow itself: who moved what, when, from where to where, and why.

MLflow overwrites an alias and keeps nothing of it, and it has no compare-and-set. What it does guarantee, on every
backend, is that a param of a run never changes: of many that write one, the first wins. So the experiment
`NAME history` holds a run per move, with its facts as tags, and one run called `order`, whose params are the places in
the history: `000012` holds the id of the twelfth move's run. A move takes four steps:

1. intend: make its run, RUNNING, with all that is to be known of it;
2. claim: write the next number. Who is second there has lost, and looks again at what stands;
3. move the alias;
4. settle: the run is FINISHED.

A process may die after any of them. Whoever comes next finds the last number unsettled, takes it over by a claim of its
own (`000012.1`) and carries the move out; an intent without a number never happened. The next number is claimed only
when the last is settled, so that at any time one process at most moves aliases. What it finds moved by others, in
MLflow's pages say, it records as `external`.
"""

import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pipeline.errors import TrackingError
from pipeline.tracking import lineage, processes
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.records import PARENT_VARIABLE, milliseconds

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

Alias = Literal["champion", "challenger"]
Kind = Literal["registration", "promotion", "rollback", "external"]
State = Literal["done", "void", "pending"]

CHAMPION: Alias = "champion"  # serves
CHALLENGER: Alias = "challenger"  # waits
ANY_VERSION = "any"  # for `expected`: wherever the alias points to
DECISION_TAG = "decision"  # of a version, set last: one without it was not judged to the end
REASON_TAG = "decision.reason"  # of a version, in words
ACCURACY_TAG = "test.accuracy"  # of a version, when it was registered; `.low` and `.high` end its 95 % interval
ROLE_TAG = "history.role"
ORDER, MOVE = "order", "move"  # its values
MOVER_TAG = "history.process"  # not the tag by which other runs of dead processes are ended
EVIDENCE = "evidence."
STATES: dict[str, State] = {"RUNNING": "pending", "FINISHED": "done", "KILLED": "void"}  # by a run's status

WAIT_SECONDS = 30  # for a move that another process is making
POLL_SECONDS = 0.2
# A process of another machine cannot be asked whether it lives: it has this long to carry out what it claimed, and does
# not touch the alias any more when half of it is over.
LEASE_SECONDS = 300


class AnotherCameFirst(TrackingError):
    """An alias does not point any more to where it pointed when its move was decided on."""


@dataclass(frozen=True)
class Move:
    """One move of an alias."""

    number: int  # its place in the history, from 1
    state: State  # void: it was claimed, but somebody else had moved the alias, so it was not carried out
    when: int  # milliseconds since 1970, by the mover's clock
    who: str  # `user@machine` or `flow run ID`; of an external move nobody knows
    kind: Kind
    alias: str
    origin: str | None  # the version it pointed to; None: there was no such alias
    target: str | None  # the version it points to; None: the alias was removed
    reason: str
    evidence: Mapping[str, str]
    superseded: int | None  # the number of the move that it took the place of
    model: str | None  # SHA-256 of the target's model file: numbers are given anew when a registered model is deleted
    before: Mapping[str, str]  # all aliases
    after: Mapping[str, str]
    process: str
    run: str

    @property
    def outcome(self) -> Mapping[str, str]:
        """All aliases as they stood when it was settled."""
        return self.before if self.state == "void" else self.after

    def __str__(self) -> str:
        return f"{self.alias}: {_word(self.origin)} to {_word(self.target)}"


@dataclass(frozen=True)
class Standing:
    """How the aliases stand, and where the history is, with nothing pending and nothing unrecorded."""

    aliases: Mapping[str, str]
    last: int  # the number of the last move; 0: there was none
    order: "Run | None"  # None: the history has not begun


def stand(client: "MlflowClient", name: str) -> Standing:
    """How a registered model's aliases stand, after completing what dead processes left and recording what others did.

    Writes nothing where nothing is to be mended.

    Raises:
        TrackingError: another process is making a move, and does not come to an end.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        order = _find_order(client, name)
        last = _last_move(client, order) if order else None
        if order and last and last.state == "pending":
            claimed = time.monotonic()
            if _take_over(client, order, last):
                _carry_out(client, name, last, claimed)
            elif time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            else:
                raise _busy(name, last)
            continue
        number = _last_number(order) if order else 0
        standing = Standing(find_aliases(client, name), number, order)
        strangers = _unrecorded(last.outcome if last else {}, standing.aliases)
        if not strangers:
            return standing
        _record_external(client, name, standing, last.outcome if last else {}, strangers[0])


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
    """Let an alias point to a version, and record it, unless it points there already: what `register` decides.

    Args:
        reason: in words, for the reader of the history.
        evidence: what the decision rests on: figures, digests, ids.
        expected: the version that the alias pointed to when the move was decided on; None: there was no such alias.

    Raises:
        AnotherCameFirst: the alias does not point to what was expected.
        TrackingError: the version is not there, or the store failed.
    """
    if stand(client, name).aliases.get(alias) != str(version):
        _move(
            client, name, alias, str(version), kind="registration", reason=reason, evidence=evidence, expected=expected
        )


def _move(
    client: "MlflowClient",
    name: str,
    alias: str,
    version: str,
    *,
    kind: Kind,
    reason: str,
    evidence: Mapping[str, str],
    expected: str | None,
) -> Move:
    """Move an alias. A version that becomes champion waits no longer: where it was the challenger, that alias goes."""
    model = _get_version(client, name, version).tags.get(MODEL_TAG)
    while True:
        standing = stand(client, name)
        started = time.monotonic()
        origin = standing.aliases.get(alias)
        if expected not in (ANY_VERSION, origin):
            raise _too_late(name, alias, expected, origin, version)
        after = dict(standing.aliases) | {alias: version}
        if alias == CHAMPION and after.get(CHALLENGER) == version:
            del after[CHALLENGER]
        move = _intend(
            client, name, standing, alias, kind=kind, reason=reason, evidence=evidence, after=after, model=model
        )
        if not move:  # somebody else was faster: look again at what stands
            continue
        settled = _carry_out(client, name, move, started)
        if settled.state == "void":
            raise _too_late(name, alias, origin, find_aliases(client, name).get(alias), version)
        return settled


def promote(client: "MlflowClient", name: str, version: str, *, reason: str) -> Move:
    """Make a version the champion, because somebody says so.

    Raises:
        TrackingError: the version is not there, was rejected or never judged, or is the champion already; or another
            move of the champion came first.
    """
    candidate = _get_version(client, name, version)
    decision = candidate.tags.get(DECISION_TAG)
    standing = stand(client, name)
    champion = standing.aliases.get(CHAMPION)
    if champion == version:
        raise TrackingError(f"{name} version {version} is the champion already", remedy="pipeline history")
    if decision is None:
        raise TrackingError(
            f"{name} version {version} cannot be promoted: it was not judged to the end",
            expected=f"a version with the tag `{DECISION_TAG}`",
            found="none; its registration was cut off, or it was not registered by the pipeline",
            remedy="pipeline sync, in the checkout that holds its model",
        )
    if decision == "rejected" or candidate.tags.get("gate") == "rejected":
        raise TrackingError(
            f"{name} version {version} cannot be promoted: it was rejected",
            found=candidate.tags.get(REASON_TAG, "it did not pass the absolute gate"),
            remedy="promote another one (pipeline versions), or train a better one (pipeline run)",
        )
    evidence = {"decision": decision} | {
        key: candidate.tags[key] for key in (REASON_TAG, ACCURACY_TAG) if key in candidate.tags
    }
    return _move(client, name, CHAMPION, version, kind="promotion", reason=reason, evidence=evidence, expected=champion)


def rollback(client: "MlflowClient", name: str, *, reason: str, to: str | None = None) -> Move:
    """Bring a former champion back.

    Args:
        to: which one; None: the one before the present, leaving out those that were themselves rolled back from and
            those that were deleted.

    Raises:
        TrackingError: there is none, or `to` never was the champion or is it now; or another move of the champion came
            first.
    """
    standing = stand(client, name)
    moves = read_moves(client, standing.order)
    champion = standing.aliases.get(CHAMPION)
    if to is None:
        to = _former_champion(client, name, moves, champion)
    elif to == champion:
        raise TrackingError(f"{name} version {to} is the champion already", remedy="pipeline history")
    else:
        _get_version(client, name, to)
        reigns = [move for move in champion_moves(moves) if move.target == to]
        if not reigns:
            raise TrackingError(
                f"{name} version {to} never was the champion",
                expected=f"one of: {', '.join(_reigned(moves, champion)) or 'none so far'}",
                remedy=f"pipeline promote {to} --model {name} --reason TEXT",
            )
        if not _is_same(client, name, reigns[-1]):
            raise TrackingError(
                f"{name} version {to} is not the model that was the champion",
                expected=f"a model file with the SHA-256 {reigns[-1].model}",
                found="a version registered later, under a number that was given again",
                remedy=f"pipeline promote {to} --model {name} --reason TEXT",
            )
    former = next(move for move in reversed(champion_moves(moves)) if move.target == to)
    evidence = {"restores": f"move {former.number}"}
    return _move(client, name, CHAMPION, to, kind="rollback", reason=reason, evidence=evidence, expected=champion)


def read_history(client: "MlflowClient", name: str) -> list[Move]:
    """All moves of a registered model's aliases, in order, after mending the history's end (see `stand`)."""
    return read_moves(client, stand(client, name).order)


def read_moves(client: "MlflowClient", order: "Run | None") -> list[Move]:
    """All moves that have a number, in order. Runs that somebody deleted for good are left out."""
    if order is None:
        return []
    from mlflow.entities import ViewType

    runs: dict[str, Run] = {}
    token = None
    while True:
        query = f"tags.`{ROLE_TAG}` = '{MOVE}'"
        page = client.search_runs([order.info.experiment_id], query, ViewType.ALL, max_results=1000, page_token=token)
        runs |= {run.info.run_id: run for run in page}
        token = page.token
        if not token:
            break
    return [_as_move(number, runs[run]) for number, run in _places(order) if run in runs]


def champion_moves(moves: Sequence[Move]) -> list[Move]:
    """Those that took place and changed which version serves."""
    return [move for move in moves if move.alias == CHAMPION and move.state == "done"]


def former_champions(moves: Sequence[Move]) -> list[Move]:
    """The moves to which one can go back, the latest last: a rollback takes away what came after its target."""
    line: list[Move] = []
    for move in champion_moves(moves):
        if move.kind == "rollback":
            kept = max((place for place, earlier in enumerate(line) if earlier.target == move.target), default=None)
            line = line[:kept] if kept is not None else line[:-1]
        if move.target is not None:
            line.append(move)
    return line


def find_aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    """Version by alias; empty for a registered model that is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _former_champion(client: "MlflowClient", name: str, moves: Sequence[Move], champion: str | None) -> str:
    line = former_champions(moves)
    while line and line[-1].target == champion:
        line.pop()
    for move in reversed(line):
        if move.target and move.target != champion and _is_same(client, name, move):
            return move.target
    never = f"{name} has no former champion to go back to"
    deleted = ", ".join(sorted({move.target for move in line if move.target}, key=int))
    raise TrackingError(
        never,
        expected="a version that was the champion before, and was not itself rolled back from",
        found=f"deleted: {deleted}" if deleted else f"only {_word(champion)} in its history",
        remedy="pipeline versions, then pipeline promote VERSION --reason TEXT",
    )


def _reigned(moves: Sequence[Move], champion: str | None) -> list[str]:
    return sorted({move.target for move in champion_moves(moves) if move.target and move.target != champion}, key=int)


def _is_same(client: "MlflowClient", name: str, move: Move) -> bool:
    """Whether the version that a move led to is still there, and holds the model it held."""
    try:
        version = _get_version(client, name, str(move.target))
    except TrackingError:
        return False
    return version.tags.get(MODEL_TAG) == move.model


def _get_version(client: "MlflowClient", name: str, version: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TrackingError(
            f"{name} has no version {version}",
            expected="the number of a version that is there",
            found=str(version),
            remedy="pipeline versions",
        ) from None


def _intend(
    client: "MlflowClient",
    name: str,
    standing: Standing,
    alias: str,
    *,
    kind: Kind,
    reason: str,
    evidence: Mapping[str, str],
    after: Mapping[str, str],
    model: str | None,
) -> Move | None:
    """Make the run of a move and claim the next number for it; None when another process got that number."""
    order = standing.order or _begin(client, name)
    origin, target, number = standing.aliases.get(alias), after.get(alias), standing.last + 1
    who = "unknown" if kind == "external" else _who()
    facts = {
        ROLE_TAG: MOVE,
        MOVER_TAG: processes.this_process(),
        "kind": kind,
        "who": who,
        "alias": alias,
        "from": origin,
        "to": target,
        "reason": reason,
        "model": model,
        "superseded": _latest(client, order, alias),
        "aliases.before": json.dumps(standing.aliases, sort_keys=True),
        "aliases.after": json.dumps(after, sort_keys=True),
        **{f"{EVIDENCE}{key}": value for key, value in evidence.items()},
        "mlflow.user": who,
        "mlflow.source.name": "pipeline",
        "mlflow.note.content": _describe(name, alias, origin, target, kind, reason),
    }
    title = f"{number} {alias}: {_word(origin)} to {_word(target)}"
    tags = {key: value for key, value in facts.items() if value}
    run = client.create_run(order.info.experiment_id, tags=tags, run_name=title)
    if _claim(client, order, _place(number), run.info.run_id):
        _end_dead_intents(client, order, run)
        return _as_move(number, run)
    client.delete_run(run.info.run_id)
    return None


def _claim(client: "MlflowClient", order: "Run", place: str, value: str) -> bool:
    """Write a place of the history, which only one can. Asking again, where an answer was lost, gives the same one."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_param(order.info.run_id, place, value)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return False
    return True


def _latest(client: "MlflowClient", order: "Run", alias: str) -> str | None:
    """The number of the last move of an alias."""
    query = f"tags.`{ROLE_TAG}` = '{MOVE}' and tags.alias = '{alias}' and attributes.status = 'FINISHED'"
    newest = ["attributes.start_time DESC"]
    found = client.search_runs([order.info.experiment_id], query, max_results=1, order_by=newest)
    numbers = {run: number for number, run in _places(order)}
    return str(numbers[found[0].info.run_id]) if found and found[0].info.run_id in numbers else None


def _end_dead_intents(client: "MlflowClient", order: "Run", claimed: "Run") -> None:
    """Take away the runs of processes that died before they had a number. Should one wake up, its run is void.

    Done by the one who has just claimed the next number, because nobody else can then be given one.
    """
    query = f"tags.`{ROLE_TAG}` = '{MOVE}' and attributes.status = 'RUNNING'"
    numbered = {claimed.info.run_id} | {run for _, run in _places(order)}
    for run in client.search_runs([order.info.experiment_id], query):
        gone = not _may_act(run.data.tags[MOVER_TAG], run.info.start_time)
        if gone and run.info.run_id not in numbered:
            client.set_terminated(run.info.run_id, "KILLED")
            client.delete_run(run.info.run_id)


def _carry_out(client: "MlflowClient", name: str, move: Move, claimed: float) -> Move:
    """Move the aliases of a claimed move and settle it. Whoever does it again, after a crash, comes to the same.

    Args:
        claimed: `time.monotonic()` before this process claimed the move.
    """
    from mlflow.exceptions import MlflowException

    changed = _unrecorded(move.before, move.after)
    standing = find_aliases(client, name)
    hindrance = ""
    if move.kind == "external":
        changed = []  # it has happened
    elif elsewhere := [a for a in changed if standing.get(a) not in (move.before.get(a), move.after.get(a))]:
        hindrance = f"{elsewhere[0]} pointed to {_word(standing.get(elsewhere[0]))} by then"
    for alias in () if hindrance else changed:
        target = move.after.get(alias)
        if standing.get(alias) == target:
            continue
        if time.monotonic() - claimed > LEASE_SECONDS / 2:
            raise TrackingError(
                f"{alias} of {name} was not moved in time: the store took {time.monotonic() - claimed:.0f} s to answer",
                remedy="pipeline history, which completes the move",
                temporary=True,
            )
        if target is None:
            client.delete_registered_model_alias(name, alias)
            continue
        try:
            client.set_registered_model_alias(name, alias, target)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            hindrance = f"version {target} was deleted"
            break
    if hindrance:
        client.set_tag(move.run, "void", f"not carried out: {hindrance}")
    client.set_terminated(move.run, "KILLED" if hindrance else "FINISHED")
    return replace(move, state="void" if hindrance else "done")


def _take_over(client: "MlflowClient", order: "Run", move: Move) -> bool:
    """Whether a move that is not settled is now this process's to settle."""
    place = _place(move.number)
    later = sorted(key for key in order.data.params if key.startswith(f"{place}."))
    since, holder = move.when, move.process
    if later:
        told, _, holder = order.data.params[later[-1]].partition(" ")
        since = int(told)
    if holder == processes.this_process():  # which was interrupted in the middle, and went on
        return True
    if _may_act(holder, since):
        return False
    return _claim(client, order, f"{place}.{len(later) + 1}", f"{milliseconds()} {processes.this_process()}")


def _may_act(holder: str, since: int) -> bool:
    """Whether a process may still be at what it began then. A time far ahead is of a clock that was set back since."""
    alive = processes.is_running(holder)
    return alive if alive is not None else abs(milliseconds() - since) < LEASE_SECONDS * 1000


def _record_external(
    client: "MlflowClient", name: str, standing: Standing, before: Mapping[str, str], alias: str
) -> None:
    after = dict(before)
    after.pop(alias, None)
    if alias in standing.aliases:
        after[alias] = standing.aliases[alias]
    model = None
    with suppress(TrackingError):  # the version may be gone again
        if alias in after:
            model = _get_version(client, name, after[alias]).tags.get(MODEL_TAG)
    started = time.monotonic()
    move = _intend(
        client,
        name,
        replace(standing, aliases=before),
        alias,
        kind="external",
        reason="moved outside of the pipeline; noticed at this time",
        evidence={},
        after=after,
        model=model,
    )
    if move:
        _carry_out(client, name, move, started)


def _find_order(client: "MlflowClient", name: str) -> "Run | None":
    """The run whose params are the places of the history; None before it begins. What somebody deleted comes back."""
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(_experiment(name))
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    query = f"tags.`{ROLE_TAG}` = '{ORDER}'"
    found = client.search_runs([experiment.experiment_id], query, ViewType.ALL, max_results=1)
    if not found:
        raise TrackingError(
            f"the experiment `{_experiment(name)}` is not the history of {name}'s aliases",
            expected=f"a run with the tag {ROLE_TAG}: {ORDER}, made with the experiment",
            remedy="rename that experiment in MLflow's pages, then run the same command again",
        )
    order = found[0]
    if order.info.lifecycle_stage == "deleted":
        client.restore_run(order.info.run_id)
    return order


def _begin(client: "MlflowClient", name: str) -> "Run":
    """Start a history, whole or not at all: made aside, and then given its name, which is unique."""
    from mlflow.exceptions import MlflowException

    aside = client.create_experiment(f"{_experiment(name)} {uuid.uuid4().hex[:8]}")
    explanation = "The moves' places in the history. Each param is written once, by the move that comes next."
    tags = {ROLE_TAG: ORDER, "mlflow.user": _who(), "mlflow.note.content": explanation}
    order = client.create_run(aside, tags=tags, run_name=ORDER)
    try:
        client.rename_experiment(aside, _experiment(name))
    except MlflowException:  # a backend's own word for a name that is taken
        client.delete_experiment(aside)
        found = _find_order(client, name)
        if found is None:
            raise
        return found
    return order


def _last_move(client: "MlflowClient", order: "Run") -> Move | None:
    return next(_backwards(client, order), None)


def _backwards(client: "MlflowClient", order: "Run") -> Iterator[Move]:
    """The moves, the last first, each read when it is asked for."""
    from mlflow.exceptions import MlflowException

    for number, run in reversed(_places(order)):
        try:
            yield _as_move(number, client.get_run(run))
        except MlflowException as error:  # deleted for good
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def _places(order: "Run") -> list[tuple[int, str]]:
    """(number, run id) of every claimed place, in order."""
    return sorted((int(place), run) for place, run in order.data.params.items() if "." not in place)


def _last_number(order: "Run") -> int:
    return max((number for number, _ in _places(order)), default=0)


def _place(number: int) -> str:
    return f"{number:06d}"


def _as_move(number: int, run: "Run") -> Move:
    tags = run.data.tags
    state = STATES[run.info.status]
    if state == "pending" and run.info.lifecycle_stage == "deleted":  # by somebody, in MLflow's pages
        state = "void"
    return Move(
        number=number,
        state=state,
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
        process=tags[MOVER_TAG],
        run=run.info.run_id,
    )


def _unrecorded(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The aliases that do not point to the same."""
    return sorted(alias for alias in before.keys() | after.keys() if before.get(alias) != after.get(alias))


def _who() -> str:
    flow = os.environ.get(PARENT_VARIABLE)
    return f"flow run {flow}" if flow else f"{lineage.user()}@{platform.node()}"


def _experiment(name: str) -> str:
    return f"{name} history"


def _word(version: str | None) -> str:
    return f"version {version}" if version else "none"


def _describe(name: str, alias: str, origin: str | None, target: str | None, kind: str, reason: str) -> str:
    return f"**{kind}** of {name}: `{alias}` moves from {_word(origin)} to {_word(target)}.\n\n{reason}"


def _too_late(name: str, alias: str, expected: str | None, found: str | None, wanted: str) -> AnotherCameFirst:
    return AnotherCameFirst(
        f"{alias} of {name} was not moved to version {wanted}: another move came first",
        expected=f"{alias} at {_word(expected)}",
        found=f"{alias} at {_word(found)}",
        remedy=f"pipeline history says who and why; if version {wanted} is still the better one, run the command again",
    )


def _busy(name: str, move: Move) -> TrackingError:
    return TrackingError(
        f"another process is moving an alias of {name}",
        expected=f"its end within {WAIT_SECONDS} s",
        found=f"move {move.number} ({move}), by {move.who}, process {move.process}",
        remedy=f"end that process, or wait: on another machine it has {LEASE_SECONDS} s; then run again",
        temporary=True,
    )
