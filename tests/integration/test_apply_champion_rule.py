"""The champion rule in a real MLflow store on SQLite: every outcome, and what each leaves."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.__main__ import app
from pipeline.evaluation.markdown import escape
from pipeline.files import file_digest, write_json
from pipeline.params import load_params
from pipeline.registry import (
    aliases,
    apply_champion_rule,
    challenger_count,
    promotion,
    registration,
    version_predictions,
)
from pipeline.registry.apply_champion_rule import DECISION_JSON, DECISION_PAGE, DECISION_TAG, REASON_TAG
from pipeline.registry.registration import Registration
from tests.integration.recorded import CLASSES, Workspace, answer, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures

IMAGES = 300  # in the test split; every third shows the same class
LEVEL = 0.05 / 2  # of the first challenger


STEPS: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {  # what is called, and whether with these arguments
    "decide_on_version": (registration, "decide_on_version", lambda _: True),
    "ledger": (challenger_count, "enter", lambda _: True),
    "decision.json": (MlflowClient, "log_text", lambda given: given[3] == DECISION_JSON),
    "decision.md": (MlflowClient, "log_text", lambda given: given[3] == DECISION_PAGE),
    "reason": (MlflowClient, "set_model_version_tag", lambda given: given[3] == REASON_TAG),
    "alias": (apply_champion_rule, "move_alias", lambda _: True),
    "decision": (MlflowClient, "set_model_version_tag", lambda given: given[3] == DECISION_TAG),
}


@pytest.fixture
def judged(workspace: Workspace) -> Workspace:
    """A workspace whose champion gets the first 60 of 300 test images wrong."""
    workspace.split(IMAGES)
    set_rule(workspace, max_ece=0.5)  # these answers are all given with the same confidence
    workspace.enter(b"champion", wrong=range(60))
    return workspace


def decision_of(workspace: Workspace) -> dict[str, Any]:
    """The record of the decision on the workspace's model."""
    return json.loads(workspace.download(workspace.runs()[0], DECISION_JSON))


def places(workspace: Workspace) -> dict[str, str]:
    """The ledger: places by model, over all runs and test splits."""
    return {
        f"{run.data.tags['model.sha256'][:8]} {tag.removeprefix('judged.')[:8]}": place
        for run in workspace.runs()
        for tag, place in run.data.tags.items()
        if tag.startswith(challenger_count.LEDGER_TAG)
    }


def set_rule(workspace: Workspace, **values: Any) -> None:
    import yaml

    file = workspace.root / "params.yaml"
    content = yaml.safe_load(file.read_text())
    content["register"] |= values
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def test_a_model_that_is_better_beyond_chance_takes_the_champions_place(judged: Workspace) -> None:
    registration = judged.enter(b"better", wrong=range(20))
    assert (registration.decision.outcome, registration.decision.ground) == ("champion", "better")
    assert judged.aliases("garments") == {"champion": "2"}
    assert registration.decision.reason.startswith(
        "Version 2 takes the place of version 1: it is right on 40 images that version 1 gets wrong, wrong on 0 that "
        "version 1 gets right; difference +13.33 points, 95% interval"
    )
    record = decision_of(judged)
    assert record["comparison"]["gained"] == 40
    assert record["comparison"]["p_value"] <= record["level"] == LEVEL
    assert record["champion"] == "1"
    assert record["params"]["rule"] == "better"
    assert record["test"] == file_digest(judged.outputs.split("test"), "md5")
    page = judged.download(judged.runs()[0], DECISION_PAGE).decode()
    assert escape(registration.decision.reason) in page
    assert all(f"| {name} |" in page for name in ("Bag", "T-shirt/top", "Dress"))
    version = judged.versions("garments")[1]
    assert version.tags["decision"] == "champion"
    assert version.tags["decision.reason"] == registration.decision.reason
    assert version.description.startswith(escape(registration.decision.reason))


@pytest.mark.parametrize(
    ("wrong", "outcome", "ground"),
    [
        (range(60), "challenger", "tie"),
        ([*range(59), 200], "challenger", "tie"),  # one image gained, one lost
        (range(57), "challenger", "not shown to be better"),
        (range(62), "challenger", "not shown to be better"),
        (range(90), "not promoted", "worse"),
    ],
)
def test_a_model_that_is_not_better_beyond_chance_does_not(
    judged: Workspace, wrong: Any, outcome: str, ground: str
) -> None:
    registration = judged.enter(b"another", wrong=wrong)
    assert (registration.decision.outcome, registration.decision.ground) == (outcome, ground)
    assert "Version 2 is not promoted" in registration.decision.reason
    waiting = {"challenger": "2"} if outcome == "challenger" else {}
    assert judged.aliases("garments") == {"champion": "1", **waiting}
    assert judged.versions("garments")[1].tags["decision"] == outcome


def test_a_rule_may_ask_only_that_a_model_is_no_worse(judged: Workspace) -> None:
    set_rule(judged, rule="not_worse", margin=0.05)
    assert judged.enter(b"slightly worse", wrong=range(61)).decision.outcome == "challenger"
    registration = judged.enter(b"as good", wrong=[*range(59), 200])
    assert (registration.decision.outcome, registration.decision.ground) == ("champion", "not worse")
    assert judged.aliases("garments")["champion"] == "3"


@pytest.mark.parametrize(
    ("change", "evaluation", "words"),
    [
        # rows 1, 4, 7, ... show a T-shirt: 18 of 100 are lost, while 40 images of other classes are gained
        ({}, {"wrong": range(1, 115, 3)}, "recall of T-shirt/top falls by"),
        ({"max_ece": 0.01}, {"wrong": range(20)}, "its calibration error is"),
        ({"max_multiply_adds": 999}, {"wrong": range(20)}, "it takes 1,000 multiply-adds an image"),
    ],
)
def test_a_veto_keeps_a_better_model_from_promotion_and_is_named(
    judged: Workspace, change: dict[str, Any], evaluation: dict[str, Any], words: str
) -> None:
    set_rule(judged, max_class_drop=0.05, **change)
    decision = judged.enter(b"flawed", **evaluation).decision
    assert (decision.outcome, decision.ground) == ("not promoted", "vetoed")
    assert f"Vetoed: {words}" in decision.reason
    assert judged.aliases("garments") == {"champion": "1"}
    assert len(decision_of(judged)["vetoes"]) == 1


def test_the_ledger_outlives_its_experiment(judged: Workspace) -> None:
    judged.enter(b"a", wrong=range(58))
    (experiment,) = {run.info.experiment_id for run in judged.runs()}
    judged.client.rename_experiment(experiment, "former")
    judged.client.delete_experiment(experiment)
    assert judged.enter(b"b", wrong=range(57)).decision.evidence["place"] == 2


def test_the_ledger_finds_its_runs_among_more_experiments_than_one_answer_holds(judged: Workspace) -> None:
    judged.enter(b"a", wrong=range(58))
    later = [(name, f"other {name}", "active", 2**42, 2**42, "default") for name in range(10**6, 10**6 + 1000)]
    columns = "experiment_id, name, lifecycle_stage, creation_time, last_update_time, workspace"
    with closing(sqlite3.connect(judged.root / "mlflow.db")) as store, store:
        store.executemany(f"INSERT INTO experiments ({columns}) VALUES (?, ?, ?, ?, ?, ?)", later)
    assert judged.enter(b"b", wrong=range(57)).decision.evidence["place"] == 2


def test_every_challenger_lowers_the_level_of_the_next(judged: Workspace) -> None:
    levels = []
    for place, name in enumerate((b"a", b"b", b"c"), 1):
        judged.enter(name, wrong=range(58))
        record = decision_of(judged)
        assert record["place"] == place
        assert f"challenger {place} on these 300 test images" in record["reason"]
        levels.append(record["level"])
    assert levels == [0.05 / 2, 0.05 / 6, 0.05 / 12]
    # 7 gained, none lost: p = 0.0078, enough for the first challenger and too little for the fourth
    assert judged.enter(b"d", wrong=range(53)).decision.outcome == "challenger"


def test_a_gain_that_is_enough_for_the_first_challenger(judged: Workspace) -> None:
    assert judged.enter(b"d", wrong=range(53)).decision.outcome == "champion"


def test_judging_the_same_model_again_does_not_count(judged: Workspace) -> None:
    judged.enter(b"a", wrong=range(58))
    judged.record_training()  # the same bytes again, in a run of its own
    judged.enter(b"a", wrong=range(58))
    judged.client.delete_model_version("garments", "2")
    judged.enter(b"a", wrong=range(58))  # a new version, judged anew
    assert decision_of(judged)["place"] == 1
    judged.enter(b"b", wrong=range(58))
    assert decision_of(judged)["place"] == 2


def test_the_first_model_is_no_challenger_and_a_deleted_one_still_counts(judged: Workspace) -> None:
    assert places(judged) == {}
    judged.enter(b"a", wrong=range(58))
    judged.client.delete_model_version("garments", "2")
    judged.client.delete_run(judged.runs()[0].info.run_id)
    judged.enter(b"b", wrong=range(58))
    assert decision_of(judged)["place"] == 2


def test_other_test_images_start_a_new_count(judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    judged.enter(b"a", wrong=range(58))
    judged.split(IMAGES, first=IMAGES // 2 + 1)  # less than half of them are the former ones
    # The champion's file is no model, so what it would answer is put in its place.
    monkeypatch.setattr(
        version_predictions, "_predict", lambda *_: answer(judged.outputs.split("test"), CLASSES, wrong=range(60))
    )
    judged.enter(b"b", wrong=range(58))
    assert decision_of(judged)["place"] == 1


def test_a_test_split_with_most_of_the_former_images_continues_their_count(
    judged: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged.enter(b"a", wrong=range(58))
    judged.enter(b"b", wrong=range(58))
    judged.split(IMAGES, first=IMAGES // 2)
    monkeypatch.setattr(
        version_predictions, "_predict", lambda *_: answer(judged.outputs.split("test"), CLASSES, wrong=range(60))
    )
    for place, name in enumerate((b"c", b"d"), 3):
        judged.enter(name, wrong=range(58))
        assert decision_of(judged)["place"] == place


def test_a_model_with_a_new_class_is_compared_on_the_classes_that_both_know(
    judged: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wider = (*CLASSES, "Coat")
    judged.split(IMAGES, classes=wider)
    old = CLASSES[::-1]  # the champion's own order of its classes
    known = [row for row in range(IMAGES) if row % 4 < 3]
    everything = answer(judged.outputs.split("test"), wider, wrong=known[:60])
    monkeypatch.setattr(version_predictions, "_predict", lambda *_: everything.among(old))
    judged.train(b"wider", classes=list(wider))
    judged.evaluate(classes=wider, wrong=[*known[:20], *range(3, IMAGES, 4)])  # each Coat is wrong, and left out
    decision = judged.register().decision
    assert (decision.outcome, decision.ground) == ("champion", "better")
    assert decision.evidence["comparison"]["images"] == len(known)
    assert decision.evidence["comparison"]["gained"] == 40
    assert "Only the images of the 3 classes that both know were compared; left out: Coat." in decision.reason


def test_a_worn_out_split_is_said_to_be_so(judged: Workspace) -> None:
    set_rule(judged, worn_out_after=1)
    assert "worn out" not in judged.enter(b"a", wrong=range(58)).decision.reason
    reason = judged.enter(b"b", wrong=range(58)).decision.reason
    assert "These test images are worn out: 2 challengers were judged on them, which is more than 1" in reason
    assert "Test images that no model was judged on yet start a new count." in reason


def test_a_champion_evaluated_on_other_images_is_never_compared_by_its_stored_answers(judged: Workspace) -> None:
    judged.split(IMAGES + 3)
    decision = judged.enter(b"perfect").decision  # its model file is no model, so it cannot be asked again
    assert (decision.outcome, decision.ground) == ("challenger", "champion cannot be judged")
    assert "its model file cannot be loaded" in decision.reason
    assert judged.aliases("garments") == {"champion": "1", "challenger": "2"}
    assert places(judged) == {}


def model_of(workspace: Workspace) -> str:
    """The logged model of the first version."""
    return str(workspace.versions("garments")[0].source.removeprefix("models:/"))


def remove_model_file(workspace: Workspace) -> None:
    model = workspace.client.get_logged_model(model_of(workspace))
    shutil.rmtree(Path(model.artifact_location.removeprefix("file://")) / "data")


def alter_model_file(workspace: Workspace) -> None:
    model = workspace.client.get_logged_model(model_of(workspace))
    (Path(model.artifact_location.removeprefix("file://")) / "data/model.tflite").write_bytes(b"another")


def delete_logged_model(workspace: Workspace) -> None:
    workspace.client.delete_logged_model(model_of(workspace))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (remove_model_file, "its model file is gone from the artifact store"),
        (alter_model_file, "its model file was altered in the artifact store"),
        (delete_logged_model, "its model is gone"),
    ],
)
def test_a_champion_whose_artifacts_are_gone_keeps_its_place(
    judged: Workspace, break_it: Callable[[Workspace], None], words: str
) -> None:
    (run,) = judged.runs()
    shutil.rmtree(Path(run.info.artifact_uri.removeprefix("file://")) / "evaluation")
    break_it(judged)
    decision = judged.enter(b"perfect").decision
    assert (decision.outcome, decision.ground) == ("challenger", "champion cannot be judged")
    assert words in decision.reason
    assert "`pipeline promote 2 --reason TEXT`" in decision.reason
    assert judged.aliases("garments") == {"champion": "1", "challenger": "2"}


def test_a_champion_made_for_other_classes_cannot_be_judged(judged: Workspace) -> None:
    judged.client.set_registered_model_alias("garments", "champion", "1")
    path = judged.outputs.split("test")
    changed = ("Handbag", "Shirt", *CLASSES[2:])
    from pipeline.data import table

    dataset = table.Dataset("garments", 4, 5, changed, changed, flip=True)
    rows = list(table.stream(path))
    with table.writer(path, dataset) as writer:
        for part in rows:
            writer.write(part.images, part.labels, part.ids, part.sources)
    judged.train(b"two", classes=list(changed))
    judged.evaluate(classes=changed)
    decision = judged.register().decision
    assert (decision.outcome, decision.ground) == ("challenger", "champion cannot be judged")
    assert "it was made for other classes (Bag, T-shirt/top, Dress)" in decision.reason
    assert judged.aliases("garments") == {"champion": "1", "challenger": "2"}


def test_without_a_champion_nobody_is_promoted(judged: Workspace) -> None:
    judged.enter(b"another", wrong=range(58))
    judged.client.delete_model_version("garments", "1")
    decision = judged.enter(b"perfect").decision
    assert (decision.outcome, decision.ground) == ("challenger", "no champion")
    assert judged.aliases("garments") == {"challenger": "3"}


def test_a_first_model_may_be_left_to_a_person(workspace: Workspace) -> None:
    set_rule(workspace, first_model="challenger")
    decision = workspace.enter(b"one").decision
    assert (decision.outcome, decision.ground) == ("challenger", "first model")
    assert workspace.aliases("garments") == {"challenger": "1"}


def test_the_champions_own_file_under_another_version_is_not_promoted(judged: Workspace) -> None:
    first = judged.versions("garments")[0]
    judged.client.create_model_version("garments", first.source, first.run_id, tags=first.tags)
    judged.client.set_registered_model_alias("garments", "champion", "2")
    judged.client.delete_model_version_tag("garments", "1", "decision")  # as if it had not been judged
    registration = judged.register()
    assert registration.version == "1"
    assert (registration.decision.outcome, registration.decision.ground) == ("not promoted", "same model")
    assert judged.aliases("garments") == {"champion": "2"}
    assert places(judged) == {}


def test_a_champion_that_somebody_chose_before_it_was_judged_stays(judged: Workspace) -> None:
    interrupt_at(judged, "decide_on_version", b"two")
    judged.client.set_registered_model_alias("garments", "champion", "2")
    decision = judged.enter(b"two", wrong=range(90)).decision
    assert (decision.outcome, decision.ground) == ("champion", "already champion")
    assert judged.aliases("garments") == {"champion": "2"}


def interrupt_at(workspace: Workspace, step: str, model: bytes, **evaluation: Any) -> None:
    """Be killed just before a step of the registration of a model."""
    target, name, matches = STEPS[step]
    original = getattr(target, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if matches(arguments):
            raise KeyboardInterrupt
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, name, call)
        workspace.enter(model, **evaluation)


@pytest.mark.parametrize(
    ("wrong", "outcome", "aliases"),
    [
        (range(20), "champion", {"champion": "2"}),
        (range(58), "challenger", {"champion": "1", "challenger": "2"}),
        (range(90), "not promoted", {"champion": "1"}),
    ],
)
def test_a_registration_killed_at_each_step_comes_to_the_same_decision(
    judged: Workspace, wrong: Any, outcome: str, aliases: dict[str, str]
) -> None:
    for step in STEPS:
        if step != "alias" or outcome != "not promoted":
            interrupt_at(judged, step, b"two", wrong=wrong)
    registration = judged.enter(b"two", wrong=wrong)
    assert registration.decision.outcome == outcome
    assert registration.is_new
    assert judged.aliases("garments") == aliases
    assert [version.version for version in judged.versions("garments")] == [1, 2]
    assert list(places(judged).values()) == ["1"]
    assert decision_of(judged)["comparison"]["champion_right"] == 0.8
    again = judged.enter(b"two", wrong=wrong)
    assert (again.is_new, again.decision.reason) == (False, registration.decision.reason)


def test_a_store_that_fails_promotes_nobody(judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    from pipeline.errors import TrackingError

    def refuse(*_: object) -> None:
        raise MlflowException("the artifact store does not answer")

    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="does not answer"):
        patch.setattr(MlflowClient, "download_artifacts", refuse)
        judged.enter(b"perfect")
    assert judged.aliases("garments") == {"champion": "1"}
    assert "decision" not in judged.versions("garments")[1].tags
    assert judged.enter(b"perfect").decision.outcome == "champion"


def test_the_registration_file_says_nothing_of_the_decision(judged: Workspace) -> None:
    from pipeline.registry.registration import write_registration

    def registered() -> bytes:
        write_registration(judged.outputs)
        return judged.outputs.registration.read_bytes()

    registration: Registration = judged.enter(b"better", wrong=range(20))
    first = registered()
    assert registration.decision.outcome == "champion"
    write_json(judged.outputs.registration, {})
    judged.enter(b"better", wrong=range(20))
    assert registered() == first
    assert load_params(judged.root / "params.yaml").register.rule == "better"


def test_two_versions_are_compared_image_by_image(judged: Workspace, tmp_path: Path) -> None:
    judged.enter(b"two", wrong=range(50, 80))
    figure = tmp_path / "differences.png"
    command = ["compare", "1", "2", "--model", "garments"]
    told = CliRunner().invoke(app, [*command, "--figure", str(figure)], catch_exceptions=False).output
    assert "both right 220, both wrong 10; only version 1 right 20, only version 2 right 50" in " ".join(told.split())
    found = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).output)
    assert (found["versions"], found["gained"], found["lost"]) == (["1", "2"], 50, 20)
    assert set(found["by_class"]) == set(CLASSES)
    with Image.open(figure) as drawn:
        assert len(set(drawn.convert("L").getdata())) > 50  # grey levels of the images, and not a blank page


def test_a_champion_that_changes_while_a_model_is_judged_is_the_one_to_meet(
    judged: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged.enter(b"tie", wrong=range(60))
    move_alias = apply_champion_rule.move_alias

    def promote_another_first(*given: Any, **named: Any) -> None:
        monkeypatch.setattr(apply_champion_rule, "move_alias", move_alias)
        promotion.promote(judged.client, "garments", "2", reason="by a colleague on another machine")
        move_alias(*given, **named)

    monkeypatch.setattr(apply_champion_rule, "move_alias", promote_another_first)
    registration = judged.enter(b"better", wrong=range(20))
    assert registration.decision.reason.startswith("Version 3 takes the place of version 2")
    assert judged.aliases("garments") == {"champion": "3"}
    assert decision_of(judged)["champion"] == "2"
    moves = aliases.read_history(judged.client, "garments")
    assert [(move.origin, move.target) for move in promotion.champion_moves(moves)] == [
        (None, "1"),
        ("1", "2"),
        ("2", "3"),
    ]
    assert len(set(places(judged).values())) == 2  # judged twice, entered once
