"""What lies in `data/incoming/`: known by its content, read once, copied whole; what is odd hinders no other."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.flows import intake
from pipeline.flows.intake import copy_whole, quarantine, read_digest, read_digests, read_quarantine
from pipeline.tracking.outputs import dvc_digest


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """A directory with a batch of two files, long there."""
    directory = tmp_path / "incoming"
    (directory / "march/Bag").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (directory / "march/Bag" / name).write_bytes(name.encode() * 1000)
        os.utime(directory / "march/Bag" / name, (0, 0))
    return directory


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(intake, "dvc_digest", refuse)


def test_unchanged_files_are_read_once(incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {"march": dvc_digest(incoming / "march")}
    assert read_digests(tmp_path, incoming) == (digests, {})
    assert read_digest(tmp_path, incoming / "march") == digests["march"]
    forbid_reading(monkeypatch)
    assert read_digests(tmp_path, incoming) == (digests, {})
    assert read_digest(tmp_path, incoming / "march") == digests["march"]


def test_the_digest_of_one_path_reads_nothing_beside_it(
    incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_digest(tmp_path, incoming / "march")
    (incoming / "odd").symlink_to("odd")
    (incoming / "large.npz").write_bytes(b"?")
    forbid_reading(monkeypatch)
    read_digest(tmp_path, incoming / "march")


@pytest.mark.parametrize("left", ["", '{"a": '])
def test_notes_that_a_power_cut_tore_are_made_anew(incoming: Path, tmp_path: Path, left: str) -> None:
    before = read_digests(tmp_path, incoming)
    record = quarantine(tmp_path, "march", before[0]["march"], "it is bad")
    quarantine(tmp_path, "other", "0", "it is bad")
    (tmp_path / intake.DIGESTS).write_text(left)
    (tmp_path / intake.QUARANTINE / "0.json").write_text(left)
    assert read_digests(tmp_path, incoming) == before
    assert read_quarantine(tmp_path) == {record.digest: record}


@pytest.mark.parametrize("place", ["odd", "odd.npz", "march/Bag/c.png"])
@pytest.mark.parametrize(
    ("target", "reason"), [("c.png", "Too many levels of symbolic links"), ("gone", "No such file or directory")]
)
def test_a_link_that_leads_nowhere_is_named_and_hinders_no_other(
    incoming: Path, tmp_path: Path, place: str, target: str, reason: str
) -> None:
    (incoming / "april.npz").write_bytes(b"1")
    odd = incoming / place
    odd.symlink_to(odd.name if target != "gone" else target)
    digests, unreadable = read_digests(tmp_path, incoming)
    assert unreadable == {place.split("/")[0]: reason}
    assert set(digests) == {"april.npz", "march"} - set(unreadable)


def test_a_link_to_its_own_folder_is_named(incoming: Path, tmp_path: Path) -> None:
    (incoming / "march/Bag/again").symlink_to(".")
    assert read_digests(tmp_path, incoming) == ({}, {"march": "Too many levels of symbolic links"})


def test_a_batch_is_copied_whole(incoming: Path, tmp_path: Path) -> None:
    os.mkfifo(incoming / "march/pipe")  # which DVC does not take either
    digest, target = dvc_digest(incoming / "march"), tmp_path / "copy"
    assert copy_whole(incoming / "march", target, digest)
    assert dvc_digest(target) == digest
    (incoming / "one.npz").write_bytes(b"1")
    os.utime(incoming / "one.npz", (0, 0))
    assert copy_whole(incoming / "one.npz", tmp_path / "new/one.npz", dvc_digest(incoming / "one.npz"))
    assert not copy_whole(incoming / "march", tmp_path / "other", "another digest")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def full_disk(incoming: Path) -> Iterator[None]:
    """No file can grow beyond a hundred bytes; the batch is there already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_takes_no_more_is_no_batch_that_is_arriving(incoming: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        copy_whole(incoming / "march", tmp_path / "copy", dvc_digest(incoming / "march"))
