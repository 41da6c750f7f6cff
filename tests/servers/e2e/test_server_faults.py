"""A server killed or hanging in the middle of a run, one started by hand and one of a deployment.

The runner's own end is the subject of `tests/integration/test_runner.py`.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import TEMPORARY_FAILURE
from pipeline.notices.send import URLS_VARIABLE
from tests.e2e import light
from tests.e2e.kills import lost_of, processes_of
from tests.processes import wait_until
from tests.servers.e2e.test_up import Running, running_stack
from tests.webhook import Endpoint, webhook

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("server faults")]

END_SECONDS = 300
IMPATIENT = {  # what a user may set, too: a server that does not answer is given up sooner
    "PREFECT_CLIENT_MAX_RETRIES": "1",
    "PREFECT_API_REQUEST_TIMEOUT": "2",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
}
# How a deployed run may end after that kill. Without Prefect's server the runner ends, and its flow runs with it.
ENDS = {"prefect": ("Completed", "Failed", "Crashed", "Cancelled"), "mlflow": ("Completed",)}
PIPELINE = ("python", "-m", "pipeline.cli")
PARTS = {
    "mlflow": "pipeline.servers.mlflow_server",
    "prefect": "pipeline.flows.prefect_server",
    "runner": "pipeline.servers.runner",
}


@pytest.fixture(scope="module")
def told() -> Iterator[Endpoint]:
    """Where the notices of deployed runs go."""
    with webhook() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def stack(told: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("server-faults")
    project = light.build(directory / "project", directory / "home")
    with running_stack(project, directory, **{URLS_VARIABLE: f"json://{told.address}"}) as running:
        yield running


def ask(stack: Running, path: str, **content: Any) -> Any:
    """What Prefect's server answers to a question; it may just be coming back."""
    request = urllib.request.Request(
        f"{stack.prefect}/{path}",
        json.dumps(content).encode() if content else None,
        {"Content-Type": "application/json", **stack.credentials},
    )
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.loads(answer.read())
        except OSError:
            assert time.monotonic() < deadline, stack.log.read_text()
            time.sleep(0.5)


def deploy(stack: Running, flow: str, **parameters: Any) -> str:
    """Start a flow run of a deployment, as a schedule does and Prefect's pages do, and return its id."""
    wait_until(lambda: "serving monitor-data, retrain, train" in stack.log.read_text(), explain=stack.log.read_text)
    deployment = ask(stack, f"deployments/name/{flow}/{flow}")["id"]
    return str(ask(stack, f"deployments/{deployment}/create_flow_run", parameters=parameters)["id"])


def end_of(stack: Running, run: str) -> tuple[str, str]:
    """The state in which a flow run ends, and its words."""
    final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
    wait_until(lambda: ask(stack, f"flow_runs/{run}")["state"]["type"] in final, explain=stack.log.read_text)
    state = ask(stack, f"flow_runs/{run}")["state"]
    return state["name"], state["message"] or ""


def kill(stack: Running, part: str) -> None:
    """Kill a part of the stack, and wait until another has taken its place."""
    process = stack.parts()[PARTS[part]]
    process.kill()
    wait_until(
        lambda: stack.parts().get(PARTS[part], process) != process and stack.is_well(), explain=stack.log.read_text
    )


@pytest.mark.parametrize(("model", "part"), [(2, "mlflow"), (3, "prefect")])
def test_a_run_by_hand_goes_on_or_stops_in_words(stack: Running, model: int, part: str) -> None:
    project = stack.project
    project.set_params(**{"train.seed": model})
    with light.held(project) as waits:
        running = project.start(*PIPELINE, "run")
        wait_until(lambda: waits() or running.poll() is not None, explain=stack.log.read_text)
        kill(stack, part)
    output, _ = running.communicate(timeout=END_SECONDS)
    assert "Traceback" not in output
    # Without Prefect's server a run may stop. Without MLflow's it waits until that is back, and ends as it would have.
    assert running.returncode == 0 or (part == "prefect" and "pipeline run" in output), output
    again = project.run(*PIPELINE, "run").stdout
    assert f"model     {light.DATASET} version" in again
    assert lost_of(project, [model]) == []


@pytest.mark.parametrize(("model", "part"), [(4, "prefect"), (6, "mlflow")])
def test_a_deployed_run_ends_in_a_state_and_the_next_one_is_right(
    stack: Running, told: Endpoint, model: int, part: str
) -> None:
    project = stack.project
    project.set_params(**{"train.seed": model})
    with light.held(project) as waits:
        first = deploy(stack, "train")
        wait_until(waits, explain=stack.log.read_text)
        kill(stack, part)
    name, message = end_of(stack, first)
    assert name in ENDS[part], message
    assert end_of(stack, deploy(stack, "train"))[0] == "Completed"
    assert lost_of(project, [model]) == []
    promotions = [message for message in told.taken if message["type"] == "success"]
    if part == "prefect":
        assert promotions == []  # this model waits
    else:
        (promoted,) = promotions
        assert promoted["title"].startswith(f"{light.DATASET} version ")
        assert promoted["title"].endswith(" is promoted to champion")
        assert f"training run: {stack.mlflow}/" in promoted["message"]


def test_servers_that_hang_stop_a_run_in_words_and_the_next_one_is_right(stack: Running) -> None:
    project = stack.project
    project.set_params(**{"train.seed": 8})
    servers = [stack.parts()[PARTS[part]] for part in ("mlflow", "prefect")]
    hung = [process for server in servers for process in (server, *server.children(recursive=True))]
    try:
        with light.held(project) as waits:
            running = project.start(*PIPELINE, "run", MLFLOW_TRACKING_URI=stack.mlflow, **IMPATIENT)
            wait_until(lambda: waits() or running.poll() is not None, explain=stack.log.read_text)
            for process in hung:
                process.suspend()
        output, _ = running.communicate(timeout=END_SECONDS)
    finally:
        for process in hung:
            process.resume()
    assert running.returncode == TEMPORARY_FAILURE, output
    assert "Prefect's server stopped answering during the run" in output
    assert f"the tracking server {stack.mlflow} " in output
    assert not [word for word in ("Traceback", "Service", "Error logging") if word in output], output
    wait_until(stack.is_well, explain=stack.log.read_text)
    project.run(*PIPELINE, "run")
    assert lost_of(project, [8]) == []


def test_servers_that_stay_away_stop_a_run_in_words_and_the_next_one_does_without(stack: Running) -> None:
    project = stack.project
    project.set_params(**{"train.seed": 7})
    with light.held(project) as waits:
        running = project.start(*PIPELINE, "run", MLFLOW_TRACKING_URI=stack.mlflow, **IMPATIENT)  # never done without
        wait_until(lambda: waits() or running.poll() is not None, explain=stack.log.read_text)
        stack.process.kill()
        wait_until(lambda: not stack.is_well(), explain=stack.log.read_text)
    output, _ = running.communicate(timeout=END_SECONDS)
    assert running.returncode != 0
    assert "Traceback" not in output
    assert stack.mlflow in output
    again = project.run(*PIPELINE, "run").stdout
    assert "continuing without it, on the same records" in again
    assert lost_of(project, [7]) == []
    assert processes_of(project) == []
