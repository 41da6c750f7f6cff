"""The certificate of a cluster: created once and private; its absence says what to copy."""

from pathlib import Path

import pytest

from pipeline.errors import WorkspaceError
from pipeline.scale.certificates import DIRECTORY, ensure_certificate, find_directory, read_certificate


@pytest.fixture(autouse=True)
def checkout(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (in_directory / "dvc.yaml").touch()
    monkeypatch.delenv(DIRECTORY, raising=False)


def test_a_certificate_is_created_once_and_for_its_owner() -> None:
    first = ensure_certificate()
    content = {path.name: path.read_bytes() for path in find_directory().glob("*.pem")}
    assert content.keys() == {"cert.pem", "key.pem"}
    assert {path.stat().st_mode & 0o777 for path in find_directory().glob("*.pem")} == {0o600}
    find_directory().chmod(0o755)
    assert ensure_certificate().tls_client_key == first.tls_client_key
    assert {path.name: path.read_bytes() for path in find_directory().glob("*.pem")} == content
    assert find_directory().stat().st_mode & 0o777 == 0o700
    assert first.require_encryption


def test_a_missing_file_is_named_and_never_replaced() -> None:
    with pytest.raises(WorkspaceError, match=r"found: +no cert\.pem"):
        read_certificate()
    ensure_certificate()
    (find_directory() / "key.pem").unlink()
    with pytest.raises(WorkspaceError, match=r"found: +no key\.pem"):
        ensure_certificate()
    assert not (find_directory() / "key.pem").exists()


def test_the_certificate_of_another_cluster_may_have_an_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "company"))
    ensure_certificate()
    (tmp_path / "company/ca.pem").write_bytes((tmp_path / "company/cert.pem").read_bytes())
    assert read_certificate().tls_ca_file == str(tmp_path / "company/ca.pem")
    assert not (tmp_path / ".pipeline/dask").exists()
