"""The commands about registered models, on a real store with SQLite."""

import json
import re
import shlex
import shutil
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.__main__ import app
from pipeline.errors import TrackingError
from pipeline.flows.summary import describe_refused_batches, describe_state
from pipeline.safe_console import SafeConsole
from tests.conftest import REPOSITORY
from tests.documentation import read_blocks
from tests.integration.movers import NAME, make_versions
from tests.integration.recorded import Workspace, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures

MANY = 500


@pytest.fixture
def registry(workspace: Workspace) -> Workspace:
    """With three judged versions of a registered model, and no alias."""
    facts = {"test.accuracy": "0.9312", "test.accuracy.low": "0.926", "test.accuracy.high": "0.936"}
    origin = {"data.train": "0123456789abcdef", "mlflow.source.git.commit": "fedcba9876543210", "git.dirty": "true"}
    make_versions(workspace.client, 3, **facts, **origin)
    return workspace


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--model", NAME], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_versions_are_shown_with_their_figures_and_origin(registry: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cli.registry.console", SafeConsole(width=120))
    run("promote", "2", "--reason", "good")
    newest, second, _ = run_json("versions")["versions"]
    assert (newest["number"], newest["aliases"], second["aliases"]) == (3, [], ["champion"])
    assert (second["accuracy"], second["accuracy_low"], second["accuracy_high"]) == (0.9312, 0.926, 0.936)
    line = next(line for line in run("versions").splitlines() if "champion" in line)
    assert line.split()[:2] == ["2", "champion"]
    for shown in ("93.12%", "01234567", "fedcba9876*"):
        assert shown in line


@pytest.mark.parametrize("width", [40, 80, 120])
def test_versions_are_readable_however_narrow_the_terminal(
    registry: Workspace, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    registry.client.create_model_version(NAME, "models/evil", tags={"decision": "\x1b[31mred"})
    run("promote", "2", "--reason", "good")
    monkeypatch.setattr("pipeline.cli.registry.console", SafeConsole(width=width))
    lines = run("versions").splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for shown in ("champion", "93.12% (92.60% to 93.60%)", "?[31mred"):  # on one line each
        assert shown in text
    assert "\x1b" not in text
    assert ("fedcba9876*" in text) == (width != 80)


def test_history_tells_promotion_and_rollback(registry: Workspace) -> None:
    run("promote", "1", "--reason", "the first")
    run("promote", "2", "--reason", "better")
    moved = run_json("rollback", "--reason", "[worse] on bags")["move"]
    assert (moved["origin"], moved["target"], moved["superseded"]) == ("2", "1", 2)
    assert [move["kind"] for move in run_json("history")["moves"]] == ["promotion", "promotion", "rollback"]
    assert "[worse]" in run("history")


def test_the_commands_of_the_page_work(workspace: Workspace) -> None:
    make_versions(workspace.client, 4)
    for version in ("2", "3"):
        run("promote", version, "--reason", "better")
    lines = "".join(read_blocks("docs/registry.md")).splitlines()
    for line in lines:
        run(*shlex.split(line, comments=True)[1:])
    moves = run_json("history")["moves"]
    assert [move["target"] for move in moves] == ["2", "3", "4", "3", "2"]


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_reason_is_asked_for(registry: Workspace, reason: str) -> None:
    with pytest.raises(TrackingError, match="the reason is empty"):
        run("promote", "1", "--reason", reason)
    assert registry.aliases(NAME) == {}


def test_where_there_is_no_store_none_is_made(workspace: Workspace) -> None:
    (workspace.root / "mlflow.db").unlink()
    with pytest.raises(TrackingError, match="nothing is registered yet"):
        run("versions")
    assert not (workspace.root / "mlflow.db").exists()


def test_the_model_meant_is_the_present_datasets(workspace: Workspace) -> None:
    shutil.copytree(REPOSITORY / "data", workspace.root / "data", dirs_exist_ok=True, ignore=_all_but_the_catalogue)
    result = CliRunner().invoke(app, ["history", "--json"], catch_exceptions=False)
    assert json.loads(result.output)["name"] == "fashion-mnist"


@pytest.mark.faults
def test_many_versions_are_read_in_few_queries(workspace: Workspace) -> None:
    from sqlalchemy import Engine, event

    def count_queries() -> int:
        queries: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("SELECT"):
                queries.append(statement)

        event.listen(Engine, "before_cursor_execute", note)
        try:
            assert run_json("versions")["versions"]
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        return len(queries)

    make_versions(workspace.client, 1)
    run("promote", "1", "--reason", "the first")
    few = count_queries()
    for number in range(2, MANY + 1):
        workspace.client.create_model_version(NAME, f"models/{number}", tags={"decision": "challenger"})
    # Tags are fetched for 500 versions at a time: one query more, however many requests that were one by one.
    assert count_queries() <= few + 2
    assert len(run_json("versions")["versions"]) == MANY


def _all_but_the_catalogue(_directory: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("catalog")]


def test_status_names_a_champion_whose_run_was_deleted(workspace: Workspace) -> None:
    client = workspace.client
    run_id = client.create_run("0").info.run_id
    client.create_registered_model("fashion-mnist")
    client.create_model_version("fashion-mnist", "models/1", run_id=run_id)
    client.set_registered_model_alias("fashion-mnist", "champion", "1")
    assert "incomplete" not in dict(describe_state(workspace.root))
    client.delete_run(run_id)
    told = dict(describe_state(workspace.root))
    assert told["registry"] == "champion is version 1"
    assert told["incomplete"].startswith("the run of the champion was deleted")
    assert run_id in told["incomplete"]


def test_status_names_a_batch_that_stops_a_run(workspace: Workspace) -> None:
    assert list(describe_refused_batches()) == []
    (workspace.root / "data/incoming/new.npz").mkdir(parents=True)
    ((name, told),) = describe_refused_batches()
    assert name == "stops a run"
    assert "new.npz has no pointer" in told
    assert re.search("(pipeline add-data|dvc add) data/incoming/new.npz", told)
