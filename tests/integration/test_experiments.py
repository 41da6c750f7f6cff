"""The experiments' descriptions and views in a real MLflow store on SQLite."""

import json
from pathlib import Path

import pytest

from pipeline.tracking import experiments
from pipeline.tracking.experiments import KIND_TAG, NOTE_TAG, VIEW_TAG, experiment_id, read_link
from pipeline.tracking.store import locate
from tests.integration.recorded import Workspace, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures


def test_an_experiment_is_described_and_has_a_view(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client, store = workspace.client, locate(workspace.root)
    number = experiment_id(client, store, "garments")
    tags = client.get_experiment(number).tags
    assert tags[KIND_TAG] == "custom_model_development"
    assert f"](#/experiments/{number}/runs?viewStateShareKey=runs&" in tags[NOTE_TAG]
    assert "tags.`decision`" in json.loads(tags[VIEW_TAG])["selectedColumns"]
    assert len(tags[NOTE_TAG]) < 5_000
    assert read_link(workspace.root / "mlflow.db", "garments") == experiments.link(number)
    assert read_link(workspace.root / "mlflow.db", "hats") is None
    assert read_link(Path("missing.db").absolute(), "garments") is None

    # The second time, nothing is written, and MLflow is asked once.
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", lambda *_: pytest.fail("something was written"))
    assert experiment_id(client, store, "garments") == number


def test_an_experiment_of_an_earlier_release_is_described(workspace: Workspace) -> None:
    client = workspace.client
    number = client.create_experiment("garments")
    assert experiment_id(client, locate(workspace.root), "garments") == number
    assert client.get_experiment(number).tags[NOTE_TAG].startswith("Trainings on garments")


def test_what_somebody_chose_and_wrote_is_kept(workspace: Workspace) -> None:
    client, store = workspace.client, locate(workspace.root)
    number = experiment_id(client, store, "garments")
    client.set_experiment_tag(number, KIND_TAG, "classification")
    client.set_experiment_tag(
        number, NOTE_TAG, client.get_experiment(number).tags[NOTE_TAG].replace("Trainings", "Ours")
    )
    client.delete_experiment(number)
    assert experiment_id(client, store, "garments") == number
    restored = client.get_experiment(number)
    assert restored.lifecycle_stage == "active"
    assert restored.tags[KIND_TAG] == "classification"
    assert restored.tags[NOTE_TAG].startswith("Ours on garments")


def test_the_history_of_a_model_is_described_and_the_model_marked(workspace: Workspace) -> None:
    workspace.enter(b"one")
    client = workspace.client
    history = client.get_experiment_by_name("garments history")
    assert history.tags[NOTE_TAG].startswith("History of the aliases of [garments](#/models/garments)")
    assert history.tags[KIND_TAG] == "custom_model_development"
    model = client.get_registered_model("garments")
    assert model.tags == {"dataset": "garments"}
    assert model.description.startswith("Classifies images of garments into 3 classes")

    # Descriptions of ours come back if they are deleted; those of others stay.
    client.update_registered_model("garments", "")
    workspace.register()
    assert client.get_registered_model("garments").description == model.description
    client.update_registered_model("garments", "ours since spring")
    workspace.register()
    assert client.get_registered_model("garments").description == "ours since spring"
    client.update_registered_model("garments", model.description.partition("\n\n")[0])  # as release 0.1.0 wrote it
    workspace.register()
    assert client.get_registered_model("garments").description == model.description
