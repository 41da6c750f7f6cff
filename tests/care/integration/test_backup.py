"""Backup and restore of the embedded stores: in use, in another folder, interrupted, altered."""

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.care.backup import back_up, restore
from pipeline.care.sqlite import copy_database, find_damage
from pipeline.errors import TrackingError, WorkspaceError
from pipeline.files import file_digest, read_json, write_json
from pipeline.registry import aliases
from pipeline.server_addresses import move_data
from pipeline.tracking.database_setup import RESTORING
from pipeline.tracking.store import locate, open_store
from pipeline.workspace import lock
from tests.integration.recorded import Workspace, empty_store, fill, making_workspace, prefect_database, workspace

__all__ = ["empty_store", "prefect_database", "workspace"]  # fixtures


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A workspace with a champion."""
    root = tmp_path_factory.mktemp("recorded") / "project"
    with making_workspace(root, empty_store) as made:
        made.train(b"one")
        made.record_training()
        made.enter(b"one")
    return root


@pytest.fixture
def recorded(workspace: Workspace, template: Path, prefect_database: Path) -> Workspace:
    """With a champion, a record in Prefect's database, and a quarantine."""
    fill(workspace, template)
    write_flow(prefect_database, "train")
    write_json(workspace.root / ".pipeline/quarantine/0123.json", {"reason": "blank images"})
    write_json(workspace.root / ".pipeline/sweeps/first/journal.log", {})
    return workspace


def write_flow(database: Path, name: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS flow (name TEXT)")
        connection.execute("INSERT INTO flow VALUES (?)", (name,))


def read_flows(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM flow")]


def alter(archive: Path, change: Callable[[Path], None], to: Path) -> Path:
    """Change the content of an archive."""
    folder = to.with_name("unpacked")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    change(folder)
    with tarfile.open(to, "w:gz") as content:
        content.add(folder, ".")
    return to


def test_a_backup_works_in_another_folder(recorded: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = aliases.read_history(recorded.client, "garments")
    made = back_up(recorded.root, tmp_path)
    assert made.path.parent == tmp_path
    assert made.bytes == made.path.stat().st_size

    other = tmp_path / "elsewhere"
    shutil.copytree(recorded.root, other, ignore=shutil.ignore_patterns("mlflow.db", "mlruns", ".pipeline"))
    shutil.rmtree(recorded.root / "mlruns")  # so that only the copy's own files can answer
    monkeypatch.chdir(other)
    restored = restore(other, made.path, replace=False, with_prefect=False)
    assert (restored.files, restored.aside) == (made.files - 1, ())  # Prefect's database stays where it is
    assert pytest.importorskip("pipeline.audit.verification").verify(other).findings == ()
    assert aliases.read_history(open_store(locate(other)), "garments") == moves
    assert json.loads((other / ".pipeline/quarantine/0123.json").read_text()) == {"reason": "blank images"}
    assert (other / ".pipeline/sweeps/first/journal.log").is_file()
    assert not (other / ".pipeline/restore.partial").exists()


def test_a_database_in_use_is_copied_consistently(recorded: Workspace, tmp_path: Path) -> None:
    client, stop = recorded.client, threading.Event()
    run = client.create_run("0").info.run_id

    def write() -> None:
        number = 0
        while not stop.is_set():
            client.log_param(run, f"p{number}", number)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = back_up(recorded.root, tmp_path / "busy.tar.gz")
    finally:
        stop.set()
        writer.join()
    with tarfile.open(made.path) as archive:
        archive.extract("mlflow.db", tmp_path / "copy", filter="data")
    with closing(sqlite3.connect(tmp_path / "copy/mlflow.db")) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM model_versions").fetchone() == (1,)


def test_existing_files_are_replaced_only_on_request_and_kept(recorded: Workspace, tmp_path: Path) -> None:
    made = back_up(recorded.root, tmp_path / "a.tar.gz")
    recorded.client.set_registered_model_tag("garments", "since", "then")
    write_flow(tmp_path / "prefect/prefect.db", "retrain")
    before = (recorded.root / "mlflow.db").read_bytes()
    with pytest.raises(WorkspaceError, match="--replace"):
        restore(recorded.root, made.path, replace=False, with_prefect=True)
    assert (recorded.root / "mlflow.db").read_bytes() == before

    restored = restore(recorded.root, made.path, replace=True, with_prefect=False)
    with closing(sqlite3.connect(recorded.root / "mlflow.db")) as database:  # not by a client that has the former open
        assert database.execute("SELECT key FROM registered_model_tags").fetchall() == [("dataset",)]
    assert read_flows(tmp_path / "prefect/prefect.db") == ["train", "retrain"]  # other projects may share it
    (aside,) = restored.aside
    assert (aside / "mlflow.db").read_bytes() == before
    assert list((aside / "mlruns").rglob("model.keras"))
    assert list((recorded.root / "mlruns").rglob("model.keras"))

    restore(recorded.root, made.path, replace=True, with_prefect=True)
    assert read_flows(tmp_path / "prefect/prefect.db") == ["train"]


def test_an_altered_archive_changes_nothing(recorded: Workspace, tmp_path: Path) -> None:
    made = back_up(recorded.root, tmp_path / "a.tar.gz").path

    def edit_a_model(folder: Path) -> None:
        next(folder.rglob("model.keras")).write_bytes(b"evil")

    def add_a_file(folder: Path) -> None:
        (folder / "mlruns/more").touch()

    def drop_the_manifest(folder: Path) -> None:
        (folder / "manifest.json").unlink()

    before = (recorded.root / "mlflow.db").stat()
    for number, (change, found) in enumerate(
        [(edit_a_model, "another digest"), (add_a_file, "not in its manifest"), (drop_the_manifest, "no manifest")]
    ):
        archive = alter(made, change, tmp_path / f"{number}/altered.tar.gz")
        with pytest.raises(WorkspaceError, match=found):
            restore(recorded.root, archive, replace=True, with_prefect=True)
    (tmp_path / "cut.tar.gz").write_bytes(made.read_bytes()[: made.stat().st_size // 2])
    with pytest.raises(WorkspaceError, match="cannot be restored from"):
        restore(recorded.root, tmp_path / "cut.tar.gz", replace=True, with_prefect=True)
    assert (recorded.root / "mlflow.db").stat() == before
    assert not (recorded.root / ".pipeline/restore.partial").exists()


@pytest.mark.parametrize("content", [b"this is no database" * 100, b""], ids=["text", "empty"])
def test_a_file_that_is_not_a_database_is_not_restored(recorded: Workspace, tmp_path: Path, content: bytes) -> None:
    def replace(folder: Path) -> None:
        (folder / "mlflow.db").write_bytes(content)
        manifest = read_json(folder / "manifest.json")
        manifest["files"]["mlflow.db"] = file_digest(folder / "mlflow.db")
        write_json(folder / "manifest.json", manifest)

    refuse(recorded, alter(back_up(recorded.root, tmp_path / "a.tar.gz").path, replace, tmp_path / "b.tar.gz"))


@pytest.mark.parametrize("link", ["symlink", "hard link"])
def test_an_archive_with_a_link_is_refused(recorded: Workspace, tmp_path: Path, link: str) -> None:
    def add(folder: Path) -> None:
        if link == "symlink":
            (folder / "mlruns/link").symlink_to("nowhere")
        else:
            os.link(folder / "mlflow.db", folder / "mlruns/link")

    refuse(recorded, alter(back_up(recorded.root, tmp_path / "a.tar.gz").path, add, tmp_path / "b.tar.gz"))


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "3", "{", "{}", '{"format": 1}', '{"format": 1, "made": "now", "files": ["mlflow.db"]}',
     '{"format": 1, "made": null, "files": {}}', '{"format": 1, "made": "now", "files": {"../../a": "0"}}',
     pytest.param(100_000 * "[", id="deep")],
)  # fmt: skip
def test_a_malformed_manifest_is_refused(recorded: Workspace, tmp_path: Path, manifest: str) -> None:
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked/manifest.json").write_text(manifest)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as content:
        content.add(tmp_path / "unpacked", ".")
    refuse(recorded, tmp_path / "a.tar.gz")


def test_a_damaged_compression_is_refused(recorded: Workspace, tmp_path: Path) -> None:
    made = back_up(recorded.root, tmp_path / "a.tar.gz").path
    content = bytearray(made.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    made.write_bytes(content)
    refuse(recorded, made)


def refuse(workspace: Workspace, archive: Path) -> None:
    """Check that an archive is refused with a message, and that nothing has changed."""
    before = (workspace.root / "mlflow.db").stat()
    with pytest.raises(WorkspaceError, match="cannot be restored from"):
        restore(workspace.root, archive, replace=True, with_prefect=True)
    assert (workspace.root / "mlflow.db").stat() == before
    assert not list((workspace.root / ".pipeline").glob("re*"))


def test_the_next_backup_removes_the_leftovers_of_a_killed_one(recorded: Workspace, tmp_path: Path) -> None:
    def be_killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.care.backup.write_json", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            back_up(recorded.root, tmp_path / "kept")

    killed = multiprocessing.get_context("fork").Process(target=be_killed)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".partial"]
    scratch = recorded.root / ".pipeline/backup.partial"
    assert (scratch / "mlflow.db").exists()
    made = back_up(recorded.root, tmp_path / "kept" / "another.tar.gz")
    assert list((tmp_path / "kept").iterdir()) == [made.path]
    assert not scratch.exists()


def test_a_damaged_store_is_replaced_by_a_backup(recorded: Workspace, tmp_path: Path) -> None:
    made = back_up(recorded.root, tmp_path / "a.tar.gz").path
    database = recorded.root / "mlflow.db"
    database.write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError, match="pipeline restore"):
        open_store(locate())
    with pytest.raises(WorkspaceError, match="is damaged"):
        back_up(recorded.root, tmp_path / "b.tar.gz")
    restored = restore(recorded.root, made, replace=True, with_prefect=False)
    assert (restored.aside[0] / "mlflow.db").read_bytes().startswith(b"this is no database")
    assert find_damage(database) == ""


def test_only_the_owner_can_read_databases_backups_and_state(recorded: Workspace, tmp_path: Path) -> None:
    """Also existing ones, and whatever the umask."""
    root, former = recorded.root, os.umask(0o022)
    try:
        (root / "mlflow.db").chmod(0o644)
        (root / ".pipeline").chmod(0o755)
        open_store(locate())
        made = back_up(root, tmp_path / "a.tar.gz").path
        assert modes(root / "mlflow.db", made, root / ".pipeline") == [0o600, 0o600, 0o700]
        restore(root, made, replace=True, with_prefect=True)
        prefect = tmp_path / "prefect/prefect.db"
        files = [root / "mlflow.db", prefect, *(path for path in (root / "mlruns").rglob("*") if path.is_file())]
        assert set(modes(*files)) == {0o600}
        (root / "mlflow.db").unlink()
        open_store(locate())
        move_data(root, tmp_path / "data")
        assert modes(root / "mlflow.db", root / ".pipeline/settings.json") == [0o600, 0o600]
        copy_database(prefect, tmp_path / "copy.db")
        assert modes(tmp_path / "copy.db") == [0o600]
    finally:
        os.umask(former)


def modes(*paths: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in paths]


def test_an_interrupted_restore_is_completed_first(recorded: Workspace, tmp_path: Path) -> None:
    """A kill after the first rename: the former database is moved aside, and no file replaces it yet."""
    root = recorded.root
    made = back_up(root, tmp_path / "a.tar.gz").path
    staged, aside = root / ".pipeline/restore.partial", root / ".pipeline/replaced-then"
    with tarfile.open(made) as content:
        content.extractall(staged, filter="data")
    aside.mkdir()
    moves = [(root / "mlflow.db", aside / "mlflow.db"), (root / "mlruns", aside / "mlruns")]
    moves += [(staged / "mlflow.db", root / "mlflow.db"), (staged / "mlruns", root / "mlruns")]
    write_json(root / RESTORING, {"moves": [[str(old), str(new)] for old, new in moves]})
    (root / "mlflow.db").rename(aside / "mlflow.db")

    with pytest.raises(TrackingError, match="was interrupted"):
        open_store(locate(root))
    assert not (root / "mlflow.db").exists()  # no new one in its place
    with pytest.raises(WorkspaceError, match="--replace"):  # the first is completed, and then its files exist
        restore(root, made, replace=False, with_prefect=False)
    assert pytest.importorskip("pipeline.audit.verification").verify(root).findings == ()
    assert (aside / "mlflow.db").exists()
    assert (aside / "mlruns").exists()


def test_nothing_is_restored_during_a_run_or_while_the_servers_run(recorded: Workspace, tmp_path: Path) -> None:
    made = back_up(recorded.root, tmp_path / "a.tar.gz").path
    for name in ("the flow", "the stack", "training 0123"):
        with (
            lock(name, wait=0, remedy="", root=recorded.root),
            pytest.raises(WorkspaceError, match="another process holds the lock"),
        ):
            restore(recorded.root, made, replace=True, with_prefect=False)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("MLFLOW_TRACKING_URI", "postgresql://team:secret@host/mlflow", "pg_dump"),
        ("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/mlflow", "versioning"),
    ],
)
def test_a_team_store_is_refused_with_a_remedy(
    recorded: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, remedy: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(WorkspaceError, match=remedy) as caught:
        back_up(recorded.root, tmp_path / "a.tar.gz")
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "a.tar.gz").exists()


def test_no_archive_is_overwritten(recorded: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"older")
    with pytest.raises(WorkspaceError, match="exists already"):
        back_up(recorded.root, tmp_path / "a.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == b"older"
