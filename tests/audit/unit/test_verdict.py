"""Verdicts on reproductions, and the descriptions of differences in them."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.audit.verdict import (
    Agreement,
    Difference,
    ReproducedStage,
    compare_predictions,
    decide_verdict,
    describe_difference,
    find_causes,
)
from pipeline.evaluation.predictions import Predictions, write_predictions
from pipeline.tracking.stage_outputs import EXPORTED_MODEL, MODEL

CLOSE = Agreement(images=500, same_predictions=0.99, mean_distance=0.01)
FAR = Agreement(images=500, same_predictions=0.95, mean_distance=0.05)
CAUSE = "host.threads: 2 recorded, 64 now"
STAGES = ("ingest", "validate", "split", "train", "evaluate")


def stages(**differing: str) -> list[ReproducedStage]:
    """Stages that ran. `differing`: the output in which one differs, by stage."""
    how = "line 2 was 'x', is 'y'"
    differences = {stage: (Difference(path, "a", "b", how),) for stage, path in differing.items()}
    return [ReproducedStage(stage, "ran", differences.get(stage, ()), compared=True) for stage in STAGES]


def test_the_same_model_file_is_identical_whatever_else_differs() -> None:
    assert decide_verdict(stages(), CLOSE, []).outcome == "identical"
    verdict = decide_verdict(stages(evaluate="reports/evaluation"), CLOSE, [CAUSE])
    assert verdict.outcome == "identical"
    assert "other outputs differ: evaluate (line 2 was 'x', is 'y')" in verdict.reason


@pytest.mark.parametrize("file", [MODEL, EXPORTED_MODEL])
def test_another_model_with_close_predictions_is_equivalent_only_with_a_cause(file: str) -> None:
    equivalent = decide_verdict(stages(train=file), CLOSE, [CAUSE])
    assert equivalent.outcome == "equivalent"
    assert CAUSE in equivalent.reason
    without = decide_verdict(stages(train=file), CLOSE, [])
    assert without.outcome == "not reproduced"
    assert "Libraries, processor and threads are as recorded" in without.reason


@pytest.mark.parametrize("agreement", [FAR, None])
def test_a_cause_does_not_excuse_other_predictions(agreement: Agreement | None) -> None:
    verdict = decide_verdict(stages(train=MODEL), agreement, [CAUSE])
    assert verdict.outcome == "not reproduced"
    assert CAUSE in verdict.reason


def test_the_first_stage_that_differs_is_named() -> None:
    results = stages(split="data/splits/train.parquet", train=MODEL, evaluate="reports/evaluation")
    verdict = decide_verdict(results, FAR, [])
    assert verdict.reason.startswith("split is the first stage whose output differs: data/splits/train.parquet")


@pytest.mark.parametrize("failed", ["validate", "train", "a-stage-of-the-project"])
def test_a_stage_that_fails_is_named(failed: str) -> None:
    results = [ReproducedStage(stage, "not reached") for stage in STAGES if stage != failed]
    verdict = decide_verdict([*results, ReproducedStage(failed, "failed")], None, [CAUSE])
    assert (verdict.outcome, verdict.reason) == ("not reproduced", f"{failed} failed")


@pytest.mark.parametrize(
    ("same_predictions", "mean_distance", "within"),
    [(0.96, 0.04, True), (0.9599, 0.0, False), (1.0, 0.0401, False), (1.0, float("nan"), False)],
)
def test_the_tolerance_has_two_sides(same_predictions: float, mean_distance: float, within: bool) -> None:
    assert Agreement(500, same_predictions, mean_distance).within_tolerance == within


def write(path: Path, ids: list[str], probabilities: list[list[float]]) -> Path:
    classes = tuple(f"class {number}" for number in range(len(probabilities[0])))
    labels, array = np.zeros(len(ids), np.uint8), np.array(probabilities)
    write_predictions(path, Predictions(classes=classes, ids=ids, labels=labels, probabilities=array))
    return path


def test_agreement_is_measured_image_by_image(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", ["a", "b"], [[1.0, 0.0], [0.5, 0.5]])
    other = write(tmp_path / "other.parquet", ["a", "b"], [[0.75, 0.25], [0.0, 1.0]])
    assert compare_predictions(one, other) == Agreement(2, same_predictions=0.5, mean_distance=0.375)


def test_predictions_for_other_images_are_not_compared(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", ["a", "b"], [[1.0, 0.0], [0.5, 0.5]])
    others = write(tmp_path / "others.parquet", ["b", "a"], [[1.0, 0.0], [0.5, 0.5]])
    three = write(tmp_path / "three.parquet", ["a", "b"], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert compare_predictions(one, others) is None
    assert compare_predictions(one, three) is None
    assert compare_predictions(one, tmp_path / "none.parquet") is None


def test_causes_name_what_was_lost_and_gained() -> None:
    recorded = {"host.threads": "2", "host.cpu_features": "avx2 fma avx512f", "version.numpy": "2.4.6", "gone": "x"}
    found = {"host.threads": "64", "host.cpu_features": "avx2 fma amx_bf16", "version.numpy": "2.4.6", "new": "y"}
    assert find_causes(recorded, found) == [
        "host.cpu_features: without avx512f, with amx_bf16",
        "host.threads: 2 recorded, 64 now",
    ]


def test_a_difference_is_described_by_its_first_line(tmp_path: Path) -> None:
    for name, loss in {"then": "0.5", "now": "0.6"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "curves.png").write_bytes(loss.encode())
        (tmp_path / name / "history.csv").write_text(f"epoch,loss\n1,{loss}\n")
    (tmp_path / "then" / "old.json").write_text("{}")
    how = describe_difference(tmp_path / "then", tmp_path / "now")
    assert how == "history.csv: line 2 was '1,0.5', is '1,0.6'; old.json: missing; curves.png: its bytes differ"
    assert describe_difference(tmp_path / "gone", tmp_path / "now") == "its digest differs"
    assert describe_difference(tmp_path / "then", tmp_path / "gone") == "missing"
