"""The decision on a registered version: gather evidence, apply the champion rule, record the result, move the alias.

The process can be killed at any moment and run again. The order ensures this: the ledger entry is made before the test
images are used, the decision is recorded before the alias moves, and the tag `decision` is set last.
"""

import json
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.champion_rule import Case, Decision, decide, render_json, render_page
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.predictions import PREDICTIONS, read_predictions
from pipeline.events import record_event
from pipeline.files import file_digest, read_json
from pipeline.params import RegisterParams
from pipeline.registry import challenger_count
from pipeline.registry.alias_history import find_aliases
from pipeline.registry.aliases import CHALLENGER, CHAMPION, AliasChanged, move_alias
from pipeline.registry.load_version import CannotBeJudged
from pipeline.registry.version_predictions import predictions_of
from pipeline.registry.versions import DECISION_TAG, REASON_TAG
from pipeline.tracking.logged_models import MODEL_TAG
from pipeline.tracking.stage_outputs import Outputs
from pipeline.tracking.store import Store
from pipeline.tracking.training_runs import Record
from pipeline.workspace import main_repository

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DECISION_JSON, DECISION_PAGE = "decision/decision.json", "decision/decision.md"  # artifacts of the model's run


@dataclass(frozen=True)
class Candidate:
    """A model that the champion rule is applied to."""

    name: str  # of the registered model
    number: str  # its version
    model: str  # SHA-256 of the model file


def decide_on_version(record: Record, outputs: Outputs, version: "ModelVersion", params: RegisterParams) -> Decision:
    """Decide on a version that has no complete decision yet, and record the decision in the registry.

    Args:
        record: the complete run of the workspace's model, with its evaluation.
        version: the version of this model.
    """
    while True:
        try:
            decision = _decide_once(record, outputs, version, params)
        except AliasChanged:  # from another machine: compare with the new champion
            continue
        record.client.set_model_version_tag(version.name, str(version.version), DECISION_TAG, decision.outcome)
        if decision.outcome not in (CHAMPION, CHALLENGER):
            evidence = {"outcome": decision.outcome, "reason": decision.reason}
            record_event(
                "model.rejected",
                evidence,
                dataset=version.name,
                version=str(version.version),
                root=main_repository(outputs.root),
            )
        return decision


def _decide_once(record: Record, outputs: Outputs, version: "ModelVersion", params: RegisterParams) -> Decision:
    name, number, client = version.name, str(version.version), record.client
    aliases = find_aliases(client, name)
    decision = _find_recorded_promotion(record, version) if aliases.get(CHAMPION) == number else None
    if decision is None:
        candidate = Candidate(name, number, version.tags[MODEL_TAG])

        def enter(test: str, ids: Collection[str]) -> int:
            return challenger_count.enter(record, test, ids)

        decision = decide_by_champion(record.store, client, candidate, outputs, params, aliases.get(CHAMPION), enter)
        _record_decision(record, outputs, version, decision, params)
        if decision.outcome in (CHAMPION, CHALLENGER) and aliases.get(decision.outcome) != number:
            move_alias(
                client,
                name,
                decision.outcome,
                number,
                reason=decision.reason,
                evidence=_collect_evidence(record, decision),
                expected=aliases.get(decision.outcome),  # fails if the champion has changed since the comparison
                root=main_repository(outputs.root),
            )
    return decision


def _find_recorded_promotion(record: Record, version: "ModelVersion") -> Decision | None:
    """Return the recorded decision that made a version the champion, if its process was killed after the alias moved.

    Returns None if there is no such decision: a person moved the alias.
    """
    if REASON_TAG not in version.tags:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        recorded = read_json(Path(record.client.download_artifacts(record.id, DECISION_JSON, scratch)))
    if recorded["outcome"] != CHAMPION:
        return None
    return Decision(CHAMPION, recorded["reason"], recorded["ground"])


def decide_by_champion(
    store: Store,
    client: "MlflowClient",
    candidate: Candidate,
    outputs: Outputs,
    params: RegisterParams,
    champion_number: str | None,
    find_place: Callable[[str, Collection[str]], int],
) -> Decision:
    """Decide on a candidate by comparing it with the champion. Changes nothing, except what `find_place` does.

    Args:
        outputs: of the candidate, with its evaluation.
        champion_number: version of the champion; None if there is none.
        find_place: returns the candidate's number among the challengers judged on a test split, from the split's MD5
            and the ids of its images.
    """
    name, number = candidate.name, candidate.number
    if champion_number == number:
        reason = f"Version {number} is the champion: it had the alias before it was judged."
        return Decision("champion", reason, "already champion")
    if champion_number is None:
        judged = [other for other in client.search_model_versions(f"name = '{name}'") if DECISION_TAG in other.tags]
        return _decide_without_champion(number, is_first=not judged, params=params)
    champion = client.get_model_version(name, champion_number)
    if champion.tags.get(MODEL_TAG) == candidate.model:
        reason = (
            f"Version {number} is not promoted: its model file is that of the champion (version {champion_number})."
        )
        return Decision("not promoted", reason, "same model")
    predictions = read_predictions(outputs.evaluation / PREDICTIONS)
    try:
        champion_predictions = predictions_of(store, client, champion, outputs, predictions)
    except CannotBeJudged as error:
        reason = (
            f"Version {number} is not promoted and waits as challenger: the champion, version {champion_number}, "
            f"cannot be judged on the present test images, because {error.problem}. {_suggest_promotion(number)}"
        )
        return Decision("challenger", reason, "champion cannot be judged")
    case = Case(
        challenger=number,
        champion=champion_number,
        comparison=compare(champion_predictions, predictions),
        place=find_place(file_digest(outputs.split("test"), "md5"), predictions.ids),
        multiply_adds=outputs.settings()["multiply_adds"],
    )
    return decide(case, params)


def _decide_without_champion(number: str, *, is_first: bool, params: RegisterParams) -> Decision:
    if is_first and params.first_model == CHAMPION:
        reason = f"Version {number} becomes the champion: it is the first of its name to pass the absolute gate."
        return Decision("champion", reason, "first model")
    if is_first:
        reason = "it is the first of its name, and `register.first_model` leaves the choice to a person."
        ground = "first model"
    else:
        reason = "there is no champion to compare it with; it was deleted, or never chosen."
        ground = "no champion"
    return Decision(
        "challenger", f"Version {number} waits as challenger: {reason} {_suggest_promotion(number)}", ground
    )


def _suggest_promotion(number: str) -> str:
    return f"A person can make it the champion: `pipeline promote {number} --reason TEXT`."


def _record_decision(
    record: Record,
    outputs: Outputs,
    version: "ModelVersion",
    decision: Decision,
    params: RegisterParams,
) -> None:
    """Record a decision in the model's run and in its version. Called before the alias moves."""
    name, number = version.name, str(version.version)
    about = {
        "name": name,
        "version": number,
        "model": version.tags[MODEL_TAG],
        "run": record.id,
        "test": file_digest(outputs.split("test"), "md5"),
    }
    content = json.dumps(render_json(decision, about, params), indent=2, sort_keys=True, ensure_ascii=False)
    record.client.log_text(record.id, content + "\n", DECISION_JSON)
    record.client.log_text(record.id, render_page(decision, f"Decision on {name} version {number}"), DECISION_PAGE)
    record.client.set_model_version_tag(name, number, REASON_TAG, decision.reason)


def _collect_evidence(record: Record, decision: Decision) -> dict[str, str]:
    """Return the evidence for the move of an alias, for the history of moves."""
    evidence = {"run": record.id, "artifact": DECISION_JSON, "ground": decision.ground}
    if comparison := decision.evidence.get("comparison"):
        evidence |= {name: str(comparison[name]) for name in ("images", "gained", "lost", "p_value")}
    return evidence
