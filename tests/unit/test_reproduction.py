"""What a reproduction is called, and how differences are told."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.reports.reproduction import (
    MODEL,
    Agreement,
    Difference,
    StageResult,
    compare_predictions,
    describe_difference,
    find_causes,
    judge,
)

CLOSE = Agreement(images=500, same_answers=0.99, mean_distance=0.01, largest_distance=0.1)
FAR = Agreement(images=500, same_answers=0.95, mean_distance=0.05, largest_distance=0.9)
CAUSE = "host.threads: 2 then, 64 now"


def stages(**changed: StageResult) -> list[StageResult]:
    names = ("ingest", "validate", "split", "train", "evaluate")
    return [changed.get(name, StageResult(name, "ran", 1.0)) for name in names]


def differing(stage: str, path: str) -> StageResult:
    return StageResult(stage, "ran", 1.0, (Difference(path, "a", "b", "line 2 was 'x', is 'y'"),))


def test_the_same_model_file_is_identical_whatever_else_differs() -> None:
    assert judge(stages(), CLOSE, []).outcome == "identical"
    verdict = judge(stages(evaluate=differing("evaluate", "reports/evaluation")), CLOSE, [CAUSE])
    assert verdict.outcome == "identical"
    assert "other outputs differ: evaluate (line 2 was 'x', is 'y')" in verdict.reason


def test_another_model_that_answers_alike_is_equivalent_only_with_a_cause() -> None:
    other = stages(train=differing("train", MODEL))
    equivalent = judge(other, CLOSE, [CAUSE])
    assert equivalent.outcome == "equivalent"
    assert CAUSE in equivalent.reason
    without = judge(other, CLOSE, [])
    assert without.outcome == "not reproduced"
    assert "Libraries, processor and threads are as recorded" in without.reason


@pytest.mark.parametrize("agreement", [FAR, None])
def test_a_cause_does_not_excuse_other_answers(agreement: Agreement | None) -> None:
    verdict = judge(stages(train=differing("train", MODEL)), agreement, [CAUSE])
    assert verdict.outcome == "not reproduced"
    assert CAUSE in verdict.reason


def test_the_first_stage_that_differs_is_named() -> None:
    results = stages(
        split=differing("split", "data/splits/train.parquet"),
        train=differing("train", MODEL),
        evaluate=differing("evaluate", "reports/evaluation"),
    )
    verdict = judge(results, FAR, [])
    assert verdict.reason.startswith("split is the first stage whose output differs: data/splits/train.parquet")


def test_a_stage_that_fails_is_named() -> None:
    results = stages(
        validate=StageResult("validate", "failed"),
        **{name: StageResult(name, "not reached") for name in ("split", "train", "evaluate")},
    )
    verdict = judge(results, None, [CAUSE])
    assert (verdict.outcome, verdict.reason) == ("not reproduced", "validate failed")


@pytest.mark.parametrize(
    ("same_answers", "mean_distance", "within"),
    [(0.96, 0.04, True), (0.9599, 0.0, False), (1.0, 0.0401, False), (1.0, float("nan"), False)],
)
def test_the_tolerance_has_two_sides(same_answers: float, mean_distance: float, within: bool) -> None:
    assert Agreement(500, same_answers, mean_distance, 1.0).within_tolerance == within


def write_predictions(path: Path, ids: list[str], probabilities: list[list[float]]) -> Path:
    flat = pa.array(np.array(probabilities, np.float32).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, len(probabilities[0]))
    pq.write_table(pa.table({"id": ids, "probabilities": column}), path)
    return path


def test_agreement_is_measured_image_by_image(tmp_path: Path) -> None:
    one = write_predictions(tmp_path / "one.parquet", ["a", "b"], [[1.0, 0.0], [0.5, 0.5]])
    other = write_predictions(tmp_path / "other.parquet", ["a", "b"], [[0.75, 0.25], [0.0, 1.0]])
    assert compare_predictions(one, other) == Agreement(2, same_answers=0.5, mean_distance=0.375, largest_distance=0.5)


def test_answers_about_other_images_are_not_compared(tmp_path: Path) -> None:
    one = write_predictions(tmp_path / "one.parquet", ["a", "b"], [[1.0, 0.0], [0.5, 0.5]])
    others = write_predictions(tmp_path / "others.parquet", ["b", "a"], [[1.0, 0.0], [0.5, 0.5]])
    three = write_predictions(tmp_path / "three.parquet", ["a", "b"], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert compare_predictions(one, others) is None
    assert compare_predictions(one, three) is None
    assert compare_predictions(one, tmp_path / "none.parquet") is None


def test_causes_name_what_one_has_and_the_other_has_not() -> None:
    recorded = {"host.threads": "2", "host.cpu_features": "avx2 fma avx512f", "version.numpy": "2.4.6", "gone": "x"}
    found = {"host.threads": "64", "host.cpu_features": "avx2 fma amx_bf16", "version.numpy": "2.4.6", "new": "y"}
    assert find_causes(recorded, found) == [
        "host.cpu_features: without avx512f, with amx_bf16",
        "host.threads: 2 then, 64 now",
    ]


def test_a_difference_is_shown_by_the_first_line_of_it(tmp_path: Path) -> None:
    for name, loss in {"then": "0.5", "now": "0.6"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "curves.png").write_bytes(loss.encode())
        (tmp_path / name / "history.csv").write_text(f"epoch,loss\n1,{loss}\n")
    (tmp_path / "then" / "old.json").write_text("{}")
    how = describe_difference(tmp_path / "then", tmp_path / "now")
    assert how == "old.json is missing; history.csv: line 2 was '1,0.5', is '1,0.6'; curves.png: other bytes"
    assert describe_difference(tmp_path / "gone", tmp_path / "now") == "its digest differs"
    assert describe_difference(tmp_path / "then", tmp_path / "gone") == "it was not made"
