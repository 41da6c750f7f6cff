"""The certificate that the members of a cluster share. Only who has its key can connect.

Dask executes what it is sent, so that every connection uses TLS, and both sides show the certificate: also on loopback,
which all users of a machine can reach.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import WorkspaceError
from pipeline.files import PRIVATE, atomic_file, make_private
from pipeline.workspace import STATE, lock, main_repository

if TYPE_CHECKING:
    from distributed.security import Security

DIRECTORY = "PIPELINE_DASK_CERTIFICATES"  # variable: a directory with CERTIFICATE, KEY and perhaps AUTHORITY
CERTIFICATE, KEY = "cert.pem", "key.pem"
CREATE_SECONDS = 30
AUTHORITY = "ca.pem"  # absent where the certificate signs itself


def find_directory() -> Path:
    """Return the directory of the certificate. By default, it is `.pipeline/dask/` of the main repository."""
    return Path(os.environ.get(DIRECTORY) or main_repository() / STATE / "dask").absolute()


def read_certificate() -> "Security":
    """Read the certificate.

    Raises:
        WorkspaceError: a file is missing.
    """
    directory = find_directory()
    for name in (CERTIFICATE, KEY):
        if not (directory / name).is_file():
            raise WorkspaceError(
                "cannot connect to the cluster without its certificate",
                expected=f"{CERTIFICATE} and {KEY} in {directory}, copied from the machine of its scheduler",
                found=f"no {name}",
                remedy=f"copy both, or set {DIRECTORY} to their directory; "
                "or delete the other one, and start a cluster here: pipeline scale up",
            )
    if DIRECTORY not in os.environ:  # a directory of the user's choice may be shared with a group
        make_private(directory, directory / KEY)
    authority = directory / AUTHORITY
    return _security(directory, authority if authority.is_file() else directory / CERTIFICATE)


def ensure_certificate() -> "Security":
    """Read the certificate. Creates one, which signs itself, if the directory has neither certificate nor key."""
    from distributed.security import Security

    directory, root = find_directory(), main_repository()
    with lock("dask certificate", wait=CREATE_SECONDS, remedy="run the same command again", root=root):
        if not any((directory / name).exists() for name in (CERTIFICATE, KEY)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            created = Security.temporary()
            for name, content in ((KEY, created.tls_client_key), (CERTIFICATE, created.tls_client_cert)):
                with atomic_file(directory / name, mode=PRIVATE) as partial:
                    partial.write_text(content, encoding="ascii")
    return read_certificate()


def _security(directory: Path, authority: Path) -> "Security":
    from distributed.security import Security

    certificate, key = str(directory / CERTIFICATE), str(directory / KEY)
    return Security(
        require_encryption=True,
        tls_ca_file=str(authority),
        **{f"tls_{role}_cert": certificate for role in ("client", "scheduler", "worker")},
        **{f"tls_{role}_key": key for role in ("client", "scheduler", "worker")},
    )
