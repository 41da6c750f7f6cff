"""The executor: chosen by the configuration, and without one, nothing of Dask is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ParamsError, WorkspaceError
from pipeline.scale import executor
from pipeline.scale.executor import find_executor
from tests.conftest import REPOSITORY

WORK = """
import sys
from pipeline.partitions import map_partitions
assert list(map_partitions(abs, [-1, -2], workers=1)) == [1, 2]
import pipeline.cli.__main__
print([name for name in ("dask", "distributed", "tornado", "cloudpickle") if name in sys.modules])
"""


def test_without_a_cluster_nothing_of_dask_is_imported() -> None:
    shown = subprocess.run([sys.executable, "-c", WORK], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize(
    "params", [None, "{}", "scale: {workers: 0}", "- a list", "a: [", "scale: null"], ids=lambda text: text or "no file"
)
def test_no_workers_are_configured(in_directory: Path, monkeypatch: pytest.MonkeyPatch, params: str | None) -> None:
    monkeypatch.delenv(executor.ADDRESS, raising=False)
    if params is not None:
        (in_directory / "params.yaml").write_text(params)
    assert find_executor() is None


def test_a_wrong_number_of_workers_is_refused(in_directory: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text()
    (in_directory / "params.yaml").write_text(text.replace("\n  workers: 0", "\n  workers: two"))
    with pytest.raises(ParamsError, match=r"scale\.workers is 'two'"):
        find_executor()


def test_a_cluster_without_tls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(executor.ADDRESS, "tcp://10.0.0.5:8786")
    with pytest.raises(WorkspaceError, match="not the address of a cluster with TLS\n  expected: tls://HOST:PORT"):
        find_executor()


def test_dask_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(executor.ADDRESS, "tls://10.0.0.5:8786")
    monkeypatch.setitem(sys.modules, "distributed", None)  # Python's way to block an import
    with pytest.raises(WorkspaceError, match="PIPELINE_DASK needs distributed\n.*\n  remedy:   make extras"):
        find_executor()


def test_workers_start_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(executor.ADDRESS, "tls://10.0.0.5:8786")
    monkeypatch.setenv(executor.IS_WORKER, "1")
    assert find_executor() is None
