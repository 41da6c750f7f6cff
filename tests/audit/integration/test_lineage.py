"""Lineage of versions, and versions found by their data or commit, in a real MLflow store."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.audit.lineage import describe_lineage, find_descendants, find_lineage
from pipeline.audit.original_run import read_recorded_run, record_verdict
from pipeline.audit.verdict import Verdict
from pipeline.data.applied_corrections import Applied
from pipeline.errors import TrackingError
from pipeline.files import file_digest, write_json
from pipeline.registry.sync import sync
from pipeline.tracking.logged_models import OUTPUT_PATHS
from pipeline.tracking.stage_outputs import EVALUATION, TRAINING, dvc_digest
from tests.integration.recorded import Workspace, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures


@pytest.fixture
def ingested(workspace: Workspace) -> Workspace:
    """A workspace whose `dvc.lock` has the stages before `train`, with one batch in the data."""
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


def enter(workspace: Workspace, model: bytes) -> None:
    """Train, evaluate and register, and record each as it happens."""
    workspace.train(model)
    workspace.record_training()
    workspace.enter(model)


def commit_all(workspace: Workspace, message: str = "start") -> str:
    """Returns the SHA-1 of a commit of everything."""
    workspace.git("init", "--quiet")
    workspace.git("add", "--all")
    workspace.git("commit", "--quiet", "--allow-empty", "--message", message)
    return workspace.git("rev-parse", "HEAD").strip()


def describe(workspace: Workspace, version: str = "1") -> dict[str, dict[str, Any]]:
    return describe_lineage(find_lineage(workspace.root, version, "garments"))


def find_numbers(workspace: Workspace, **wanted: str) -> list[str]:
    return [found.version for found in find_descendants(workspace.root, **wanted)]


def test_lineage_describes_everything_from_the_version_to_its_data(ingested: Workspace) -> None:
    corrections = [
        asdict(Applied("train", "Shirt", label, who, 2)) for label, who in (("Coat", "reader-1"), ("", "reader-2"))
    ]
    report = {"passed": True, "expectations": [{"passed": True}], "corrections": corrections}
    write_json(ingested.root / "reports/validation.json", report)
    ingested.lock("validate", "reports/validation.json")
    commit = commit_all(ingested)
    (ingested.root / "params.yaml").write_text((ingested.root / "params.yaml").read_text() + "# edited\n")
    enter(ingested, b"one")
    found = describe(ingested, "champion")
    assert found["version"]["model.sha256"] == file_digest(ingested.outputs.model)
    assert found["run"]["id"] == ingested.runs()[0].info.run_id
    assert found["code"]["commit"] == commit
    assert found["code"]["dirty"] is True
    assert found["code"]["diff"] == "source/changes.diff"
    assert found["params"]["preset"] == "mlp"
    assert found["environment"]["environment.lock"] == file_digest(ingested.root / "requirements.lock")
    assert found["data"]["ingest"]["data/raw"] == dvc_digest(ingested.root / "data/raw")
    assert found["data"]["split"]["data/splits/test.parquet"] == dvc_digest(ingested.outputs.split("test"))
    assert found["data"]["batches"] == {"week 48 (1)": "b" * 32}
    counted = {"by class": {"Shirt removed": 2, "Shirt to Coat": 2}, "by person": {"reader-1": 2, "reader-2": 2}}
    assert found["validation"] == {"passed": True, "expectations": "1 of 1 passed", "corrections": counted}
    assert found["evaluation"]["test_accuracy"] == 0.75
    assert found["decision"]["decision"] == "champion"
    assert "reproduction" not in found


def test_a_recorded_run_has_the_code_and_the_outputs_of_a_version(ingested: Workspace, tmp_path: Path) -> None:
    commit_all(ingested)
    (ingested.root / "params.yaml").write_text((ingested.root / "params.yaml").read_text() + "# edited\n")
    enter(ingested, b"one")
    lineage = find_lineage(ingested.root, "1", "garments")
    recorded = read_recorded_run(lineage, tmp_path)
    assert b"# edited" in recorded.diff
    assert recorded.outputs["ingest"]["data/raw"] == dvc_digest(ingested.root / "data/raw")
    assert recorded.outputs["train"] == {
        **{path: file_digest(ingested.root / path) for path in OUTPUT_PATHS.values()},
        TRAINING: dvc_digest(ingested.outputs.training),
    }
    assert recorded.outputs["evaluate"] == {EVALUATION: dvc_digest(recorded.find_copy(EVALUATION))}
    record_verdict(lineage, Verdict("identical", "the same", ()), "log")
    assert describe(ingested)["reproduction"] == {"reproduction": "identical", "reproduction.reason": "the same"}


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
        assert find_numbers(ingested, data=digest) == ["1", "2"], digest
    by_batch = find_descendants(ingested.root, data="b" * 32)[0]
    assert (by_batch.by, by_batch.aliases) == (("batch week 48 (1)",), ("champion",))
    assert find_numbers(ingested, data=file_digest(ingested.outputs.model, "md5")) == []


def test_only_the_versions_of_a_commit_are_found_by_it(workspace: Workspace) -> None:
    commits = []
    for model in (b"one", b"two"):
        commits.append(commit_all(workspace, model.decode()))
        if model == b"two":
            (workspace.root / "params.yaml").write_text((workspace.root / "params.yaml").read_text() + "# edited\n")
        enter(workspace, model)
    found = [find_descendants(workspace.root, commit=commit)[0] for commit in (commits[0], commits[1][:10])]
    assert [(one.version, one.by) for one in found] == [("1", ("commit",)), ("2", ("commit, with changes",))]
    assert find_numbers(workspace, commit=commits[1]) == ["2"]
    assert find_numbers(workspace, commit="0" * 40) == []


def test_other_data_in_the_lock_is_not_attributed_to_the_version(ingested: Workspace) -> None:
    (ingested.root / "data/dataset/content").write_text("from a later ingest, after which only `train` was run")
    ingested.lock("ingest", "data/raw", "data/dataset")
    enter(ingested, b"one")
    assert "data.raw" not in ingested.runs()[0].data.tags
    assert describe(ingested)["data"].keys() == {"read"}
    assert find_numbers(ingested, data=dvc_digest(ingested.root / "data/dataset")) == []


def test_a_batch_that_was_added_after_ingest_is_not_part_of_the_data(ingested: Workspace) -> None:
    late = {"outs": [{"path": "late", "md5": "c" * 32}]}
    (ingested.root / "data/incoming/late.dvc").write_text(yaml.safe_dump(late))
    enter(ingested, b"one")
    assert find_numbers(ingested, data="c" * 32) == []
    assert find_numbers(ingested, data=dvc_digest(ingested.root / "data/raw")) == ["1"]


def test_a_rebuilt_run_has_its_data_and_no_code(ingested: Workspace, tmp_path: Path, empty_store: Path) -> None:
    commit_all(ingested)
    enter(ingested, b"one")
    colleague = ingested.copy_outputs(tmp_path / "colleague", empty_store)
    sync(colleague.root)
    found = describe(colleague)
    assert "rebuilt" in found["run"]
    assert "code" not in found
    assert found["data"] == describe(ingested)["data"]
    with pytest.raises(TrackingError, match="does not record what it was made from"):
        read_recorded_run(find_lineage(colleague.root, "1", "garments"), tmp_path)


@pytest.mark.parametrize(("version", "name"), [("7", "garments"), ("nobody", "garments"), ("1", "shoes")])
def test_a_missing_version_is_an_error_that_names_those_that_exist(
    workspace: Workspace, version: str, name: str
) -> None:
    enter(workspace, b"one")
    with pytest.raises(TrackingError, match="expected: +(1, champion|one of: garments)"):
        find_lineage(workspace.root, version, name)


def test_too_short_a_prefix_is_refused(workspace: Workspace) -> None:
    for wanted in ({"data": "abc"}, {"commit": "abc"}, {"data": ""}):
        with pytest.raises(TrackingError, match="too short"):
            find_descendants(workspace.root, **wanted)
