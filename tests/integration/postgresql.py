"""A PostgreSQL server of Debian's package, for as long as tests need it: the store of a team."""

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER = "mlflow"
TEMPLATE = "empty_store"  # a database with MLflow's tables, which is copied: making them takes seconds
NOTHING = "template0"  # PostgreSQL's own, without any table


@contextmanager
def running_postgresql() -> Iterator[Callable[..., str]]:
    """A server on a free port of the loopback interface. Yields what makes a database and returns its address.

    It is an empty MLflow store unless another template is asked for. The server takes any password.
    """
    programs = _find_programs()
    # Not below pytest's own directory, which is closed to the user that the server has to run as: it refuses root.
    with tempfile.TemporaryDirectory(prefix="pipeline-postgresql-", ignore_cleanup_errors=True) as scratch:
        directory, port = Path(scratch), _free_port()
        account = "nobody" if os.geteuid() == 0 else None
        if account:
            shutil.chown(directory, account)

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / program), *arguments]
            extra = {"user": account, "group": "nogroup", "extra_groups": []} if account else {}
            with (directory.parent / f"{directory.name}.log").open("a+") as log:
                result = subprocess.run(
                    command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, **extra
                )
                if result.returncode:
                    log.seek(0)
                    pytest.fail(f"{' '.join(command)} ended with {result.returncode}:\n{log.read()}")

        data = str(directory / "data")
        run("initdb", "-D", data, "-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        settings = f"-p {port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        run("pg_ctl", "-D", data, "-w", "-s", "-l", str(directory / "log"), "-o", settings, "start")
        numbers = itertools.count()

        def connect(database: str) -> list[str]:
            return ["-h", "127.0.0.1", "-p", str(port), "-U", USER, database]

        def address(database: str) -> str:
            return f"postgresql+psycopg2://{USER}@127.0.0.1:{port}/{database}"

        def make_database(template: str = TEMPLATE) -> str:
            database = f"store_{next(numbers)}"
            run("createdb", "--template", template, *connect(database))
            return address(database)

        try:
            run("createdb", *connect(TEMPLATE))
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            SqlAlchemyStore(address(TEMPLATE), (directory / "mlruns").as_uri()).engine.dispose()
            yield make_database
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
            (directory.parent / f"{directory.name}.log").unlink()


def _find_programs() -> Path:
    """Debian keeps the server's programs off the PATH."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve()] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.fail("PostgreSQL is not installed, which this test runs MLflow on: apt-get install postgresql")
    return found[-1].parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
