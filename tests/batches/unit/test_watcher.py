"""Noticing batches: when they are whole, and once."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pipeline.batches import watcher
from pipeline.batches.watcher import arrived_batches


class Watching:
    """What the watcher of a directory has told so far."""

    def __init__(self, incoming: Path) -> None:
        self.told: list[tuple[str, ...]] = []
        self._incoming = incoming

    async def watch(self) -> None:
        async for names in arrived_batches(self._incoming):
            self.told.append(names)

    async def tells(self, expected: list[tuple[str, ...]]) -> None:
        """Wait for it to tell this, and a little longer: it may tell too much."""
        for _ in range(400):
            if len(self.told) >= len(expected):
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(4 * watcher.QUIET_SECONDS)
        assert self.told == expected


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Runs `scenario(watching)` beside a watcher of the directory `incoming`, whose patience is short."""
    monkeypatch.setattr(watcher, "QUIET_SECONDS", 0.3)
    monkeypatch.setattr(watcher, "LOOK_SECONDS", 0.3)

    def run(scenario: Callable[[Watching], Coroutine[Any, Any, None]]) -> None:
        async def beside() -> None:
            watching = Watching(tmp_path / "incoming")
            task = asyncio.create_task(watching.watch())
            try:
                await scenario(watching)
            finally:
                task.cancel()

        asyncio.run(beside())

    return run


def test_batches_are_told_once_and_changed_ones_again(watched: Callable[[Any], None], tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    (incoming / "before").mkdir(parents=True)
    (incoming / "before/a.png").write_bytes(b"1")

    async def scenario(watching: Watching) -> None:
        await watching.tells([("before",)])
        (incoming / "later.npz").write_bytes(b"12")
        (incoming / "later.npz.dvc").write_text("outs:")
        (incoming / ".gitignore").write_text("/later.npz")
        (incoming / "empty").mkdir()
        await watching.tells([("before",), ("later.npz",)])
        (incoming / "before/b.png").write_bytes(b"2")
        await watching.tells([("before",), ("later.npz",), ("before",)])
        os.remove(incoming / "later.npz")
        await watching.tells([("before",), ("later.npz",), ("before",)])

    watched(scenario)


def test_nothing_is_told_while_files_are_arriving(watched: Callable[[Any], None], tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        await watching.tells([])
        with (tmp_path / "incoming/slow.npz").open("wb", buffering=0) as file:
            for _ in range(30):
                file.write(b"0" * 1000)
                await asyncio.sleep(0.05)
                assert watching.told == []
        await watching.tells([("slow.npz",)])

    watched(scenario)


def test_one_that_cannot_be_looked_at_is_left_out_until_it_can(
    watched: Callable[[Any], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "incoming/odd").mkdir(parents=True)
    (tmp_path / "incoming/odd/loop").symlink_to("loop")

    async def scenario(watching: Watching) -> None:
        (tmp_path / "incoming/good.npz").write_bytes(b"1")
        await watching.tells([("good.npz",)])
        (tmp_path / "incoming/odd/loop").unlink()
        (tmp_path / "incoming/odd/a.png").write_bytes(b"2")
        await watching.tells([("good.npz",), ("odd",)])

    watched(scenario)
    (message,) = [record.getMessage() for record in caplog.records if record.name == watcher.__name__]
    assert message.startswith("batch odd is left out: odd/loop is a link")


def test_a_folder_that_is_taken_away_and_comes_back_is_looked_at(
    watched: Callable[[Any], None], tmp_path: Path
) -> None:
    async def scenario(watching: Watching) -> None:
        await watching.tells([])
        (tmp_path / "incoming").rmdir()
        await watching.tells([])
        (tmp_path / "incoming").mkdir()
        (tmp_path / "incoming/a.npz").write_bytes(b"1")
        await watching.tells([("a.npz",)])

    watched(scenario)


def test_a_disk_that_sends_no_news_is_looked_at(
    watched: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose size still grows between two looks is not whole, though nobody told of a change."""
    sizes = iter([{}, {"batch": 1}, {"batch": 2}, {"batch": 3}])
    last = {"batch": 3}
    monkeypatch.setattr(
        watcher, "read_batches", lambda _: ({name: {"f": (n, 0)} for name, n in next(sizes, last).items()}, {})
    )
    looked_at: list[Any] = []

    async def scenario(watching: Watching) -> None:
        await watching.tells([("batch",)])
        looked_at.extend(sizes)

    watched(scenario)
    assert looked_at == []  # it was told after the last growth only
