"""From a version back to what made it, and forth from data to versions, in a real MLflow store."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import TrackingError
from pipeline.files import file_digest, write_json
from pipeline.tracking.chain import find_by_commit, find_by_data, read_chain, trace
from pipeline.tracking.outputs import dvc_digest
from pipeline.tracking.sync import sync
from tests.integration.recorded import Workspace, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures


@pytest.fixture
def ingested(workspace: Workspace) -> Workspace:
    """A workspace whose `dvc.lock` tells of the stages before `train`, with one batch among the data."""
    for name in ("data/raw", "data/dataset", "data/incoming"):
        (workspace.root / name).mkdir()
        (workspace.root / name / "content").write_text(name)
    batch = {"outs": [{"path": "week 48 (1)", "md5": "b" * 32}]}
    (workspace.root / "data/incoming/week 48 (1).dvc").write_text(yaml.safe_dump(batch))
    workspace.lock("ingest", "data/incoming", "data/raw", "data/dataset")
    workspace.lock("validate", "reports/validation.json")
    workspace.lock(
        "split", "data/dataset", *(f"data/splits/{name}.parquet" for name in ("train", "validation", "test"))
    )
    return workspace


def enter(workspace: Workspace, model: bytes, **evaluation: Any) -> None:
    """Train, evaluate and register, and record each as it happens."""
    workspace.train(model)
    workspace.record_training()
    workspace.enter(model, **evaluation)


def chain(workspace: Workspace, version: str = "1") -> dict[str, dict[str, Any]]:
    return {link.name: dict(link.facts) for link in read_chain(trace(workspace.root, version, "garments"))}


def test_the_chain_leads_from_the_version_to_its_data(ingested: Workspace) -> None:
    write_json(ingested.root / "reports/validation.json", {"passed": True, "expectations": [{"passed": True}]})
    ingested.lock("validate", "reports/validation.json")
    ingested.git("init", "--quiet")
    ingested.git("add", "--all")
    ingested.git("commit", "--quiet", "--message", "start")
    (ingested.root / "params.yaml").write_text((ingested.root / "params.yaml").read_text() + "# edited\n")
    enter(ingested, b"one")
    found = chain(ingested, "champion")
    assert found["version"]["model.sha256"] == file_digest(ingested.outputs.model)
    assert found["run"]["id"] == ingested.runs()[0].info.run_id
    assert found["code"]["commit"] == ingested.git("rev-parse", "HEAD").strip()
    assert found["code"]["dirty"] is True
    assert found["code"]["diff"] == "source/changes.diff"
    assert found["params"]["preset"] == "mlp"
    assert found["environment"]["environment.lock"] == file_digest(ingested.root / "requirements.lock")
    assert found["data"]["ingest"]["data/raw"] == dvc_digest(ingested.root / "data/raw")
    assert found["data"]["split"]["data/splits/test.parquet"] == dvc_digest(ingested.outputs.split("test"))
    assert found["data"]["batches"] == {"week 48 (1)": "b" * 32}
    assert found["validation"] == {"passed": True, "expectations": "1 of 1 hold"}
    assert found["evaluation"]["test_accuracy"] == 0.75
    assert found["decision"]["decision"] == "champion"
    assert "reproduction" not in found


def test_versions_are_found_by_any_of_their_data(ingested: Workspace) -> None:
    enter(ingested, b"one")
    enter(ingested, b"two")
    for digest in (
        dvc_digest(ingested.root / "data/raw"),
        dvc_digest(ingested.root / "data/dataset")[:6],
        dvc_digest(ingested.outputs.split("train")),
        dvc_digest(ingested.outputs.split("test"))[:4],
        "b" * 32,
    ):
        assert [found.version for found in find_by_data(ingested.root, digest)] == ["1", "2"], digest
    assert find_by_data(ingested.root, "b" * 32)[0].by == ("batch week 48 (1)",)
    assert find_by_data(ingested.root, "b" * 32)[0].aliases == ("champion",)
    assert find_by_data(ingested.root, file_digest(ingested.outputs.model, "md5")) == []


def test_only_the_versions_of_a_commit_are_found_by_it(workspace: Workspace) -> None:
    workspace.git("init", "--quiet")
    commits = []
    for model in (b"one", b"two"):
        workspace.git("add", "--all")
        workspace.git("commit", "--quiet", "--allow-empty", "--message", model.decode())
        commits.append(workspace.git("rev-parse", "HEAD").strip())
        enter(workspace, model)
    assert [found.version for found in find_by_commit(workspace.root, commits[1][:10])] == ["2"]


def test_nothing_is_said_of_data_that_the_lock_does_not_tell_of(ingested: Workspace) -> None:
    (ingested.root / "data/dataset/content").write_text("of another ingest, after which only `train` was run")
    ingested.lock("ingest", "data/raw", "data/dataset")
    enter(ingested, b"one")
    assert "data.raw" not in ingested.runs()[0].data.tags
    assert chain(ingested)["data"].keys() == {"read"}
    assert find_by_data(ingested.root, dvc_digest(ingested.root / "data/dataset")) == []


def test_a_batch_that_came_after_ingest_is_not_said_to_be_in_the_data(ingested: Workspace) -> None:
    late = {"outs": [{"path": "late", "md5": "c" * 32}]}
    (ingested.root / "data/incoming/late.dvc").write_text(yaml.safe_dump(late))
    enter(ingested, b"one")
    assert find_by_data(ingested.root, "c" * 32) == []
    assert find_by_data(ingested.root, dvc_digest(ingested.root / "data/raw")) != []


def test_a_rebuilt_run_tells_of_its_data_and_of_no_code(ingested: Workspace, tmp_path: Path, empty_store: Path) -> None:
    ingested.git("init", "--quiet")
    ingested.git("add", "--all")
    ingested.git("commit", "--quiet", "--message", "start")
    enter(ingested, b"one")
    colleague = ingested.copy_outputs(tmp_path / "colleague", empty_store)
    sync(colleague.root)
    found = chain(colleague)
    assert "rebuilt" in found["run"]
    assert "code" not in found
    assert found["data"] == chain(ingested)["data"]


@pytest.mark.parametrize(("version", "name"), [("7", "garments"), ("nobody", "garments"), ("1", "shoes")])
def test_what_is_not_there_is_an_error_that_names_what_is(workspace: Workspace, version: str, name: str) -> None:
    enter(workspace, b"one")
    with pytest.raises(TrackingError, match="expected: +(1, champion|one of: garments)"):
        trace(workspace.root, version, name)


def test_too_short_a_prefix_is_refused(workspace: Workspace) -> None:
    with pytest.raises(TrackingError, match="too short"):
        find_by_data(workspace.root, "abc")
