"""The trials of a sweep in Prefect's pages."""

import json
from pathlib import Path

import pytest

from pipeline.search.prefect_table import QUICK, PrefectTable
from tests import prefect_http
from tests.search.unit.test_summary import row


def test_the_trials_are_a_table_of_prefect(prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (QUICK | {"PREFECT_API_URL": prefect_api}).items():
        monkeypatch.setenv(name, value)
    table = PrefectTable(tmp_path, "First_sweep")
    table.publish([row(0, range(600))], now=True)
    assert table.problem == ""
    (artifact,) = (
        one
        for one in prefect_http.post(f"{prefect_api}/artifacts/filter", json={}).json()
        if one["key"] == "sweep-first-sweep"
    )
    (trial,) = json.loads(artifact["data"])
    assert (trial["number"], trial["state"], trial["validation_accuracy"]) == ("0", "complete", "0.9")


def test_without_a_server_nothing_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    table = PrefectTable(tmp_path, "first")
    table.publish([row(0, range(600))], now=True)
    assert table.problem == ""
