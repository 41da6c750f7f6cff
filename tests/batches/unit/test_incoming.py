"""Batches in `data/incoming/`: digests of their content, copies, and unreadable ones among them."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.batches import incoming as incoming_module
from pipeline.batches.incoming import copy_if_complete, read_digest, read_digests
from pipeline.batches.quarantine import QUARANTINE, quarantine, read_quarantine
from pipeline.data.batches import copy_batch, read_files
from pipeline.errors import DataError
from pipeline.flows.temporary_checkout_data import copy_files
from pipeline.tracking.stage_outputs import dvc_digest


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """A directory with a batch of two files, changed long ago."""
    directory = tmp_path / "incoming"
    (directory / "march/Bag").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (directory / "march/Bag" / name).write_bytes(name.encode() * 1000)
        os.utime(directory / "march/Bag" / name, (0, 0))
    return directory


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: bool) -> str:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(incoming_module, "dvc_digest", refuse)


def test_unchanged_files_are_read_once(incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {"march": dvc_digest(incoming / "march")}
    assert read_digests(tmp_path, incoming) == (digests, {})
    assert read_digest(tmp_path, incoming / "march") == digests["march"]
    forbid_reading(monkeypatch)
    assert read_digests(tmp_path, incoming) == (digests, {})
    assert read_digest(tmp_path, incoming / "march") == digests["march"]


def test_the_digest_of_one_path_reads_no_other_path(
    incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_digest(tmp_path, incoming / "march")
    (incoming / "odd").symlink_to("odd")
    (incoming / "large.npz").write_bytes(b"?")
    forbid_reading(monkeypatch)
    read_digest(tmp_path, incoming / "march")


@pytest.mark.parametrize("left", ["", '{"a": '])
def test_corrupt_caches_and_records_are_ignored(incoming: Path, tmp_path: Path, left: str) -> None:
    before = read_digests(tmp_path, incoming)
    digest = before[0]["march"]
    quarantine(tmp_path, "march", digest, "it is bad")
    quarantine(tmp_path, "other", "0", "it is bad")
    (tmp_path / incoming_module.DIGESTS).write_text(left)
    (tmp_path / QUARANTINE / "0.json").write_text(left)
    assert read_digests(tmp_path, incoming) == before
    assert {record.digest: record.reason for record in read_quarantine(tmp_path).values()} == {digest: "it is bad"}


@pytest.mark.parametrize("place", ["odd", "odd.npz", "march/Bag/c.png"])
@pytest.mark.parametrize("target", ["itself", "gone", ".", "/etc/hostname", "april.npz"])
def test_a_batch_with_a_link_is_unreadable_and_others_are_not(
    incoming: Path, tmp_path: Path, place: str, target: str
) -> None:
    (incoming / "april.npz").write_bytes(b"1")
    link = incoming / place
    link.symlink_to(link.name if target == "itself" else target)
    digests, unreadable = read_digests(tmp_path, incoming)
    assert unreadable == {place.split("/")[0]: f"{place} is a link"}
    assert set(digests) == {"april.npz", "march"} - set(unreadable)


@pytest.mark.parametrize("place", [".pipe", "Bag/pipe", ".hidden/pipe"])
def test_a_device_or_pipe_is_unreadable(incoming: Path, tmp_path: Path, place: str) -> None:
    (incoming / "march" / place).parent.mkdir(exist_ok=True)
    os.mkfifo(incoming / "march" / place)
    assert read_digests(tmp_path, incoming)[1] == {"march": f"march/{place} is a device, a pipe or a socket"}


def test_a_complete_batch_is_copied_without_hidden_files(incoming: Path, tmp_path: Path) -> None:
    digest, target = dvc_digest(incoming / "march"), tmp_path / "copy"
    (incoming / "march/.git").mkdir()
    for name in (".DS_Store", "Bag/.DS_Store", ".git/config"):
        (incoming / "march" / name).write_bytes(b"?")
    assert read_digests(tmp_path, incoming) == ({"march": digest}, {})
    assert copy_if_complete(incoming / "march", target, digest)
    assert dvc_digest(target) == digest
    (incoming / "one.npz").write_bytes(b"1")
    os.utime(incoming / "one.npz", (0, 0))
    assert copy_if_complete(incoming / "one.npz", tmp_path / "new/one.npz", dvc_digest(incoming / "one.npz"))
    assert not copy_if_complete(incoming / "march", tmp_path / "other", "another digest")
    (incoming / "march/Bag/c.png").symlink_to("a.png")
    assert not copy_if_complete(incoming / "march", tmp_path / "other", digest)
    assert not (tmp_path / "other").exists()


def test_a_link_that_takes_the_place_of_a_file_is_not_followed(
    incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing of the files and their copy."""
    listed = read_files(incoming / "march")
    monkeypatch.setattr("pipeline.data.batches.read_files", lambda path: listed)
    (incoming / "march/Bag/b.png").unlink()
    (incoming / "march/Bag/b.png").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match=r"march/Bag/b\.png is a link"):
        copy_batch(incoming / "march", tmp_path / "copy")


def test_the_files_of_dataset_path_may_be_links(incoming: Path, tmp_path: Path) -> None:
    """That folder is no batch: its files are read by name."""
    (incoming / "march/Bag/c.png").symlink_to("a.png")
    (incoming / "march/loop").symlink_to(".")
    digest = read_digest(tmp_path, incoming / "march")
    copy_files(incoming / "march", tmp_path / "copy")
    assert dvc_digest(tmp_path / "copy") == digest
    assert (tmp_path / "copy/Bag/c.png").read_bytes() == (incoming / "march/Bag/a.png").read_bytes()


@pytest.fixture
def full_disk(incoming: Path) -> Iterator[None]:
    """No file can grow beyond a hundred bytes; the batch is there already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_an_error_and_not_an_incomplete_batch(incoming: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        copy_if_complete(incoming / "march", tmp_path / "copy", dvc_digest(incoming / "march"))
