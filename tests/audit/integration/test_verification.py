"""Verification of registry, artifact store, outputs and `dvc.lock` by digest."""

import shutil
from pathlib import Path

import pytest

from pipeline.audit.verification import verify
from pipeline.files import file_digest
from pipeline.registry.registration import write_registration
from pipeline.tracking.store import locate
from tests.conftest import Project
from tests.integration.recorded import Workspace, empty_store, workspace
from tests.integration.test_dvc_integrity import damage

__all__ = ["empty_store", "workspace"]  # fixtures


@pytest.fixture
def registered(workspace: Workspace) -> Workspace:
    """A workspace with two versions. It contains the outputs of the second one."""
    for model in (b"one", b"two"):
        workspace.train(model)
        workspace.record_training()
        workspace.enter(model)
    return workspace


def problems(workspace: Workspace) -> list[tuple[str, str]]:
    """(subject, problem) of every finding; each has a remedy."""
    findings = verify(workspace.root).findings
    assert all(finding.expected and finding.found and finding.remedy for finding in findings)
    return [(finding.subject, finding.problem) for finding in findings]


def model_file(workspace: Workspace, version: str, name: str = "model.keras") -> Path:
    """The file that MLflow loads for a version, or another one of its model."""
    place = workspace.client.get_model_version_download_uri("garments", version)
    return Path(place.removeprefix("file://")) / "data" / name


def test_matching_records_have_no_findings(registered: Workspace) -> None:
    assert verify(registered.root).versions == 2
    assert problems(registered) == []


def test_an_empty_registry_has_no_findings(workspace: Workspace) -> None:
    assert (verify(workspace.root).versions, problems(workspace)) == (0, [])


def test_an_altered_model_file_is_found(registered: Workspace) -> None:
    model_file(registered, "1").write_bytes(b"evil")
    (finding,) = verify(registered.root).findings
    assert finding.subject == "garments version 1 (champion)"
    assert "not the one that was registered" in finding.problem
    assert file_digest(model_file(registered, "1")) in finding.found
    assert "pipeline rollback" in finding.remedy  # it is the champion
    assert "pipeline reproduce 1" in finding.remedy  # the workspace holds another model


@pytest.mark.parametrize("name", ["model.tflite", "contract.json"])
def test_an_altered_file_of_the_exported_model_is_found(registered: Workspace, name: str) -> None:
    for version in ("1", "2"):
        model_file(registered, version, name).write_bytes(b"evil")
    first, second = verify(registered.root).findings
    assert first.problem == f"the model file {name} in the artifact store is not the one that was registered"
    assert "pipeline rollback" in first.remedy
    assert f"copy models/{name} to that place" in second.remedy


def test_a_version_without_a_contract_has_no_findings(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.forget_contract()
    workspace.lock("train", "models/model.keras", "reports/training")
    workspace.evaluate()
    workspace.register()
    assert problems(workspace) == []


def test_a_lost_model_file_is_found_and_the_workspaces_file_offered(registered: Workspace) -> None:
    model_file(registered, "2").unlink()
    (finding,) = verify(registered.root).findings
    assert finding.subject == "garments version 2 (challenger)"
    assert "cannot be read" in finding.found
    assert "copy models/model.keras to that place" in finding.remedy


def test_an_altered_evaluation_is_found(registered: Workspace) -> None:
    run = registered.client.get_model_version("garments", "1").run_id
    artifacts = Path(registered.client.get_run(run).info.artifact_uri.removeprefix("file://"))
    (artifacts / "evaluation/metrics.json").write_text('{"accuracy": 1.0}')
    assert problems(registered) == [
        (
            "garments version 1 (champion)",
            "the evaluation in the artifact store is not the one that was recorded",
        )
    ]


def test_edited_and_missing_records_are_found(registered: Workspace) -> None:
    client = registered.client
    first, second = (client.get_model_version("garments", number) for number in ("1", "2"))
    client.set_tag(first.run_id, "model.sha256", "0" * 64)
    client.delete_run(second.run_id)
    assert problems(registered) == [
        ("garments version 1 (champion)", "its run made another model"),
        ("garments version 2 (challenger)", "its run is gone, and with it the record of its code and data"),
        ("models/model.keras", f"{locate(registered.root)} has no run that made it"),
    ]


def test_a_version_that_the_pipeline_did_not_register_is_found(registered: Workspace) -> None:
    model = registered.client.get_model_version("garments", "1").source
    registered.client.create_model_version("garments", model)
    assert problems(registered) == [
        ("garments version 3", "its model file cannot be checked, because it has no recorded digest")
    ]


def test_a_deleted_logged_model_is_found(registered: Workspace) -> None:
    model_id = registered.client.get_model_version("garments", "1").source.rpartition("/")[2]
    registered.client.delete_logged_model(model_id)
    assert ("garments version 1 (champion)", "its logged model is gone") in problems(registered)


def test_outputs_that_differ_from_the_lock_are_found(registered: Workspace) -> None:
    registered.outputs.model.write_bytes(b"three")
    registered.outputs.exported_model.write_bytes(b"three")
    shutil.rmtree(registered.outputs.evaluation)
    assert problems(registered) == [
        ("models/model.keras", "it is not the one in dvc.lock"),
        ("models/model.tflite", "it is not the one in dvc.lock"),
        ("reports/evaluation", "it is not the one in dvc.lock"),
    ]


def test_a_lock_whose_stages_read_different_models_is_found(registered: Workspace) -> None:
    registered.train(b"three")  # without the later stages
    registered.record_training()
    assert problems(registered) == [
        ("dvc.lock", "evaluate has not read the model that train wrote"),
        ("dvc.lock", "register has not read the model that train wrote"),
    ]


def test_a_model_without_a_version_is_found(registered: Workspace) -> None:
    registered.client.delete_model_version("garments", "2")
    write_registration(registered.outputs)
    assert problems(registered) == [("models/model.keras", "garments has no version of it")]


def test_verify_compares_the_data_and_the_cache_by_content(stand_ins: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stand_ins.path)
    for name, value in stand_ins.environment.items():
        monkeypatch.setenv(name, value)
    sound = verify(stand_ins.path)
    assert sound.objects > 6
    stored = damage(stand_ins, "out/split.txt")
    (stand_ins.path / "out/split.txt").unlink()
    stand_ins.run("dvc", "checkout", "split")  # which succeeds
    assert "up to date" in stand_ins.run("dvc", "status").stdout
    before = {(finding.subject, finding.problem) for finding in sound.findings}
    new = [finding for finding in verify(stand_ins.path).findings if (finding.subject, finding.problem) not in before]
    assert [finding.subject for finding in new] == ["out/split.txt", str(stored)]
    assert "of out/split.txt: DVC would restore it" in new[1].problem
    assert f"rm -f {stored}" in new[1].remedy
    assert verify(stand_ins.path, fast=True).findings == sound.findings


def test_a_moved_project_verifies(trained: Project, tmp_path: Path) -> None:
    moved = Project(trained.path.rename(tmp_path / "moved 옷"), trained.home)
    printed = moved.run("pipeline", "verify").stdout
    assert f"comes from {trained.path}" in printed
    assert "all agree" in printed
