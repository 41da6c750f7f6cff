"""The watcher of `data/incoming/`: each batch is reported once, when it is complete."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pipeline.batches import watcher
from pipeline.batches.watcher import arrived_batches


class Watching:
    """The batches that the watcher of a directory has reported so far."""

    def __init__(self, incoming: Path) -> None:
        self.reported: list[tuple[str, ...]] = []
        self._incoming = incoming

    async def watch(self) -> None:
        async for names in arrived_batches(self._incoming):
            self.reported.append(names)

    async def expect(self, expected: list[tuple[str, ...]]) -> None:
        """Wait until it has reported these, and a little longer: it may report too many."""
        for _ in range(400):
            if len(self.reported) >= len(expected):
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(4 * watcher.QUIET_SECONDS)
        assert self.reported == expected


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Runs `scenario(watching)` beside a watcher of the directory `incoming`, with short waiting times."""
    monkeypatch.setattr(watcher, "QUIET_SECONDS", 0.3)
    monkeypatch.setattr(watcher, "SCAN_SECONDS", 0.3)

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


def test_batches_are_reported_once_and_changed_ones_again(watched: Callable[[Any], None], tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    (incoming / "before").mkdir(parents=True)
    (incoming / "before/a.png").write_bytes(b"1")

    async def scenario(watching: Watching) -> None:
        await watching.expect([("before",)])
        (incoming / "later.npz").write_bytes(b"12")
        (incoming / "later.npz.dvc").write_text("outs:")
        (incoming / ".gitignore").write_text("/later.npz")
        (incoming / "empty").mkdir()
        await watching.expect([("before",), ("later.npz",)])
        (incoming / "before/b.png").write_bytes(b"2")
        await watching.expect([("before",), ("later.npz",), ("before",)])
        os.remove(incoming / "later.npz")
        await watching.expect([("before",), ("later.npz",), ("before",)])

    watched(scenario)


def test_nothing_is_reported_while_files_are_arriving(watched: Callable[[Any], None], tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        await watching.expect([])
        with (tmp_path / "incoming/slow.npz").open("wb", buffering=0) as file:
            for _ in range(30):
                file.write(b"0" * 1000)
                await asyncio.sleep(0.05)
                assert watching.reported == []
        await watching.expect([("slow.npz",)])

    watched(scenario)


def test_an_unreadable_batch_is_left_out_until_it_can_be_read(
    watched: Callable[[Any], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "incoming/odd").mkdir(parents=True)
    (tmp_path / "incoming/odd/loop").symlink_to("loop")

    async def scenario(watching: Watching) -> None:
        (tmp_path / "incoming/good.npz").write_bytes(b"1")
        await watching.expect([("good.npz",)])
        (tmp_path / "incoming/odd/loop").unlink()
        (tmp_path / "incoming/odd/a.png").write_bytes(b"2")
        await watching.expect([("good.npz",), ("odd",)])

    watched(scenario)
    (message,) = [record.getMessage() for record in caplog.records if record.name == watcher.__name__]
    assert message.startswith("batch odd is left out: odd/loop is a link")


def test_a_removed_and_recreated_folder_is_watched(watched: Callable[[Any], None], tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        await watching.expect([])
        (tmp_path / "incoming").rmdir()
        await watching.expect([])
        (tmp_path / "incoming").mkdir()
        (tmp_path / "incoming/a.npz").write_bytes(b"1")
        await watching.expect([("a.npz",)])

    watched(scenario)


def test_a_disk_without_file_events_is_scanned(
    watched: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that grows between two scans is not complete, although no event reported a change."""
    sizes = iter([{}, {"batch": 1}, {"batch": 2}, {"batch": 3}])
    last = {"batch": 3}
    monkeypatch.setattr(
        watcher, "list_batches", lambda _: ({name: {"f": (n, 0)} for name, n in next(sizes, last).items()}, {})
    )
    unused_sizes: list[Any] = []

    async def scenario(watching: Watching) -> None:
        await watching.expect([("batch",)])
        unused_sizes.extend(sizes)

    watched(scenario)
    assert unused_sizes == []  # the batch was reported only after the last growth
