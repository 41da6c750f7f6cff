"""The model card in a real MLflow store on SQLite."""

import pytest

from pipeline.registry import card_upload
from pipeline.registry.model_card import CARD, PAGE
from pipeline.registry.registration import Decision, Registration
from pipeline.tracking.training_runs import find_or_rebuild
from tests.integration.recorded import Workspace, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures


def test_a_judged_model_has_a_card_and_a_summary(workspace: Workspace) -> None:
    registration = workspace.enter(b"one")
    (run,) = workspace.runs()
    assert {"card/card.md", "card/card.html"} <= workspace.artifacts(run)
    card, page = (workspace.download(run, path).decode() for path in (CARD, PAGE))
    for text in (card, page):
        assert "Model card: garments version 1" in text
        assert registration.decision.reason in text
        assert run.info.run_id in text
        assert run.data.tags["data.test"] in text
    (version,) = workspace.versions("garments")
    assert version.description.startswith(registration.decision.reason)
    assert "Accuracy **75.00%** on 6 test images" in version.description
    assert len(version.description) <= 5_000


def test_registering_again_writes_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    workspace.enter(b"one")
    before = workspace.versions("garments")[0].last_updated_timestamp
    with monkeypatch.context() as patch:
        for method in ("log_text", "log_batch", "update_model_version"):
            patch.setattr(MlflowClient, method, lambda *_, **__: pytest.fail("something was written"))
        workspace.register()
    assert workspace.versions("garments")[0].last_updated_timestamp == before


def test_a_card_that_was_cut_off_is_completed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(card_upload, "render_html", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        workspace.enter(b"one")
    assert not workspace.versions("garments")[0].description
    workspace.register()
    (run,) = workspace.runs()
    assert {"card/card.md", "card/card.html"} <= workspace.artifacts(run)
    assert workspace.versions("garments")[0].description


def test_a_description_that_somebody_wrote_stays(workspace: Workspace) -> None:
    workspace.enter(b"one")
    workspace.client.update_model_version("garments", "1", "ours since spring")
    workspace.enter(b"one", accuracy=0.8)
    assert workspace.versions("garments")[0].description == "ours since spring"


def test_another_evaluation_makes_another_card(workspace: Workspace) -> None:
    workspace.enter(b"one")
    workspace.enter(b"one", accuracy=0.8)
    (run,) = workspace.runs()
    assert "**80.00%** test accuracy" in workspace.download(run, CARD).decode()


def test_a_rejected_model_has_a_card_that_says_so(workspace: Workspace) -> None:
    workspace.enter(b"one", passed=False)
    (run,) = workspace.runs()
    card = workspace.download(run, CARD).decode()
    assert "Model card: garments, not registered" in card
    assert "**rejected**: The model did not pass the absolute gate: evaluate.min\\_accuracy needs at least 0.95" in card
    assert f"models:/{run.outputs.model_outputs[0].model_id}" in card


def test_a_long_reason_leaves_room_for_the_figures(workspace: Workspace) -> None:
    workspace.enter(b"one")
    workspace.client.update_model_version("garments", "1", "")
    decision = Decision("challenger", "because " * 1_000)
    registration = Registration("garments", "1", (), decision, is_new=False)
    card_upload.upload_card(find_or_rebuild(workspace.outputs), workspace.outputs, registration)
    (version,) = workspace.versions("garments")
    assert len(version.description) == 5_000
    assert "Accuracy **75.00%** on 6 test images" in version.description
