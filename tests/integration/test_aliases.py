"""The history of alias moves, in real MLflow stores on SQLite and PostgreSQL."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import TrackingError
from pipeline.registry import alias_history, aliases
from pipeline.registry.alias_history import Move
from pipeline.registry.aliases import CHALLENGER, CHAMPION, read_history, recover
from pipeline.registry.promotion import promote, rollback
from pipeline.tracking import processes
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.parent_run_id import PARENT_FILE_VARIABLE, write_parent_run
from pipeline.tracking.store import Store, open_store
from tests.integration.movers import NAME, Job, Outcome, make_versions, run_at_once
from tests.integration.recorded import Workspace, empty_store, workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["empty_store", "workspace"]  # fixtures

BOTH = pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
DEAD = processes.this_process().rsplit(" ", 1)[0] + " 1.00"  # its number was given to another process since
WRITES_OF_A_ROLLBACK = 4  # intend, claim, move, settle
WRITES_OF_A_FIRST_MOVE = 7  # and before them: experiment, run `order`, the experiment's name


@pytest.fixture
def client(workspace: Workspace) -> "MlflowClient":
    """Of a store with four judged versions and no alias."""
    make_versions(workspace.client, 4)
    return workspace.client


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes get no time to end their moves."""
    monkeypatch.setattr(aliases, "WAIT_SECONDS", 0)


@pytest.fixture
def uri(backend: str, request: pytest.FixtureRequest) -> str:
    """The address of an empty store on a backend."""
    if backend == "postgresql":
        make_database: Callable[[], str] = request.getfixturevalue("postgresql")
        return make_database()
    return f"sqlite:///{request.getfixturevalue('workspace').root / 'mlflow.db'}"


def champions(moves: list[Move]) -> list[str | None]:
    return [move.target for move in moves if move.alias == CHAMPION and move.state == "done"]


def assert_unbroken(client: "MlflowClient") -> list[Move]:
    """The history has no gap, each move starts where the one before ended, and the last is how the aliases stand."""
    moves = read_history(client, NAME)
    assert [move.number for move in moves] == list(range(1, len(moves) + 1))
    assert "pending" not in {move.state for move in moves}
    for earlier, later in itertools.pairwise(moves):
        assert later.before == earlier.result
    assert alias_history.find_aliases(client, NAME) == (moves[-1].result if moves else {})
    return moves


def assert_nothing_unfinished(client: "MlflowClient") -> None:
    """No run of a move that is not part of the history."""
    experiment = client.get_experiment_by_name(f"{NAME} history")
    runs = client.search_runs([experiment.experiment_id], f"tags.`{alias_history.ROLE_TAG}` = '{alias_history.MOVE}'")
    assert {run.info.run_id for run in runs} == {move.run for move in read_history(client, NAME)}


def test_a_move_says_when_who_from_where_to_where_and_why(client: "MlflowClient") -> None:
    before = int(time.time() * 1000)
    promote(client, NAME, "1", reason="the first")
    move = promote(client, NAME, "2", reason="better on shirts")
    assert (move.number, move.state, move.kind, move.alias) == (2, "done", "promotion", CHAMPION)
    assert (move.origin, move.target, move.superseded, move.model) == ("1", "2", 1, f"{2:064x}")
    assert before <= move.when <= time.time() * 1000
    assert "@" in move.who
    assert move.reason == "better on shirts"
    assert move.evidence == {"decision": "challenger"}
    assert assert_unbroken(client)[-1] == move


def test_the_flow_that_moves_an_alias_is_named(
    client: "MlflowClient", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT_FILE_VARIABLE, str(tmp_path / "flow-run"))
    write_parent_run(tmp_path / "flow-run", "0f3a")
    aliases.move_alias(client, NAME, CHALLENGER, "1", reason="it passed", evidence={"gain": "0.3 points"})
    (move,) = read_history(client, NAME)
    assert (move.who, move.kind, move.evidence) == ("flow run 0f3a", "registration", {"gain": "0.3 points"})


def test_moves_are_found_by_a_search_in_mlflow(client: "MlflowClient") -> None:
    for version in ("1", "2", "3"):
        promote(client, NAME, version, reason=f"try {version}")
    experiment = client.get_experiment_by_name(f"{NAME} history")
    (found,) = client.search_runs([experiment.experiment_id], "tags.alias = 'champion' and tags.reason = 'try 2'")
    assert found.info.run_name == "2 champion: version 1 to version 2"
    assert found.info.status == "FINISHED"
    assert [experiment.name for experiment in client.search_experiments()] == [f"{NAME} history", "Default"]


def test_a_challenger_that_becomes_champion_waits_no_longer(client: "MlflowClient") -> None:
    aliases.move_alias(client, NAME, CHALLENGER, "2", reason="it passed", evidence={})
    promote(client, NAME, "2", reason="good")
    assert alias_history.find_aliases(client, NAME) == {CHAMPION: "2"}
    assert_unbroken(client)


def test_an_alias_that_stands_there_already_is_not_moved_again(client: "MlflowClient") -> None:
    for _ in range(2):
        aliases.move_alias(client, NAME, CHALLENGER, "2", reason="it passed", evidence={})
    assert len(read_history(client, NAME)) == 1


def test_a_registration_decided_on_another_champion_is_refused(client: "MlflowClient") -> None:
    promote(client, NAME, "1", reason="the first")
    promote(client, NAME, "2", reason="in the meantime")
    with pytest.raises(TrackingError, match="another move came first"):
        aliases.move_alias(client, NAME, CHAMPION, "3", reason="it beat 1", evidence={}, expected="1")
    assert alias_history.find_aliases(client, NAME) == {CHAMPION: "2"}


def test_moves_made_elsewhere_are_noticed_once(client: "MlflowClient") -> None:
    promote(client, NAME, "1", reason="the first")
    client.set_registered_model_alias(NAME, CHAMPION, "3")
    client.set_registered_model_alias(NAME, "canary", "4")
    assert [(move.kind, move.alias, move.origin, move.target) for move in read_history(client, NAME)[1:]] == [
        ("external", "canary", None, "4"),
        ("external", CHAMPION, "1", "3"),
    ]
    client.delete_registered_model_alias(NAME, CHAMPION)
    assert str(read_history(client, NAME)[-1]) == "champion: version 3 to none"
    assert len(assert_unbroken(client)) == 4


def test_aliases_from_before_the_history_begin_it(client: "MlflowClient") -> None:
    client.set_registered_model_alias(NAME, CHAMPION, "2")
    promote(client, NAME, "3", reason="better")
    assert [(move.kind, move.target) for move in assert_unbroken(client)] == [("external", "2"), ("promotion", "3")]


def test_looking_at_what_is_in_order_writes_nothing(client: "MlflowClient") -> None:
    assert read_history(client, NAME) == []
    assert client.get_experiment_by_name(f"{NAME} history") is None
    promote(client, NAME, "1", reason="the first")
    experiment = client.get_experiment_by_name(f"{NAME} history")
    before = [run.to_dictionary() for run in client.search_runs([experiment.experiment_id])]
    recover(client, NAME)
    read_history(client, NAME)
    assert [run.to_dictionary() for run in client.search_runs([experiment.experiment_id])] == before


def test_rollback_goes_back_past_what_was_rolled_back_from(client: "MlflowClient") -> None:
    for version in ("1", "2", "3"):
        promote(client, NAME, version, reason="better")
    assert rollback(client, NAME, reason="worse on bags").target == "2"
    promote(client, NAME, "4", reason="mended")
    assert rollback(client, NAME, reason="not mended").target == "2"  # not 3
    assert rollback(client, NAME, reason="nor is this").target == "1"
    with pytest.raises(TrackingError, match="no former champion to go back to"):
        rollback(client, NAME, reason="further")
    assert champions(assert_unbroken(client)) == ["1", "2", "3", "2", "4", "2", "1"]


def test_rollback_to_a_named_version_takes_away_what_came_after_it(client: "MlflowClient") -> None:
    for version in ("1", "2", "3"):
        promote(client, NAME, version, reason="better")
    move = rollback(client, NAME, reason="all worse", to="1")
    assert (move.target, move.evidence) == ("1", {"restores": "move 1"})
    with pytest.raises(TrackingError, match="no former champion"):
        rollback(client, NAME, reason="further")
    with pytest.raises(TrackingError, match="version 4 was never the champion") as refused:
        rollback(client, NAME, reason="further", to="4")
    assert "one of: 2, 3" in str(refused.value)
    with pytest.raises(TrackingError, match="is the champion already"):
        rollback(client, NAME, reason="further", to="1")


def test_rollback_brings_back_a_champion_whose_alias_was_removed(client: "MlflowClient") -> None:
    promote(client, NAME, "1", reason="the first")
    promote(client, NAME, "2", reason="better")
    client.delete_registered_model_alias(NAME, CHAMPION)
    assert rollback(client, NAME, reason="nothing serves").target == "2"


def test_rollback_passes_over_deleted_versions(client: "MlflowClient") -> None:
    for version in ("1", "2", "3"):
        promote(client, NAME, version, reason="better")
    client.delete_model_version(NAME, "2")
    assert rollback(client, NAME, reason="worse").target == "1"


def test_a_number_given_again_is_not_taken_for_the_former_champion(client: "MlflowClient") -> None:
    promote(client, NAME, "1", reason="the first")
    promote(client, NAME, "2", reason="better")
    client.delete_registered_model(NAME)
    client.create_registered_model(NAME)
    for number in ("1", "2"):
        client.create_model_version(NAME, "models/other", tags={"decision": "challenger", MODEL_TAG: number})
    promote(client, NAME, "2", reason="the new one")
    with pytest.raises(TrackingError, match="no former champion to go back to"):
        rollback(client, NAME, reason="worse")
    with pytest.raises(TrackingError, match="is not the model that was the champion"):
        rollback(client, NAME, reason="worse", to="1")


@pytest.mark.parametrize(
    ("version", "tags", "message"),
    [
        ("9", {}, "garments has no version 9"),
        ("best", {}, "garments has no version best"),
        ("1", {}, "is the champion already"),
        ("2", {"decision": "rejected", "decision.reason": "recall of Bag"}, "it was rejected"),
        ("2", {"gate": "rejected"}, "it was rejected"),
    ],
)
def test_what_cannot_be_promoted_is_refused(
    client: "MlflowClient", version: str, tags: dict[str, str], message: str
) -> None:
    promote(client, NAME, "1", reason="the first")
    for key, value in tags.items():
        client.set_model_version_tag(NAME, version, key, value)
    with pytest.raises(TrackingError, match=message) as refused:
        promote(client, NAME, version, reason="I like it")
    assert "remedy: " in str(refused.value)
    assert champions(assert_unbroken(client)) == ["1"]


def test_a_version_that_was_not_judged_is_not_promoted(client: "MlflowClient") -> None:
    client.delete_model_version_tag(NAME, "2", "decision")
    with pytest.raises(TrackingError, match="its judgement did not finish"):
        promote(client, NAME, "2", reason="I like it")


def test_a_history_deleted_in_mlflow_comes_back(client: "MlflowClient") -> None:
    promote(client, NAME, "1", reason="the first")
    experiment = client.get_experiment_by_name(f"{NAME} history")
    client.delete_run(recover(client, NAME).order.info.run_id)  # type: ignore[union-attr]
    client.delete_experiment(experiment.experiment_id)
    promote(client, NAME, "2", reason="better")
    assert champions(assert_unbroken(client)) == ["1", "2"]


def test_an_experiment_of_that_name_that_is_none_of_ours_is_left_alone(client: "MlflowClient") -> None:
    client.create_experiment(f"{NAME} history")
    with pytest.raises(TrackingError, match="is not the history of garments's aliases"):
        promote(client, NAME, "1", reason="the first")
    assert alias_history.find_aliases(client, NAME) == {}


@pytest.mark.parametrize("seconds_ago", [1, 86_400, -86_400])
def test_a_move_of_another_machine_is_completed_if_it_does_not_end(
    client: "MlflowClient", impatient: None, seconds_ago: int
) -> None:
    """Clocks are not compared: the start of the move may be a day ahead."""
    _leave_pending(client, "elsewhere 77 1.00", seconds_ago)
    assert champions(assert_unbroken(client)) == ["1", "2"]


def test_a_move_is_awaited_while_its_process_lives(client: "MlflowClient", impatient: None) -> None:
    parent = processes.psutil.Process().parent()
    assert parent is not None
    machine = processes.this_process().rsplit(" ", 2)[0]
    _leave_pending(client, f"{machine} {parent.pid} {processes.start_of(parent)}", seconds_ago=86_400)
    with pytest.raises(TrackingError, match="another process is moving an alias") as busy:
        promote(client, NAME, "3", reason="impatient")
    assert busy.value.exit_code == 75
    assert alias_history.find_aliases(client, NAME) == {CHAMPION: "1"}


def test_a_slow_process_leaves_its_move_to_the_one_that_took_over(client: "MlflowClient") -> None:
    _leave_pending(client, processes.this_process())
    slow = alias_history.load_history(client, NAME)
    assert slow.order is not None
    client.log_param(slow.order.info.run_id, "000002.1", "1780000000000 elsewhere 77 1.00")
    with pytest.raises(TrackingError, match="another process took over"):
        aliases._carry_out(slow, slow.order, slow.moves[-1])
    assert alias_history.find_aliases(client, NAME) == {CHAMPION: "1"}


def test_a_move_that_ended_while_it_was_looked_at_is_not_done_again(client: "MlflowClient") -> None:
    """Its process ends after the last step, and the next one has moved the alias by then."""
    _leave_pending(client, DEAD)
    seen = alias_history.load_history(client, NAME)
    assert seen.order is not None
    promote(client, NAME, "3", reason="the next")
    aliases._complete(seen, seen.order, seen.moves[-1])
    assert champions(assert_unbroken(client)) == ["1", "2", "3"]


def test_a_dead_move_that_somebody_overtook_is_void(client: "MlflowClient") -> None:
    _leave_pending(client, DEAD)
    client.set_registered_model_alias(NAME, CHAMPION, "4")
    assert [(move.kind, move.target, move.state) for move in assert_unbroken(client)] == [
        ("promotion", "1", "done"),
        ("promotion", "2", "void"),
        ("external", "4", "done"),
    ]


def test_a_dead_move_to_a_version_deleted_since_is_void(client: "MlflowClient") -> None:
    _leave_pending(client, DEAD)
    client.delete_model_version(NAME, "2")
    assert [move.state for move in assert_unbroken(client)] == ["done", "void"]
    assert alias_history.find_aliases(client, NAME) == {CHAMPION: "1"}


def test_a_history_of_an_earlier_release_is_listed_and_continued(client: "MlflowClient", impatient: None) -> None:
    """As it was written: a move, one completed by another process, a void one, one without a number, one unfinished."""
    experiment = client.create_experiment(f"{NAME} history")
    note = {"mlflow.note.content": "The moves' places in the history."}
    order = client.create_run(experiment, tags={"history.role": "order", "mlflow.user": "ann"} | note, run_name="order")
    _write_move(client, order, "000001", None, "1", "FINISHED", None, **{"evidence.ground": "first model"})
    _write_move(client, order, "000002", "1", "2", "FINISHED", superseded="1")
    client.log_param(order.info.run_id, "000002.1", "1780000000000 host 78 1115.86@c724d680")
    _write_move(client, order, "000003", "2", "4", "KILLED", superseded="2", void="not carried out: champion at 2")
    _write_move(client, order, "", "2", "4", superseded="2")
    _write_move(client, order, "000004", "2", "3", superseded="2")
    client.log_param(order.info.run_id, "000004.1", "1780000000000 host 79 1116.28")
    client.set_registered_model_alias(NAME, CHAMPION, "2")

    moves = assert_unbroken(client)
    assert [(move.target, move.state, move.superseded) for move in moves] == [
        ("1", "done", None),
        ("2", "done", 1),
        ("4", "void", 2),
        ("3", "done", 2),
    ]
    assert (moves[0].who, moves[0].reason, moves[0].evidence) == ("ann@host", "why 1", {"ground": "first model"})
    move = rollback(client, NAME, reason="worse")
    assert (move.number, move.target, move.superseded) == (5, "2", 4)
    assert_nothing_unfinished(client)


@pytest.mark.faults
@BOTH
@pytest.mark.parametrize("kill_before", range(1, WRITES_OF_A_ROLLBACK + 1))
def test_a_rollback_killed_between_its_steps_happened_or_did_not(uri: str, kill_before: int) -> None:
    client = open_store(Store(uri, None, None))
    make_versions(client, 3)
    for version in ("1", "2", "3"):
        promote(client, NAME, version, reason="better")
    assert run_at_once(uri, [Job("rollback", kill_before_write=kill_before)])[0].was_killed
    claimed = kill_before > 2
    assert run_at_once(uri, [Job("history")])[0].moved == ("2" if claimed else "3")
    assert champions(assert_unbroken(client)) == ["1", "2", "3", *(["2"] if claimed else [])]

    (again,) = run_at_once(uri, [Job("rollback")])
    assert again == Outcome("1" if claimed else "2", "", WRITES_OF_A_ROLLBACK, False)
    assert_unbroken(client)
    assert_nothing_unfinished(client)


@pytest.mark.faults
@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("kill_before", range(1, WRITES_OF_A_FIRST_MOVE + 1))
def test_a_first_move_killed_between_its_steps_leaves_a_history_that_works(uri: str, kill_before: int) -> None:
    client = open_store(Store(uri, None, None))
    make_versions(client, 2)
    assert run_at_once(uri, [Job("promote", "1", kill_before_write=kill_before)])[0].was_killed
    promote(client, NAME, "2", reason="better")
    assert champions(assert_unbroken(client)) == ["1", "2"][0 if kill_before > 5 else 1 :]


@pytest.mark.faults
@BOTH
def test_one_who_mends_may_be_killed_as_well(uri: str) -> None:
    client = open_store(Store(uri, None, None))
    make_versions(client, 2)
    promote(client, NAME, "1", reason="the first")
    assert run_at_once(uri, [Job("promote", "2", kill_before_write=3)])[0].was_killed
    for kill_before in (1, 2):  # the claim to mend it, and the move of the alias
        assert run_at_once(uri, [Job("history", kill_before_write=kill_before)])[0].was_killed
    menders = run_at_once(uri, [Job("history")] * 3)
    assert [mender.moved for mender in menders] == ["2"] * 3
    assert champions(assert_unbroken(client)) == ["1", "2"]


@pytest.mark.faults
@BOTH
def test_ten_at_once_lose_nothing(uri: str) -> None:
    client = open_store(Store(uri, None, None))
    make_versions(client, 9)
    for version in ("1", "2", "3"):
        promote(client, NAME, version, reason="better")
    jobs = [Job("promote", str(version)) for version in range(4, 10)] + [Job("rollback")] * 4
    outcomes = run_at_once(uri, jobs)
    moves = assert_unbroken(client)

    told = sorted(str(outcome.moved) for outcome in outcomes if not outcome.error)
    assert sorted(str(move.target) for move in moves[3:]) == told  # each that said so, and no other
    assert told
    refusals = [outcome.error for outcome in outcomes if outcome.error]
    assert all("another move came first" in error or "no former champion" in error for error in refusals), refusals
    assert alias_history.find_aliases(client, NAME) == {CHAMPION: moves[-1].target}
    assert_nothing_unfinished(client)


@pytest.mark.faults
@BOTH
def test_ten_registrations_at_once_all_come_in(uri: str) -> None:
    client = open_store(Store(uri, None, None))
    make_versions(client, 10)
    outcomes = run_at_once(uri, [Job("register", str(version)) for version in range(1, 11)])
    assert [outcome.error for outcome in outcomes] == [""] * 10
    moves = assert_unbroken(client)
    assert sorted(int(str(move.target)) for move in moves) == list(range(1, 11))


def _leave_pending(client: "MlflowClient", process: str, seconds_ago: float = 1) -> None:
    """Promote version 1, and claim the promotion of version 2 for a process that has not carried it out yet."""
    promote(client, NAME, "1", reason="the first")
    order = recover(client, NAME).order
    assert order is not None
    started = int((time.time() - seconds_ago) * 1000)
    _write_move(client, order, "000002", "1", "2", started=started, **{"history.process": process})


def _write_move(
    client: "MlflowClient",
    order: "Run",
    number: str,
    origin: str | None,
    target: str,
    status: str = "RUNNING",
    started: int | None = None,
    **more: str,
) -> None:
    """Write the run of a move of the champion. All names are literals: stores hold them."""
    tags = {
        "history.role": "move",
        "history.process": "host 77 1109.98@c724d680-c28f-4b89-a36c-7a903372f2aa",
        "kind": "promotion",
        "who": "ann@host",
        "alias": "champion",
        "to": target,
        "reason": f"why {target}",
        "model": f"{int(target):064x}",
        "aliases.before": json.dumps({"champion": origin} if origin else {}),
        "aliases.after": json.dumps({"champion": target}),
        "mlflow.user": "ann@host",
        "mlflow.source.name": "pipeline",
        "mlflow.note.content": "**promotion** of garments",
    }
    tags |= {"from": origin} if origin else {}
    run = client.create_run(order.info.experiment_id, started, tags=tags | more)
    if number:
        client.log_param(order.info.run_id, number, run.info.run_id)
    if status != "RUNNING":
        client.set_terminated(run.info.run_id, status)
