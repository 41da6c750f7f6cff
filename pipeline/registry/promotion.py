"""Promotion and rollback: a person makes a version the champion, whatever the champion rule says."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import TrackingError
from pipeline.registry.alias_history import History, Move, format_version
from pipeline.registry.aliases import CHAMPION, make_move, recover
from pipeline.registry.versions import ACCURACY_TAG, DECISION_TAG, REASON_TAG
from pipeline.tracking.logged_models import MODEL_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def promote(client: "MlflowClient", name: str, version: str, *, reason: str) -> Move:
    """Make a version the champion, as a person decided.

    Raises:
        TrackingError: the version does not exist, was rejected or not judged, or is the champion already.
        AliasChanged: another process moved the champion at the same time.
    """
    history = recover(client, name)
    tags = _require_other_version(history, version).tags
    if DECISION_TAG not in tags:
        raise TrackingError(
            f"cannot promote {name} version {version}: its judgement did not finish",
            found=f"no tag `{DECISION_TAG}`: its registration was interrupted, or the pipeline did not register it",
            remedy="pipeline sync, in the checkout that holds its model",
        )
    if "rejected" in (tags[DECISION_TAG], tags.get("gate")):
        raise TrackingError(
            f"cannot promote {name} version {version}: it was rejected",
            found=tags.get(REASON_TAG, "it did not pass the absolute gate"),
            remedy="promote another version (pipeline versions), or train a better one (pipeline run)",
        )
    evidence = {key: tags[key] for key in (DECISION_TAG, REASON_TAG, ACCURACY_TAG) if key in tags}
    return make_move(history, "promotion", CHAMPION, version, reason, evidence, expected=history.aliases.get(CHAMPION))


def rollback(client: "MlflowClient", name: str, *, reason: str, to: str | None = None) -> Move:
    """Make a former champion the champion again.

    Args:
        to: its version; None: the last earlier champion that no rollback removed and that still exists.

    Raises:
        TrackingError: there is no former champion, or `to` was never the champion, or is the champion now.
        AliasChanged: another process moved the champion at the same time.
    """
    history = recover(client, name)
    former = _find_former_champion(history) if to is None else _find_last_promotion(history, to)
    evidence = {"restores": f"move {former.number}"}
    champion = history.aliases.get(CHAMPION)
    return make_move(history, "rollback", CHAMPION, str(former.target), reason, evidence, expected=champion)


def _find_former_champion(history: History) -> Move:
    line: list[Move] = []  # of champions; a rollback removes its target and all after it, and adds the target again
    for move in champion_moves(history.moves):
        if move.kind == "rollback":
            places = [place for place, earlier in enumerate(line) if earlier.target == move.target]
            line = line[: places[-1] if places else -1]
        if move.target:
            line.append(move)
    champion = history.aliases.get(CHAMPION)
    former = [move for move in line if move.target != champion]
    for move in reversed(former):
        if _holds_same_model(history, move):
            return move
    deleted = ", ".join(sorted({str(move.target) for move in former}, key=int))
    raise TrackingError(
        f"{history.name} has no former champion to go back to",
        expected="a version that was the champion before, and was not rolled back from",
        found=f"deleted: {deleted}" if deleted else f"only {format_version(champion)} in its history",
        remedy="pipeline versions, then pipeline promote VERSION --reason TEXT",
    )


def _find_last_promotion(history: History, version: str) -> Move:
    _require_other_version(history, version)
    promotions = {move.target: move for move in champion_moves(history.moves) if move.target}
    remedy = f"pipeline promote {version} --model {history.name} --reason TEXT"
    if version not in promotions:
        others = ", ".join(sorted(promotions.keys() - {history.aliases.get(CHAMPION)}, key=int))
        problem = f"{history.name} version {version} was never the champion"
        raise TrackingError(problem, expected=f"one of: {others or 'none so far'}", remedy=remedy)
    if not _holds_same_model(history, promotions[version]):
        raise TrackingError(
            f"{history.name} version {version} is not the model that was the champion",
            expected=f"a model file with the SHA-256 {promotions[version].model}",
            found="a version registered later, to which MLflow gave the same number",
            remedy=remedy,
        )
    return promotions[version]


def champion_moves(moves: Sequence[Move]) -> list[Move]:
    """Select the moves that changed the champion."""
    return [move for move in moves if move.alias == CHAMPION and move.state == "done"]


def _holds_same_model(history: History, move: Move) -> bool:
    """Check that the move's target still exists, with the same model file."""
    version = history.find_version(move.target)
    return version is not None and version.tags.get(MODEL_TAG) == move.model


def _require_other_version(history: History, version: str) -> "ModelVersion":
    """Return a version that exists and is not the champion."""
    found = history.require_version(version)
    if version == history.aliases.get(CHAMPION):
        raise TrackingError(f"{history.name} version {version} is the champion already", remedy="pipeline history")
    return found
