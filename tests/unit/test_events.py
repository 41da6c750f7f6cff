"""The file of events."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline import events
from pipeline.events import EVENTS, FORMER, record_event


def read(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / EVENTS).read_text(encoding="utf-8").splitlines()]


def test_an_event_is_a_line_of_json(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    record_event("model.promoted", {"from": "1"}, dataset="가방", version="2", root=tmp_path)
    record_event("run.failed", ["a\nb", "a path \udcff that is not UTF-8"], root=tmp_path)
    first, second = read(tmp_path)
    assert second["evidence"] == ["a\nb", "a path \udcff that is not UTF-8"]
    at = datetime.fromisoformat(str(first.pop("at")))
    assert before <= at <= datetime.now(UTC)
    assert first == {"kind": "model.promoted", "evidence": {"from": "1"}, "dataset": "가방", "version": "2"}
    assert set(second) == {"kind", "evidence", "at"}
    assert (tmp_path / EVENTS).stat().st_mode & 0o077 == 0


def test_many_writers_mix_no_lines(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record_event("batch.arrived", number, root=tmp_path), range(400)))
    assert sorted(event["evidence"] for event in read(tmp_path)) == list(range(400))  # type: ignore[type-var]


def test_many_writers_replace_a_large_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LARGEST", 20_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record_event("batch.arrived", number, root=tmp_path), range(400)))
    former = [json.loads(line) for line in (tmp_path / FORMER).read_text().splitlines()]
    assert sorted(event["evidence"] for event in (*former, *read(tmp_path))) == list(range(400))


def test_a_large_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LARGEST", 1000)
    for number in range(50):
        record_event("batch.arrived", number, root=tmp_path)
    assert read(tmp_path)[-1]["evidence"] == 49
    assert (tmp_path / EVENTS).stat().st_size <= 1200
    assert (tmp_path / FORMER).stat().st_size <= 1200


def test_an_event_that_cannot_be_written_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".pipeline").write_text("in the way")
    record_event("batch.arrived", 1, root=tmp_path)
    assert "the event batch.arrived was not recorded" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)  # no workspace
    monkeypatch.delenv("DVC_ROOT", raising=False)
    record_event("batch.arrived", 1)
    assert capsys.readouterr().err == ""
