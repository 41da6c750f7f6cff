"""The servers of `pipeline up`: used by every command, one record with and without them, and nothing left behind."""

import json
import os
import signal
import stat
import subprocess
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import expect

from pipeline.files import file_digest
from pipeline.server_addresses import AUTH_FILE, answers
from pipeline.tracking.store import as_default, locate, locate_unserved, open_store
from tests.conftest import CLOSED_PROXY, Project
from tests.documentation import read_blocks
from tests.e2e.pages import PATIENCE, open_browser
from tests.e2e.servers import find_free_port
from tests.e2e.test_kills import stage_process
from tests.e2e.test_repro import aliases_of, runs_of
from tests.processes import WAIT_SECONDS, processes_of, wait_until, wait_until_idle

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("up")]

MOST_MEMORY = 1.2e9
SECRETS = {
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-secret-for-forms",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "a-secret-for-mlflow",
    "PREFECT_SERVER_API_AUTH_STRING": "admin:a-secret-for-prefect",
}
CREDENTIALS = {
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": SECRETS["MLFLOW_AUTH_ADMIN_PASSWORD"],
    "PREFECT_API_AUTH_STRING": SECRETS["PREFECT_SERVER_API_AUTH_STRING"],
}


@dataclass(frozen=True)
class Running:
    """A `pipeline up` that has said where its servers are."""

    project: Project
    process: subprocess.Popen[bytes]
    log: Path
    mlflow: str
    prefect: str

    @property
    def file(self) -> Path:
        return self.project.path / ".pipeline/stack.json"

    def parts(self) -> dict[str, psutil.Process]:
        """The process of each part by its module."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                _, is_part, arguments = " ".join(child.cmdline()).partition("pipeline.process_lifetime ")
                if is_part:  # which a process between its start and its program is not yet
                    found[arguments.split()[0]] = child
        return found

    @property
    def auth(self) -> str:
        """User and password of Prefect's server, which `pipeline up` made."""
        return (self.project.path / AUTH_FILE).read_text().strip()

    @property
    def credentials(self) -> dict[str, str]:
        """The header of a request that Prefect's server lets in."""
        return {"Authorization": f"Basic {b64encode(self.auth.encode()).decode()}"}

    def is_well(self) -> bool:
        return all(answers(f"{address}/health") for address in (self.mlflow, self.prefect))


@contextmanager
def running_stack(project: Project, directory: Path, *options: str, **environment: str) -> Iterator[Running]:
    mlflow, prefect = find_free_port(), find_free_port()
    command = ["python", "-m", "pipeline.cli", "up", "--mlflow-port", str(mlflow), "--prefect-port", str(prefect)]
    command += options
    log, file = directory / "up.log", project.path / ".pipeline/stack.json"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=project.path,
            env=project.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: file.exists() or process.poll() is not None, explain=log.read_text)
        assert process.poll() is None, log.read_text()
        stack = json.loads(file.read_text())
        assert stack == {
            "mlflow": f"http://127.0.0.1:{mlflow}",
            "prefect": f"http://127.0.0.1:{prefect}/api",
            "pid": process.pid,
            "auth_from_file": "PREFECT_SERVER_API_AUTH_STRING" not in environment,
        }
        yield Running(project, process, log, stack["mlflow"], stack["prefect"])
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def stack(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("up")
    with running_stack(template.copy_to(directory / "project"), directory, **CLOSED_PROXY) as running:
        yield running


def test_it_says_where_its_servers_answer_and_takes_little_memory(stack: Running) -> None:
    assert stack.is_well()
    for address in (stack.mlflow, stack.prefect.removesuffix("/api")):
        assert f"responds: {address}" in stack.log.read_text()
    leader = psutil.Process(stack.process.pid)
    memory = {process.pid: process.memory_full_info().pss for process in (leader, *leader.children(recursive=True))}
    assert sum(memory.values()) < MOST_MEMORY


def test_runs_through_the_server_and_beside_it_are_one_record(stack: Running, tmp_path: Path) -> None:
    project = stack.project
    project.set_params(**{"train.seed": 9})
    output = project.run("python", "-m", "pipeline.cli", "run", **CLOSED_PROXY).stdout
    assert stack.mlflow in output
    assert "continuing without it" not in output
    assert aliases_of(project) == {("tiny", "champion"): "1", ("tiny", "challenger"): "2"}

    # Version 1, the template's, was made without a server; version 2 just now through it.
    from mlflow.artifacts import download_artifacts

    found = []
    for store in (locate(project.path), locate_unserved(project.path)):
        client = open_store(store)
        experiment = client.get_experiment_by_name("tiny")
        for number in ("1", "2"):
            version = client.get_model_version("tiny", number)
            target = tmp_path / f"{len(found)}"
            target.mkdir()
            with as_default(store):
                download_artifacts(version.source, dst_path=str(target))
            assert file_digest(target / "data/model.keras") == version.tags["model.sha256"]
            found.append((store.is_server, experiment.artifact_location, number, version.run_id))
    assert [is_server for is_server, *_ in found] == [True, True, False, False]
    assert [rest for _, *rest in found[:2]] == [rest for _, *rest in found[2:]]


def test_the_flow_is_recorded_by_the_prefect_server(stack: Running) -> None:
    query = urllib.request.Request(
        f"{stack.prefect}/flow_runs/count",
        data=b"{}",
        headers={"Content-Type": "application/json", **stack.credentials},
    )
    with urllib.request.urlopen(query) as before:
        count = int(before.read())
    stack.project.run("python", "-m", "pipeline.cli", "run", "--until", "ingest")
    with urllib.request.urlopen(query) as after:
        assert int(after.read()) == count + 1
    (script,) = read_blocks("docs/servers.md")
    listed = stack.project.run("bash", "-euc", script.replace("http://127.0.0.1:4200/api", stack.prefect)).stdout
    assert "retrain/retrain" in listed


# What a hostile page, or another user of this machine, would do: have the runner execute a command.
ATTACK = """
async (api, steps) => {
  const post = async (path, content) => {
    // A blob has no Content-Type: it needs no preflight, and Prefect takes it as JSON.
    const answer = await fetch(api + path, {method: "POST", body: new Blob([JSON.stringify(content)])});
    return [answer.status, answer.ok ? await answer.json() : {}];
  };
  const listen = new Promise(resolve => {
    const socket = new WebSocket(api.replace("http", "ws") + "/events/in");
    socket.onopen = () => resolve("open");
    socket.onerror = () => resolve("refused");
  });
  try {
    const [, flow] = await post("/flows/", {name: "train"});
    const entrypoint = "pipeline.servers.train_flow.train";
    const changed = {name: "train", flow_id: flow.id, entrypoint, pull_steps: steps};
    const [, deployment] = await post("/deployments/", changed);
    const [status] = await post(`/deployments/${deployment.id}/create_flow_run`, {});
    return [String(status), await listen];
  } catch (error) {
    return [String(error), await listen];
  }
}
"""


@contextmanager
def served_page(directory: Path) -> Iterator[int]:
    """An empty page on a port of its own: another origin."""
    (directory / "index.html").write_text("<title>hostile</title>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_nothing_runs_that_a_hostile_page_sends(stack: Running, tmp_path: Path) -> None:
    """By a page of a foreign name, one of another port of this machine, and one whose name leads to the server."""
    wait_until(lambda: "serving monitor-data, retrain, train" in stack.log.read_text(), explain=stack.log.read_text)
    mark = tmp_path / "mark"
    steps = [{"prefect.deployments.steps.run_shell_script": {"script": f"touch {mark}"}}]
    known = partial(httpx.request, headers=stack.credentials, timeout=60)
    before = known("POST", f"{stack.prefect}/flow_runs/count", json={}).json()
    with served_page(tmp_path) as port, open_browser("--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        page = browser.new_page()
        for origin in (f"http://evil.example:{port}", f"http://127.0.0.1:{port}"):
            page.goto(origin)
            attacked = page.evaluate(f"([api, steps]) => ({ATTACK})(api, steps)", [stack.prefect, steps])
            assert attacked == ["TypeError: Failed to fetch", "refused"]
        for address in (stack.prefect.removesuffix("/api"), stack.mlflow):
            rebound = page.goto(address.replace("127.0.0.1", "evil.example"))
            assert rebound
            assert rebound.status == 403
        # Whom the server belongs to comes in with the line of the file.
        page.goto(stack.prefect.removesuffix("/api"), timeout=PATIENCE)
        page.get_by_role("textbox").fill(stack.auth, timeout=PATIENCE)
        page.keyboard.press("Enter")
        expect(page.get_by_text("Flow Runs").first).to_be_visible(timeout=PATIENCE)
    deployment = known("GET", f"{stack.prefect}/deployments/name/train/train").json()
    assert not deployment["pull_steps"]
    assert known("POST", f"{stack.prefect}/flow_runs/count", json={}).json() == before
    assert not mark.exists()


def test_a_stranger_and_a_foreign_host_or_origin_are_refused_by_both_servers(stack: Running) -> None:
    foreign = [{"Origin": "https://evil.example"}, {"Origin": "http://127.0.0.1:1"}, {"Host": "evil.example"}]
    deployments, experiments = f"{stack.prefect}/deployments/filter", f"{stack.mlflow}/api/2.0/mlflow/experiments"
    for headers in ({}, {"Content-Type": "text/plain"}, {"Authorization": "Basic cGlwZWxpbmU6"}):
        assert httpx.post(deployments, content="{}", headers=headers).status_code == 401
    for headers in foreign:
        assert httpx.post(deployments, json={}, headers=stack.credentials | headers).status_code == 403
        assert httpx.get(f"{experiments}/search?max_results=1", headers=headers).status_code == 403
        assert httpx.post(f"{experiments}/create", json={"name": "evil"}, headers=headers).status_code == 403
    assert httpx.get(f"{experiments}/search?max_results=1", headers={"Host": "10.evil.example"}).status_code == 403
    assistant = f"{stack.mlflow}/ajax-api/3.0/mlflow/assistant/config"  # which would execute commands
    assert [httpx.get(assistant).status_code, httpx.put(assistant, json={}).status_code] == [403, 403]
    elsewhere = {"name": "evil", "artifact_location": "file:///tmp/elsewhere"}  # to read and write files there
    assert httpx.post(f"{experiments}/create", json=elsewhere).status_code == 400
    assert httpx.post(deployments, json={}, headers=stack.credentials).status_code == 200
    assert httpx.get(f"{experiments}/search?max_results=1").status_code == 200

    assert (stack.project.path / AUTH_FILE).stat().st_mode & 0o777 == 0o600
    assert f"paste the line in {stack.project.path / AUTH_FILE}" in stack.log.read_text()
    leader = psutil.Process(stack.process.pid)
    told = [" ".join(process.cmdline()) for process in (leader, *leader.children(recursive=True))]
    told += [stack.log.read_text(), stack.file.read_text(), stack.project.run("git", "status", "--short").stdout]
    assert not [text for text in told if stack.auth.partition(":")[2] in text]
    assert ".pipeline" not in told[-1]


def test_killed_servers_come_back_where_they_were_and_nothing_is_lost(stack: Running) -> None:
    project, before = stack.project, stack.parts()
    assert before.keys() == {
        "pipeline.servers.mlflow_server",
        "pipeline.flows.prefect_server",
        "pipeline.servers.runner",
    }
    running = project.start("python", "-m", "pipeline.cli", "run", "--force", "train")
    stage_process(project, running, "train")
    for part in before.values():
        part.kill()
    wait_until(lambda: not stack.is_well(), explain=stack.log.read_text)
    result = project.run("python", "-m", "pipeline.cli", "versions")
    assert result.stdout.count("continuing without it, on the same records") == 1
    output, _ = running.communicate(timeout=WAIT_SECONDS)
    assert running.returncode == 0 or "pipeline run" in output  # it went on, or says how to
    assert "Traceback" not in output

    wait_until(lambda: stack.is_well() and stack.parts().keys() == before.keys(), explain=stack.log.read_text)
    after = stack.parts()
    assert not {process.pid for process in after.values()} & {process.pid for process in before.values()}
    output = project.run("python", "-m", "pipeline.cli", "run").stdout
    assert "continuing without it" not in output
    assert stack.mlflow in output
    assert "RUNNING" not in [status for _, status in runs_of(project)]
    assert aliases_of(project)["tiny", "champion"] == "1"


def test_a_second_one_is_refused(stack: Running) -> None:
    result = stack.project.run("python", "-m", "pipeline.cli", "up", check=False)
    assert result.returncode == 1
    assert f"process {stack.process.pid}" in result.stdout
    assert stack.file.exists()


def test_its_port_is_refused_to_another_project_with_its_owner(stack: Running, project: Project) -> None:
    port = stack.mlflow.rpartition(":")[2]
    result = project.run("python", "-m", "pipeline.cli", "up", "--mlflow-port", port, check=False)
    assert result.returncode == 1
    assert f"port {port} is in use" in result.stdout
    assert "pipeline.process_lifetime" in result.stdout or "uvicorn" in result.stdout
    result = project.run("python", "-m", "pipeline.cli", "up", "--host", "0.0.0.0", check=False)
    assert result.returncode == 1
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in result.stdout
    assert processes_of(project) == []


def test_ctrl_c_ends_all_of_it(stack: Running) -> None:
    os.killpg(stack.process.pid, signal.SIGINT)
    assert stack.process.wait(60) == 0, stack.log.read_text()
    assert processes_of(stack.project) == []
    assert not stack.file.exists()
    assert "Traceback" not in stack.log.read_text()
    result = stack.project.run("python", "-m", "pipeline.cli", "versions")
    assert "continuing without it" not in result.stdout  # it was ended, not lost
    assert "champion" in result.stdout


def test_moved_and_protected_it_is_found_and_a_kill_leaves_nothing(trained: Project, tmp_path: Path) -> None:
    before = file_digest(trained.path / "mlflow.db")
    with running_stack(trained, tmp_path, "--data", str(tmp_path / "data"), **SECRETS) as running:
        for address in (
            f"{running.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny",
            f"{running.prefect}/version",
        ):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(address)
        stranger = trained.run("python", "-m", "pipeline.cli", "versions", check=False)
        assert stranger.returncode == 1
        assert "MLFLOW_TRACKING_PASSWORD" in stranger.stdout
        wrong = CREDENTIALS | {"PREFECT_API_AUTH_STRING": "somebody:else"}
        for command in (["run"], ["schedule", "list"]):
            stranger = trained.run("python", "-m", "pipeline.cli", *command, check=False, **wrong)
            assert stranger.returncode == 1
            assert "PREFECT_API_AUTH_STRING" in stranger.stdout
            assert "Traceback" not in stranger.stdout
        known = trained.run("python", "-m", "pipeline.cli", "run", **CREDENTIALS)
        assert running.mlflow in known.stdout
        leader = psutil.Process(running.process.pid)
        told = [
            *(" ".join(process.cmdline()) for process in (leader, *leader.children(recursive=True))),
            running.log.read_text(),
            running.file.read_text(),
            known.stdout,
        ]
        assert not [secret for secret in SECRETS.values() for text in told if secret in text]

        data, prefect = tmp_path / "data", trained.home / "prefect/prefect.db"
        private = (running.file, data / "mlflow.db", data / "mlflow-users.db", prefect)
        assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
        running.process.kill()
        wait_until_idle(trained)
        assert running.file.exists()
    result = trained.run("python", "-m", "pipeline.cli", "versions")
    assert result.stdout.count("continuing without it, on the same records") == 1
    assert "champion" in result.stdout
    assert file_digest(trained.path / "mlflow.db") == before
