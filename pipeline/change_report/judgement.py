"""The decision that the champion rule would make on the model of a checkout. Nothing is registered or recorded.

The rule compares with the registry's champion. Without a registry or a champion, as on the machine of a pull request,
the model of the base takes its place.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.change_report.changes import Base
from pipeline.errors import DataError, TrackingError
from pipeline.evaluation.champion_rule import Case, Decision, decide
from pipeline.evaluation.comparison import Comparison, compare
from pipeline.evaluation.gate import Check
from pipeline.evaluation.predictions import PREDICTIONS, read_predictions
from pipeline.files import file_digest, read_json
from pipeline.params import PARAMS_FILE, RegisterParams, load_params
from pipeline.registry.alias_history import find_aliases
from pipeline.registry.aliases import CHAMPION
from pipeline.registry.apply_champion_rule import Candidate, decide_by_champion
from pipeline.registry.challenger_count import find_place
from pipeline.registry.registration import find_version_of, registered_name
from pipeline.registry.versions import DECISION_TAG, REASON_TAG
from pipeline.tracking.stage_outputs import MODEL, Outputs
from pipeline.tracking.store import explained, locate, open_store

THIS_MODEL = "the model of this checkout"


@dataclass(frozen=True)
class Judgement:
    """A decision on a model, and what it was compared with."""

    decision: Decision
    basis: str  # a sentence
    is_made: bool = False  # the registry has this decision already


def compare_with_base(outputs: Outputs, base: Base) -> Comparison | str:
    """Compare the recorded test predictions of both, image by image. If that is impossible, returns the reason."""
    if outputs.locked("train").get(MODEL) == base.outputs.locked("train").get(MODEL):
        return f"this checkout and {base} have the same model"
    if not base.has_outputs:
        return f"the predictions of {base} are neither in DVC's cache nor in a remote: {base.problem}"
    try:
        before, after = (read_predictions(each.evaluation / PREDICTIONS) for each in (base.outputs, outputs))
        return compare(before, after)
    except DataError as error:
        return f"{error.problem} (found: {error.found})" if error.found else error.problem


def judge(workspace: Path, outputs: Outputs, base: Base, comparison: Comparison | str) -> Judgement:
    """Return the decision that would be made on the model of a checkout.

    Args:
        outputs: of the checkout.
        comparison: of the base's model with it, or why there is none.
    """
    params = load_params(workspace / PARAMS_FILE).register
    gate = read_json(outputs.evaluation / "gate.json")
    if not gate["passed"]:
        failures = "; ".join(str(Check(**check)) for check in gate["checks"] if not check["passed"])
        reason = f"The model does not pass the absolute gate: {failures}."
        return Judgement(Decision("rejected", reason, "gate"), "By the absolute gate, without a comparison.")
    try:
        judgement = _judge_by_registry(workspace, outputs, params)
        problem = "The registry has no champion of this name"
    except (TrackingError, DataError) as error:
        judgement, problem = None, f"The registry could not be used ({error.problem})"
    return judgement or _judge_by_base(outputs, base, comparison, params, problem)


def _judge_by_registry(workspace: Path, outputs: Outputs, params: RegisterParams) -> Judgement | None:
    """Apply the champion rule in the registry. Returns None if it has no champion of this name."""
    store = locate(workspace)
    if (store.database and not store.database.exists()) or not outputs.split("test").is_file():
        return None
    client, name, model = open_store(store), registered_name(outputs), file_digest(outputs.model)
    with explained(store):
        version = find_version_of(client, name, model)
        if version and DECISION_TAG in version.tags:
            decision = Decision(version.tags[DECISION_TAG], version.tags.get(REASON_TAG, "It has an earlier decision."))
            return Judgement(decision, f"This model is {name} version {version.version}.", is_made=True)
        champion = find_aliases(client, name).get(CHAMPION)
        if champion is None:
            return None
        versions = client.search_model_versions(f"name = '{name}'")
        number = str(1 + max(int(each.version) for each in versions))
        candidate = Candidate(name, number, model)

        def place(test: str, ids: Collection[str]) -> int:
            return find_place(store, client, model, test, ids)[0]

        decision = decide_by_champion(store, client, candidate, outputs, params, champion, place)
    return Judgement(
        decision, f"Against the champion, {name} version {champion}; this model would be version {number}."
    )


def _judge_by_base(
    outputs: Outputs, base: Base, comparison: Comparison | str, params: RegisterParams, problem: str
) -> Judgement:
    basis = f"{problem}: compared with the model of {base}, as if that were the champion and this the first challenger."
    if outputs.locked("train").get(MODEL) == base.outputs.locked("train").get(MODEL):
        reason = f"The model file is that of {base}: there is nothing to decide."
        return Judgement(Decision("not promoted", reason, "same model"), basis)
    if isinstance(comparison, str):
        reason = f"There is no comparison: {comparison}."
        return Judgement(Decision("challenger", reason, "no comparison"), f"{problem}.")
    case = Case(THIS_MODEL, f"the model of {base}", comparison, 1, outputs.settings()["multiply_adds"])
    return Judgement(decide(case, params), basis)
