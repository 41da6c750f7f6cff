"""Training runs in a real MLflow store on SQLite."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import FAILURE, TEMPORARY_FAILURE, TrackingError
from pipeline.files import file_digest
from pipeline.registry.sync import Synced
from pipeline.tracking import parent_run_id, provenance
from pipeline.tracking.flow_runs import StageResult, flow_run
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.parent_run_id import PARENT_FILE_VARIABLE, read_parent_run, write_parent_run
from pipeline.tracking.stage_runs import log_evaluation, training_run
from pipeline.tracking.store import SETTINGS_AFTER_TIMEOUT, explained, locate, open_store, pages_command
from pipeline.tracking.training_runs import describe_data
from tests.conftest import REPOSITORY
from tests.integration.recorded import Workspace, empty_store, making_workspace, workspace

__all__ = ["empty_store", "workspace"]  # fixtures

# A training in a process of its own, which sends itself a signal once its run is open.
TRAINING = """
import os, signal, sys, time
from pathlib import Path
from pipeline.tracking.stage_runs import training_run
from tests.integration.recorded import Workspace

with training_run(Workspace(Path.cwd()).facts) as run:
    run.log_epoch(1, {"loss": 0.9})
    run._opened.result()
    os.kill(os.getpid(), signal.Signals[sys.argv[1]])
    time.sleep(60)
"""


def test_a_training_is_recorded_with_all_that_came_of_it(workspace: Workspace) -> None:
    workspace.train(b"a model")
    workspace.record_training()
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags[MODEL_TAG] == file_digest(workspace.outputs.model)
    assert run.data.params["preset"] == "mlp"
    assert run.data.params["widths"] == "[8]"
    assert run.data.tags["environment.lock"] == file_digest(Path("requirements.lock"))
    assert {"version.tensorflow", "version.keras", "version.python", "host.cpu", "host.threads"} <= run.data.tags.keys()
    history = workspace.client.get_metric_history(run.info.run_id, "validation_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.7), (2, 0.9), (3, 0.8)]
    assert run.data.metrics["best_epoch"] == 2
    assert run.data.metrics["best_validation_accuracy"] == 0.9
    assert run.data.metrics["best_validation_loss"] == 0.4
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    expected = {"training/history.csv", "training/settings.json", "data/validation.json", "data/split.json"}
    assert expected <= workspace.artifacts(run)
    (model,) = run.outputs.model_outputs
    assert workspace.client.get_logged_model(model.model_id).source_run_id == run.info.run_id


def test_epochs_can_be_seen_while_the_training_runs(workspace: Workspace) -> None:
    workspace.train(b"a model")
    with training_run(workspace.facts) as tracked:
        tracked.log_epoch(1, {"loss": 0.9})
        deadline = time.monotonic() + 60
        while not (seen := [run for run in workspace.runs() if "loss" in run.data.metrics]):
            assert time.monotonic() < deadline, "the epoch never arrived"
            time.sleep(0.05)
        assert seen[0].info.status == "RUNNING"
        assert MODEL_TAG not in seen[0].data.tags
        tracked.complete(workspace.outputs.model, workspace.root / "reports")


def test_more_params_than_mlflow_takes_at_once(workspace: Workspace) -> None:
    workspace.train(b"a model", **{f"p{number}": number for number in range(250)})
    workspace.record_training()
    assert workspace.runs()[0].data.params["p249"] == "249"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_what_ends_a_training_is_how_its_run_ends(
    workspace: Workspace, error: type[BaseException], status: str
) -> None:
    workspace.train(b"a model")
    with pytest.raises(error), training_run(workspace.facts):
        raise error
    assert workspace.runs()[0].info.status == status


def test_a_training_that_never_completes_is_not_finished(workspace: Workspace) -> None:
    workspace.train(b"a model")
    with training_run(workspace.facts):
        pass
    assert workspace.runs()[0].info.status == "FAILED"


def test_sigterm_closes_the_run(workspace: Workspace) -> None:
    workspace.train(b"a model")
    assert _train_until(signal.SIGTERM) == 128 + signal.SIGTERM
    (run,) = workspace.runs()
    assert run.info.status == "KILLED"
    assert run.data.metrics["loss"] == 0.9


def test_the_next_training_closes_the_run_of_one_that_was_killed(workspace: Workspace) -> None:
    workspace.train(b"a model")
    assert _train_until(signal.SIGKILL) == -signal.SIGKILL
    assert [run.info.status for run in workspace.runs()] == ["RUNNING"]
    with training_run(workspace.facts) as tracked:
        tracked.complete(workspace.outputs.model, workspace.root / "reports")
    assert [run.info.status for run in workspace.runs()] == ["FINISHED", "KILLED"]


def test_data_inputs_carry_the_digest_of_the_whole_file(workspace: Workspace) -> None:
    workspace.train(b"a model")
    workspace.record_training()
    (run,) = workspace.runs()
    inputs = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert inputs.keys() == {"train", "validation"}
    for name, dataset in inputs.items():
        assert dataset.digest == file_digest(workspace.outputs.split(name), "md5") == run.data.tags[f"data.{name}"]
        assert '"images": 6' in dataset.profile


def test_a_data_input_can_be_read_by_mlflow(workspace: Workspace) -> None:
    from mlflow.data.schema import TensorDatasetSchema

    schema = describe_data(workspace.outputs.split("train"), "train", "0").dataset.schema
    features = TensorDatasetSchema.from_dict(json.loads(schema)).features
    assert features.inputs[0].shape == (-1, 4, 5)


def test_an_evaluation_joins_the_newest_run_of_its_model(workspace: Workspace) -> None:
    workspace.train(b"one model")
    workspace.record_training()
    workspace.record_training()
    workspace.train(b"another model")
    workspace.record_training()
    workspace.train(b"one model")
    workspace.evaluate(accuracy=0.75)
    log_evaluation(workspace.outputs.model, workspace.outputs.evaluation)
    another, newest, oldest = workspace.runs()
    assert "test_accuracy" not in another.data.metrics.keys() | oldest.data.metrics.keys()
    assert newest.data.metrics["test_accuracy"] == 0.75
    assert "test_loss" not in newest.data.metrics  # it was not a number
    assert newest.data.tags["gate"] == "passed"
    assert "evaluation/metrics.json" in workspace.artifacts(newest)
    model = workspace.client.get_logged_model(newest.outputs.model_outputs[0].model_id)
    about = {metric.key: (metric.value, metric.dataset_name) for metric in model.metrics}
    assert about["test_accuracy"] == (0.75, "garments-test")


def test_an_evaluation_with_other_thresholds_replaces_the_former(workspace: Workspace) -> None:
    workspace.train(b"a model")
    workspace.record_training()
    for passed, gate in ((True, "passed"), (False, "rejected")):
        workspace.evaluate(passed=passed)
        log_evaluation(workspace.outputs.model, workspace.outputs.evaluation)
        (run,) = workspace.runs()
        assert run.data.tags["gate"] == gate
        assert json.loads(workspace.download(run, "evaluation/gate.json"))["passed"] is passed


def test_a_model_that_the_store_has_never_seen_gets_its_run_rebuilt(
    workspace: Workspace, tmp_path: Path, empty_store: Path
) -> None:
    workspace.train(b"a model")
    workspace.record_training()
    (recorded,) = workspace.runs()
    workspace.evaluate()
    colleague = workspace.copy_outputs(tmp_path / "colleague", empty_store)
    log_evaluation(colleague.outputs.model, colleague.outputs.evaluation)
    (rebuilt,) = colleague.runs()
    assert rebuilt.data.tags["restored"] == "true"
    assert rebuilt.info.status == "FINISHED"
    assert rebuilt.data.params == recorded.data.params
    history = colleague.client.get_metric_history(rebuilt.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.9), (2, 0.5), (3, 0.4)]
    assert rebuilt.data.tags[MODEL_TAG] == recorded.data.tags[MODEL_TAG]
    assert rebuilt.data.tags["data.train"] == recorded.data.tags["data.train"]
    assert "mlflow.source.git.commit" not in rebuilt.data.tags  # not known any more


def test_a_rebuilt_run_has_the_digests_that_dvc_recorded(workspace: Workspace) -> None:
    workspace.train(b"a model")
    trained_on = file_digest(workspace.outputs.split("train"), "md5")
    workspace.outputs.split("train").write_bytes(workspace.outputs.split("test").read_bytes())  # split has run again
    workspace.evaluate()
    log_evaluation(workspace.outputs.model, workspace.outputs.evaluation)
    assert workspace.runs()[0].data.tags["data.train"] == trained_on


def test_a_dirty_tree_is_recorded_so_that_it_can_be_had_again(workspace: Workspace, tmp_path: Path) -> None:
    workspace.git("init", "--quiet")
    (workspace.root / "code.py").write_text("a = 1\n")
    (workspace.root / "table.bin").write_bytes(bytes(range(256)))
    workspace.git("add", "--all")
    workspace.git("commit", "--quiet", "--message", "start")
    commit = workspace.git("rev-parse", "HEAD").strip()

    (workspace.root / "code.py").write_text("a = 2\n")
    (workspace.root / "table.bin").write_bytes(bytes(reversed(range(256))))
    (workspace.root / "a new file.py").write_text("b = 'é'\n")
    (workspace.root / "params.yaml").unlink()
    workspace.train(b"a model")
    status = workspace.git("status", "--porcelain")
    workspace.record_training()
    (run,) = workspace.runs()
    assert run.data.tags["mlflow.source.git.commit"] == commit
    assert run.data.tags["git.dirty"] == "true"
    assert workspace.git("status", "--porcelain") == status  # the index was left alone

    clone = tmp_path / "clone"
    workspace.git("clone", "--quiet", ".", str(clone))
    diff = workspace.download(run, "source/changes.diff")
    subprocess.run(["git", "apply", "-"], cwd=clone, input=diff, check=True)
    for name in ("code.py", "table.bin", "a new file.py"):
        assert (clone / name).read_bytes() == (workspace.root / name).read_bytes()
    assert not (clone / "params.yaml").exists()
    assert not (clone / "dvc.lock").exists()


def test_a_tree_is_not_dirty_by_dvc_lock(workspace: Workspace) -> None:
    workspace.git("init", "--quiet")
    workspace.lock("split")
    workspace.git("add", "--all")
    workspace.git("commit", "--quiet", "--message", "start")
    workspace.train(b"a model")
    workspace.record_training()
    (run,) = workspace.runs()
    assert run.data.tags["git.dirty"] == "false"
    assert workspace.download(run, "source/dvc.lock") == (workspace.root / "dvc.lock").read_bytes()
    assert "source/changes.diff" not in workspace.artifacts(run)


def test_files_too_large_for_the_diff_are_named(workspace: Workspace) -> None:
    workspace.git("init", "--quiet")
    workspace.git("add", "--all")
    workspace.git("commit", "--quiet", "--message", "start")
    (workspace.root / "forgotten.npz").write_bytes(bytes(provenance.LARGEST_UNTRACKED_FILE + 1))
    (workspace.root / "code.py").write_text("a = 1\n")
    tree = provenance.read_tree(workspace.root)
    assert tree is not None
    assert tree.left_out == ("forgotten.npz",)
    assert b"code.py" in tree.diff
    assert b"forgotten" not in tree.diff


def test_a_project_that_git_does_not_know_has_no_commit(workspace: Workspace, tmp_path: Path) -> None:
    assert provenance.read_tree(workspace.root) is None
    workspace.git("init", "--quiet")
    assert provenance.read_tree(workspace.root) is None  # no commit yet
    workspace.git("add", "requirements.lock")
    workspace.git("commit", "--quiet", "--message", "somebody else's repository")
    assert provenance.read_tree(workspace.root) is None  # this project is not in it
    workspace.train(b"a model")
    workspace.record_training()
    assert "mlflow.source.git.commit" not in workspace.runs()[0].data.tags


def test_a_worktree_records_in_the_main_repository(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.git("init", "--quiet")
    workspace.git("add", "--all")
    workspace.git("commit", "--quiet", "--message", "start")
    workspace.git("worktree", "add", "--quiet", str(tmp_path / "tree"))
    other = Workspace(tmp_path / "tree")
    monkeypatch.chdir(other.root)
    other.split()
    other.train(b"a model")
    other.record_training()
    assert not (other.root / "mlflow.db").exists()
    (run,) = workspace.runs()
    assert run.info.artifact_uri.startswith((workspace.root / "mlruns").as_uri())


def test_a_flow_lists_its_stages_above_its_training(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.train(b"a model")
    results = [StageResult("split", "unchanged", 0.0), StageResult("train", "ran", 4.5, "accuracy 0.9")]
    with flow_run("garments", {"flow.run": "brisk-otter"}) as tracked:
        monkeypatch.setenv(PARENT_FILE_VARIABLE, "flow-run")
        write_parent_run(Path("flow-run"), tracked.id)
        workspace.record_training()
        tracked.log_stages(results)
        tracked.log_result(Synced("0123", "4567").tags())
    training, flow = workspace.runs()
    assert training.data.tags["mlflow.parentRunId"] == flow.info.run_id
    assert training.info.experiment_id == flow.info.experiment_id
    assert flow.info.status == "FINISHED"
    assert flow.data.tags["stage.train"] == "ran"
    assert flow.data.tags["result.model"] == "0123"
    assert flow.data.metrics["seconds/train"] == 4.5
    assert flow.info.run_name == "trained"  # the store does not have the run of the result
    assert b"| train | ran | 4.5 | accuracy 0.9 |" in workspace.download(flow, "stages.md")


def test_a_flow_with_a_failed_stage_fails(workspace: Workspace) -> None:
    with flow_run("garments", {}) as tracked:
        tracked.log_stages([StageResult("validate", "failed", 1.0), StageResult("train", "not reached", 0.0)])
    with pytest.raises(KeyboardInterrupt), flow_run("garments", {}):
        raise KeyboardInterrupt
    assert [run.info.status for run in workspace.runs()] == ["KILLED", "FAILED"]


def test_a_flow_whose_record_is_gone_does_not_stop_a_training(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PARENT_FILE_VARIABLE, "flow-run")
    write_parent_run(Path("flow-run"), "0" * 32)
    workspace.train(b"a model")
    workspace.record_training()
    assert workspace.runs()[0].info.status == "FINISHED"
    assert "not in the tracking store" in capsys.readouterr().out


def test_a_stage_waits_until_its_flow_has_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_parent_run() is None
    file = tmp_path / "flow-run"
    monkeypatch.setenv(PARENT_FILE_VARIABLE, str(file))
    with ThreadPoolExecutor(1) as stage:
        waiting = stage.submit(read_parent_run)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.2)
        write_parent_run(file, "0f3a")
        assert waiting.result() == "0f3a"
    file.unlink()
    monkeypatch.setattr(parent_run_id, "WAIT_SECONDS", 0)
    assert read_parent_run() is None


def test_a_new_store_is_made_once_by_processes_that_ask_together(workspace: Workspace) -> None:
    (workspace.root / "mlflow.db").unlink()
    command = [sys.executable, "-m", "pipeline.tracking.store"]
    processes = [subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
    assert workspace.runs() == []
    assert [path.name for path in (workspace.root / ".pipeline").glob("mlflow*")] == []


def test_a_configured_store_is_made_once_by_clones_that_ask_together(workspace: Workspace, tmp_path: Path) -> None:
    clone, database = tmp_path / "clone", tmp_path / "for all" / "team.db"
    clone.mkdir()
    (clone / "dvc.yaml").touch()
    environment = _environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    command = [sys.executable, "-m", "pipeline.tracking.store"]
    processes = [
        subprocess.Popen(command, cwd=directory, env=environment, stderr=subprocess.PIPE, text=True)
        for directory in (workspace.root, clone)
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    assert not (clone / ".pipeline").exists()
    assert not (database.parent / ".pipeline").exists()  # which only its owner could enter
    former = os.umask(0o002)
    os.umask(former)
    assert stat.S_IMODE(database.stat().st_mode) == 0o644 & ~former  # others may share it


def test_mlflow_sends_no_telemetry(workspace: Workspace) -> None:
    workspace.train(b"a model")
    code = TRAINING.split("with")[0] + (
        "workspace = Workspace(Path.cwd())\n"
        "workspace.record_training()\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "sys.exit(get_telemetry_client() is not None)\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")  # nor does it print anything of its own


def test_a_folder_with_any_letters_has_its_records_and_files(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with making_workspace(tmp_path / "a folder, 100 %25 # 한글", empty_store) as made:
        made.train(b"a model")
        made.record_training()
        assert pages_command() != "mlflow ui"  # a bare `mlflow ui` makes an empty store beside it
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made.root}/mlflow.db")  # what the README says
        assert pages_command() == "mlflow ui"
        assert locate().database == made.root / "mlflow.db"  # the default one still: a backup finds it
        code = (
            "import mlflow; client = mlflow.MlflowClient()\n"
            "ids = [one.experiment_id for one in client.search_experiments()]\n"
            "for run in client.search_runs(ids): print(*[file.path for file in client.list_artifacts(run.info.run_id)])"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["data", "source", "training"]
    assert [path.name for path in tmp_path.iterdir()] == ["a folder, 100 %25 # 한글"]


def test_the_page_of_tasks_switches_telemetry_off_before_it_names_mlflow() -> None:
    text = (REPOSITORY / "docs/tasks.md").read_text()
    assert text.index("\nexport MLFLOW_DISABLE_TELEMETRY=true ") < text.index("\nmlflow ui ")


def test_a_server_that_does_not_answer_is_an_error_and_no_other_store_is_used(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.root / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret@127.0.0.1:9")
    workspace.train(b"a model")
    with pytest.raises(TrackingError, match="does not respond") as caught, training_run(workspace.facts) as tracked:
        tracked.complete(workspace.outputs.model, workspace.root / "reports")
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == TEMPORARY_FAILURE
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:99999")  # no port at all
    with pytest.raises(TrackingError, match="does not respond") as caught, training_run(workspace.facts):
        pass
    assert caught.value.exit_code == FAILURE
    assert not (workspace.root / "mlflow.db").exists()
    assert not (workspace.root / "mlruns").exists()


def test_a_server_that_hangs_is_given_up_and_not_waited_for_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Hanging(BaseHTTPRequestHandler):
        """Well to whoever asks, but it answers no other question."""

        def do_GET(self) -> None:
            if self.path == "/health":
                self.send_response(200)
                self.end_headers()
            else:
                asked.append(self.path)
                released.wait()

        def log_message(self, *_: object) -> None:
            pass

    released = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hanging)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setitem(SETTINGS_AFTER_TIMEOUT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    store = locate()
    client = open_store(store)
    try:
        for tries in (3, 4):
            with pytest.raises(TrackingError, match="stopped responding") as caught, explained(store):
                client.get_experiment_by_name("tiny")
            assert caught.value.exit_code == TEMPORARY_FAILURE
            assert len(asked) == tries
    finally:
        released.set()
        server.shutdown()
        server.server_close()


def test_a_damaged_store_is_named_at_once(workspace: Workspace) -> None:
    (workspace.root / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(
        TrackingError, match=r"mlflow\.db is damaged[\s\S]*restore [\s\S]*are lost[\s\S]*mv .*mlflow\.db"
    ):
        open_store(locate())


def test_a_locked_store_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.database_setup.BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="is locked"):
            open_store(locate())


def test_a_store_of_another_mlflow_version_is_named(workspace: Workspace) -> None:
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0'")
    with pytest.raises(TrackingError, match="is newer than the installed MLflow's"):
        open_store(locate())


def test_a_deleted_experiment_is_taken_up_again(workspace: Workspace) -> None:
    workspace.train(b"a model")
    workspace.record_training()
    workspace.client.delete_experiment(workspace.runs()[0].info.experiment_id)
    workspace.record_training()
    assert workspace.runs()[0].info.status == "FINISHED"


def _train_until(number: signal.Signals) -> int:
    command = [sys.executable, "-c", TRAINING, number.name]
    return subprocess.run(command, env=_environment(), check=False).returncode


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}
