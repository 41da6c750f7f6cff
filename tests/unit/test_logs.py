"""The lines of processes that run for months."""

import logging
import re

import pytest

from pipeline import logs
from pipeline.errors import ParamsError

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (logs.LEVEL_VARIABLE, logs.FORWARDED_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name in ("pipeline", "a_library"):
        logger = logging.getLogger(name)
        for field in ("handlers", "propagate", "level"):
            monkeypatch.setattr(logger, field, getattr(logger, field))


def log(part: str) -> None:
    logs.configure(part, "a_library")
    logger = logging.getLogger("pipeline.servers.runner_loop")
    logger.debug("detail")
    logger.info("batch %s arrived", "march\x1b[2J")
    logger.warning("two lines:\npostgresql://team:secret@host/db")
    logging.getLogger("a_library").info("noise")
    logging.getLogger("a_library").warning("its warning")
    logs.forward("mlflow", "ERROR   as printed")


def test_a_line_has_its_time_part_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    log("runner")
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    assert [re.sub(STAMP, "", line) for line in lines] == [
        " runner  | INFO    batch march?[2J arrived",
        " runner  | WARNING two lines:",
        " runner  | WARNING postgresql://team:***@host/db",
        " runner  | WARNING its warning",
        " mlflow  | ERROR   as printed",
    ]


def test_a_part_of_up_leaves_time_and_name_to_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(logs.FORWARDED_VARIABLE, "1")
    log("runner")
    assert capsys.readouterr().out.splitlines()[0] == "INFO    batch march?[2J arrived"


@pytest.mark.parametrize(("level", "lines"), [("debug", 7), ("INFO", 5), ("WARNING", 4), ("ERROR", 1)])
def test_the_level_is_configurable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, level: str, lines: int
) -> None:
    monkeypatch.setenv(logs.LEVEL_VARIABLE, level)
    log("runner")
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "loud")
    with pytest.raises(ParamsError, match="PIPELINE_LOG_LEVEL=LOUD is not a level"):
        logs.configure("up")
