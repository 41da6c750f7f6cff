"""`pipeline serve` as a process, on a real registry: it follows the champion, and outlives what fails around it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.data import table
from pipeline.data.traffic import TRAFFIC, read_traffic
from pipeline.serving.current import MODELS, Current, read_current, write_current
from pipeline.serving.keys import KEY_FILE
from pipeline.serving.resolver import confirm
from pipeline.serving.served_model import EXAMPLE_FILE
from pipeline.tracking.logged_models import EXPORTED_TAG, MODEL_FILES
from tests.integration.recorded import empty_store
from tests.processes import wait_until
from tests.serving.models import EXAMPLE, ServingWorkspace, model_files, serving_workspace
from tests.serving.running import Running, list_children, make_settings, serving

__all__ = ["empty_store", "model_files", "serving_workspace"]  # fixtures

pytestmark = pytest.mark.xdist_group("serve")
SECONDS = 90  # for what takes three
IMAGES = {"images": EXAMPLE.tolist()}
FORBIDDEN = ("mlflow", "pandas", "tensorflow", "keras", "prefect", "dvc", "great_expectations", "scipy", "matplotlib")

Served = tuple[Running, subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def served(serving_workspace: ServingWorkspace) -> Iterator[Served]:
    with serving(serving_workspace.root, serving_workspace.root / "serve.log", "--workers", "2") as found:
        yield found


def version_of(server: Running) -> str:
    answer = server.predict(IMAGES)
    assert answer.status == 200, answer.body
    return str(answer.json["version"])


def read_log(workspace: ServingWorkspace) -> list[dict[str, Any]]:
    """The rows of the traffic log."""
    ends = datetime(2000, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)
    return [row for table in read_traffic(workspace.root / TRAFFIC, *ends) for row in table.to_pylist()]


def wait_for(server: Running, version: str) -> None:
    """Wait until both processes answer with a version."""
    wait_until(lambda: {version_of(server) for _ in range(8)} == {version}, SECONDS)


def test_the_challenger_answers_in_the_shadow(served: Served, serving_workspace: ServingWorkspace) -> None:
    challenger = serving_workspace.aliases("garments")["challenger"]
    log = serving_workspace.root / "serve.log"
    wait_until(lambda: f"garments version {challenger} answers in the shadow" in log.read_text(), SECONDS)
    request_ids = {served[0].predict(IMAGES).json["request_id"] for _ in range(20)}

    def find_rows() -> list[dict[str, Any]]:
        return [row for row in read_log(serving_workspace) if row["request_id"] in request_ids]

    wait_until(lambda: len(find_rows()) == 20 * len(EXAMPLE))
    assert {(row["version"], row["shadow_version"]) for row in find_rows()} >= {("1", challenger)}


def test_it_follows_promotions_and_rollbacks(served: Served, serving_workspace: ServingWorkspace) -> None:
    for version in ("2", "3", "1"):
        serving_workspace.promote(version)
        wait_for(served[0], version)
    root = serving_workspace.root
    assert "garments version 3 answers" in (root / "serve.log").read_text()
    images, _ = table.read_images(serving_workspace.outputs.split("test"))
    examples = list((root / ".pipeline/serving" / MODELS).glob(f"*/{EXAMPLE_FILE}"))
    assert len(examples) == 3
    for file in examples:  # what the evaluation recorded
        with np.load(file) as example:
            np.testing.assert_array_equal(example["images"], images)


def test_the_registry_may_be_gone_for_a_while(served: Served, serving_workspace: ServingWorkspace) -> None:
    database, version = serving_workspace.root / "mlflow.db", version_of(served[0])
    content = database.read_bytes()
    try:
        database.write_bytes(b"no database" * 1000)
        wait_until(lambda: served[0].ask("GET", "/health/ready").json["problem"], SECONDS)
        answer = served[0].ask("GET", "/health/ready")
        assert (answer.status, answer.json["version"]) == (200, version)
        assert answer.json["checked_at"] > 0
        assert version_of(served[0]) == version
    finally:
        database.write_bytes(content)
    wait_until(lambda: served[0].ask("GET", "/health/ready").json["problem"] is None, SECONDS)


def test_a_killed_resolver_and_a_killed_worker_are_restarted(
    served: Served, serving_workspace: ServingWorkspace
) -> None:
    server, process = served
    for kind, count in (("resolver", 1), ("worker", 2)):

        def others(killed: psutil.Process | None = None) -> list[psutil.Process]:
            found = list_children(process)[kind]  # noqa: B023
            return found if len(found) == count and killed not in found else []  # noqa: B023

        wait_until(others)
        killed = others()[0]
        killed.kill()
        wait_until(lambda: others(killed))  # noqa: B023
    version = "2" if version_of(server) == "1" else "1"
    serving_workspace.promote(version)
    wait_for(server, version)


def test_a_version_with_an_altered_file_is_not_served_until_it_is_whole(
    served: Served, serving_workspace: ServingWorkspace
) -> None:
    server, root = served[0], serving_workspace.root
    former = version_of(server)
    version = serving_workspace.add_version(4)
    (number,) = [found for found in serving_workspace.versions("garments") if str(found.version) == version]
    digest = number.tags[EXPORTED_TAG]
    (artifact,) = [
        file for file in (root / "mlruns").rglob(MODEL_FILES[EXPORTED_TAG])
        if file.read_bytes().endswith(bytes(4)) and digest in _digest(file)
    ]  # fmt: skip
    content = artifact.read_bytes()
    artifact.write_bytes(b"altered " + content)
    serving_workspace.promote(version)
    wait_until(lambda: "altered" in str(server.ask("GET", "/health/ready").json["problem"]), SECONDS)
    assert version_of(server) == former
    artifact.write_bytes(content)
    wait_for(server, version)
    assert (root / ".pipeline/serving" / MODELS / digest).is_dir()


def _digest(file: Path) -> str:
    from pipeline.files import file_digest

    return file_digest(file)


def test_both_processes_are_in_the_metrics(served: Served) -> None:
    def count(name: str) -> float:
        text = served[0].ask("GET", "/metrics").body.decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    before = count("serve_confidence_count")
    for _ in range(20):
        served[0].predict(IMAGES)
    assert count("serve_confidence_count") == before + 20 * len(EXAMPLE)
    assert count("serve_model{") == 2


def test_the_key_and_the_logs_are_private(served: Served, serving_workspace: ServingWorkspace) -> None:
    root = serving_workspace.root
    request_id = served[0].predict(IMAGES).json["request_id"]
    served[0].ask("GET", "/v2?api_key=abcdefgh12345")
    assert (root / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert (root / ".pipeline/serving").stat().st_mode & 0o077 == 0

    def lines() -> list[Any]:
        files = (root / ".pipeline/serving").glob("access-*.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    wait_until(lambda: [line for line in lines() if line["path"] == "/v2?api_key=***"])  # written after the response
    (line,) = [line for line in lines() if line["request_id"] == request_id]
    assert (line["path"], line["status"], line["images"]) == ("/v1/predict", 200, len(EXAMPLE))
    assert "abcdefgh12345" not in json.dumps(lines())


def test_the_answering_process_imports_no_large_library() -> None:
    code = f"""
import sys, pipeline.serving.worker, pipeline.data.prediction_input
from pipeline.serving.worker import find_routers
find_routers()
print([name for name in {FORBIDDEN!r} if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_it_ends_gracefully_and_starts_with_a_fixed_version(serving_workspace: ServingWorkspace) -> None:
    log = serving_workspace.root / "fixed.log"
    with serving(serving_workspace.root, log, "--version", "1") as (server, process):
        serving_workspace.promote("3")
        wait_until(lambda: (serving_workspace.root / f".pipeline/serving/version-1-{server.port}.json").is_file())
        assert version_of(server) == "1"
        children = [child for found in list_children(process).values() for child in found]
        request_id = server.predict(IMAGES).json["request_id"]
    assert not [child for child in children if child.is_running()]
    logged = read_log(serving_workspace)
    assert len([row for row in logged if row["request_id"] == request_id]) == len(EXAMPLE)


def test_the_last_champion_is_confirmed_without_mlflow(serving_workspace: ServingWorkspace) -> None:
    settings = make_settings(serving_workspace.root)
    champion = serving_workspace.aliases("garments")["champion"]
    for version, is_confirmed in ((champion, True), ("9", False)):
        write_current(settings.current_file, Current("garments", version, "1" * 64, 1.0, "it was late"))
        confirm(settings, "garments")
        current = read_current(settings.current_file)
        assert current
        assert (current.checked_at != 1.0, current.problem is None) == (is_confirmed, is_confirmed)
        assert (current.version, current.sha256) == (version, "1" * 64)


def test_its_processes_end_with_a_killed_server(serving_workspace: ServingWorkspace) -> None:
    with pytest.raises(AssertionError), serving(serving_workspace.root, serving_workspace.root / "killed.log") as found:
        children = [child for kind in list_children(found[1]).values() for child in kind]
        os.kill(found[1].pid, signal.SIGKILL)
        wait_until(lambda: not [child for child in children if child.is_running()])
