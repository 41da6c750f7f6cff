"""The registry in a real MLflow store on SQLite."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from mlflow.artifacts import download_artifacts

from pipeline.data import table
from pipeline.data.image_background import measure_ground
from pipeline.events import EVENTS
from pipeline.files import file_digest, write_json
from pipeline.models.contract import read_contract
from pipeline.registry import apply_champion_rule, registration
from pipeline.registry.load_version import download_file, find_model
from pipeline.registry.registration import current_name, judged_versions
from pipeline.tracking.logged_models import CONTRACT_TAG, INT8_TAG, MODEL_FILES, MODEL_TAG, OUTPUT_PATHS
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.store import locate
from tests.conftest import REPOSITORY
from tests.integration.recorded import CLASSES, Workspace, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures


def test_the_first_model_serves_and_one_that_is_no_better_waits(workspace: Workspace) -> None:
    assert workspace.enter(b"one").decision.outcome == "champion"
    assert workspace.aliases("garments") == {"champion": "1"}
    assert workspace.enter(b"two", accuracy=0.99).decision.outcome == "challenger"
    assert workspace.aliases("garments") == {"champion": "1", "challenger": "2"}
    assert workspace.enter(b"three", accuracy=0.99).aliases == ("challenger",)
    assert workspace.aliases("garments") == {"champion": "1", "challenger": "3"}


def test_a_version_says_what_it_is(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.record_training()
    workspace.evaluate()
    registration = workspace.enter(b"one")
    (run,) = workspace.runs()
    (version,) = workspace.versions("garments")
    assert version.run_id == run.info.run_id
    assert version.tags[MODEL_TAG] == file_digest(workspace.outputs.model)
    for split in ("train", "validation", "test"):
        assert version.tags[f"data.{split}"] == file_digest(workspace.outputs.split(split), "md5")
    assert version.tags["gate"] == "passed"
    assert version.tags["decision"] == "champion"
    assert version.description.startswith(registration.decision.reason)
    assert "Accuracy **75.00%** on 6 test images" in version.description
    assert "weakest class Bag" in version.description
    assert {"decision": "champion", "registry.version": "1"}.items() <= run.data.tags.items()
    assert version.tags["decision.reason"] == registration.decision.reason
    assert str(registration) == (
        "garments version 1 (champion). Version 1 becomes the champion: it is the first of its name to pass the "
        "absolute gate."
    )


def test_a_version_holds_the_model_file_itself(workspace: Workspace, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    workspace.enter(b"one")
    source = workspace.versions("garments")[0].source
    found = download_artifacts(source, dst_path=str(tmp_path), tracking_uri=locate().uri)
    assert (Path(found) / "data/model.keras").read_bytes() == b"one"


def test_a_version_knows_the_ground_of_its_training_images(workspace: Workspace, tmp_path: Path) -> None:
    workspace.enter(b"one")
    images, _ = table.read_images(workspace.outputs.split("validation"))
    for name in ("train", "validation"):
        workspace.outputs.split(name).unlink()
    (version,) = workspace.versions("garments")
    model = find_model(workspace.client, version)
    contract = read_contract(download_file(locate(), model, version, CONTRACT_TAG, tmp_path))
    assert contract.ground == measure_ground(images) > 0


def test_a_version_has_the_digests_of_all_its_files(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.record_training()
    workspace.enter(b"one")
    (version,), (run,) = workspace.versions("garments"), workspace.runs()
    for tag, path in OUTPUT_PATHS.items():
        assert version.tags[tag] == run.data.tags[tag] == file_digest(workspace.root / path)


def test_an_int8_file_is_added_to_a_version_that_was_registered_without_one(workspace: Workspace) -> None:
    workspace.train(b"one", int8=False)
    workspace.evaluate()
    workspace.register()
    (before,) = workspace.versions("garments")
    assert [tag for tag in OUTPUT_PATHS if tag not in before.tags] == [INT8_TAG]

    registration = workspace.enter(b"one")
    (after,) = workspace.versions("garments")
    assert (registration.version, registration.is_new) == (str(before.version), False)
    assert after.tags == before.tags | {INT8_TAG: file_digest(workspace.root / OUTPUT_PATHS[INT8_TAG])}
    folder = workspace.client.get_model_version_download_uri("garments", after.version)
    assert file_digest(Path(download_artifacts(f"{folder}/{MODEL_FILES[INT8_TAG]}"))) == after.tags[INT8_TAG]
    workspace.register()
    assert workspace.versions("garments")[0].tags == after.tags


def test_a_model_without_a_contract_is_registered_with_its_keras_file(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.forget_contract()
    workspace.evaluate()
    assert workspace.register().decision.outcome == "champion"
    (version,) = workspace.versions("garments")
    assert [tag for tag in OUTPUT_PATHS if tag in version.tags] == [MODEL_TAG]


def test_a_contract_of_another_model_is_not_registered(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.outputs.model.write_bytes(b"two")  # as after the checkout of a commit without contracts
    workspace.evaluate()
    workspace.register()
    (version,) = workspace.versions("garments")
    assert [tag for tag in OUTPUT_PATHS if tag in version.tags] == [MODEL_TAG]


def test_the_same_model_is_found_and_not_judged_again(workspace: Workspace) -> None:
    workspace.enter(b"one")
    workspace.enter(b"two")
    again = workspace.enter(b"one")
    assert (again.version, again.is_new, again.decision.outcome) == ("1", False, "champion")
    assert len(workspace.versions("garments")) == 2
    assert workspace.aliases("garments") == {"champion": "1", "challenger": "2"}


def test_an_alias_that_somebody_moved_stays_where_it_is(workspace: Workspace) -> None:
    workspace.enter(b"one")
    workspace.enter(b"two")
    workspace.client.set_registered_model_alias("garments", "champion", "2")
    workspace.enter(b"one")
    assert workspace.aliases("garments")["champion"] == "2"


def test_a_rejected_model_is_recorded_and_not_registered(workspace: Workspace) -> None:
    registration = workspace.enter(b"one", passed=False)
    assert registration.version is None
    assert registration.decision.outcome == "rejected"
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["decision"] == "rejected"
    assert workspace.client.search_registered_models() == []
    workspace.enter(b"one", passed=False)
    (event,) = map(json.loads, (workspace.root / EVENTS).read_text().splitlines())  # once for the same model
    assert (event["kind"], event["dataset"]) == ("model.rejected", "garments")
    assert event["evidence"] == {"outcome": "rejected", "reason": registration.decision.reason}


def test_a_rejected_model_that_passes_under_other_thresholds_is_registered(workspace: Workspace) -> None:
    workspace.enter(b"one", passed=False)
    assert workspace.enter(b"one", passed=True).version == "1"
    (run,) = workspace.runs()
    assert run.data.tags["decision"] == "champion"


def test_a_version_stays_when_thresholds_rise_above_it(workspace: Workspace) -> None:
    workspace.enter(b"one")
    registration = workspace.enter(b"one", passed=False)
    assert registration.decision.outcome == "rejected"
    assert "Version 1, which passed other thresholds, stays registered" in str(registration)
    assert workspace.aliases("garments") == {"champion": "1"}


def test_a_registration_that_was_cut_off_is_completed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(apply_champion_rule, "move_alias", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        workspace.enter(b"one")
    assert workspace.aliases("garments") == {}
    registration = workspace.register()
    assert (registration.version, registration.is_new) == ("1", True)
    assert workspace.aliases("garments") == {"champion": "1"}


def test_a_question_of_yes_or_no_has_a_name_of_its_own(workspace: Workspace) -> None:
    workspace.enter(b"one")
    workspace.train(b"two", loss="binary_crossentropy", classes=["other", "Bag or T-shirt/top"])
    workspace.evaluate(classes=("other", "Bag or T-shirt/top"))
    registration = workspace.register()
    assert registration.name == "garments-is-bag-or-t-shirt-top"
    assert registration.decision.outcome == "champion"
    assert workspace.aliases("garments") == {"champion": "1"}
    (version,) = workspace.versions(registration.name)
    model = workspace.client.get_logged_model(version.source.removeprefix("models:/"))
    described = yaml.safe_load((Path(model.artifact_location.removeprefix("file://")) / "MLmodel").read_text())
    assert '"shape": [-1, 4, 5]' in described["signature"]["inputs"]
    assert '"shape": [-1, 1]' in described["signature"]["outputs"]


def test_a_task_over_all_classes_keeps_the_name_of_the_dataset(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.evaluate(classes=CLASSES)
    assert registration.registered_name(workspace.outputs) == "garments"


def test_the_workspace_keeps_nothing_that_a_registry_assigns(workspace: Workspace) -> None:
    workspace.enter(b"one")
    registration.write_registration(workspace.outputs)
    first = workspace.outputs.registration.read_bytes()
    workspace.enter(b"two")
    workspace.enter(b"one")
    registration.write_registration(workspace.outputs)
    assert workspace.outputs.registration.read_bytes() == first
    assert json.loads(first) == {
        "model": file_digest(workspace.outputs.model),
        "name": "garments",
        "gate": "passed",
    }


@pytest.mark.parametrize(
    ("dataset", "registered", "current"),
    [
        ("shoes", "shoes", "shoes"),
        ("shoes", "shoes-local-1a2b3c4d", "shoes-local-1a2b3c4d"),
        ("shoes", "shoes-local-1a2b3c4d-is-sandal", "shoes-local-1a2b3c4d-is-sandal"),
        ("shoes", "shoes-is-sandal-or-boot", "shoes-is-sandal-or-boot"),
        ("shoes", "shoes-small", "shoes"),  # another dataset, whose name begins alike
        ("shoes", "shoes-small-is-sandal", "shoes"),
        ("shoes", "shoes-local-files", "shoes"),
        ("shoes", "shoes-is-new", "shoes"),  # the catalogue has a dataset of that name
        ("shoes-is-new", "shoes-is-new", "shoes-is-new"),
        ("shoes-is-new", "shoes-is-new-is-sandal", "shoes-is-new-is-sandal"),
        ("shoes", "shoes-is-new-is-sandal", "shoes"),
    ],
)
def test_the_current_name_is_one_of_the_datasets_own(
    tmp_path: Path, dataset: str, registered: str, current: str
) -> None:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["dataset"]["name"] = dataset
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    catalog = shutil.copytree(REPOSITORY / "data/catalog", tmp_path / "data/catalog")
    for name in ("shoes", "shoes-small", "shoes-is-new"):
        shutil.copy(catalog / "mnist.yaml", catalog / f"{name}.yaml")
    write_json(Outputs(tmp_path).registration, {"name": registered})
    assert current_name(tmp_path) == current


def test_the_current_name_is_known_without_a_registration(workspace: Workspace) -> None:
    """An experiment leaves none."""
    workspace.train(b"a model")
    workspace.evaluate(classes=("other", "Bag or Dress"))
    params = yaml.safe_load((workspace.root / "params.yaml").read_text())
    params["dataset"]["name"] = "garments"
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(params))
    assert current_name(workspace.root) == "garments-is-bag-or-dress"


def test_the_judged_versions_are_known_by_their_decision_and_not_by_their_time(workspace: Workspace) -> None:
    assert judged_versions(workspace.root) == set()
    workspace.enter(b"one")
    cut_off = workspace.enter(b"two")
    workspace.client.delete_model_version_tag("garments", str(cut_off.version), apply_champion_rule.DECISION_TAG)
    assert judged_versions(workspace.root) == {("garments", "1")}
