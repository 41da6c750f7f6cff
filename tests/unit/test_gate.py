"""The absolute gate can fail, for each of its reasons alone."""

from dataclasses import replace

import pytest

from pipeline.evaluation.gate import Gate, judge
from pipeline.params import EvaluateParams

THRESHOLDS = EvaluateParams(
    min_accuracy=0.85, min_balanced_accuracy=0.8, min_class_recall=0.5, max_loss=1.0, max_model_bytes=1000
)
AT_EVERY_EDGE = {"accuracy": 0.85, "balanced_accuracy": 0.8, "min_class_recall": 0.5, "loss": 1.0}


def failures(gate: Gate) -> list[str]:
    return [check.name for check in gate.failures]


def test_values_at_their_thresholds_pass() -> None:
    gate = judge(AT_EVERY_EDGE, 1000, THRESHOLDS)
    assert gate.passed
    assert failures(gate) == []
    assert [check.name for check in gate.checks] == list(vars(THRESHOLDS))


@pytest.mark.parametrize(
    ("name", "value", "failing"),
    [
        ("accuracy", 0.849999, "min_accuracy"),
        ("balanced_accuracy", 0.799999, "min_balanced_accuracy"),
        ("min_class_recall", 0.499999, "min_class_recall"),
        ("loss", 1.000001, "max_loss"),
        ("loss", None, "max_loss"),
        ("loss", float("nan"), "max_loss"),
    ],
)
def test_one_value_beyond_its_threshold_rejects(name: str, value: float | None, failing: str) -> None:
    gate = judge({**AT_EVERY_EDGE, name: value}, 1000, THRESHOLDS)
    assert not gate.passed
    assert failures(gate) == [failing]


def test_a_threshold_of_null_is_not_checked() -> None:
    gate = judge({**AT_EVERY_EDGE, "balanced_accuracy": 0.0}, 1000, replace(THRESHOLDS, min_balanced_accuracy=None))
    assert gate.passed
    assert "min_balanced_accuracy" not in [check.name for check in gate.checks]


def test_one_byte_too_many_rejects() -> None:
    assert failures(judge(AT_EVERY_EDGE, 1001, THRESHOLDS)) == ["max_model_bytes"]


def test_all_failures_are_listed_with_value_and_threshold() -> None:
    gate = judge({"accuracy": 0.1, "balanced_accuracy": 0.2, "min_class_recall": 0.0, "loss": None}, 5000, THRESHOLDS)
    assert [str(check) for check in gate.failures] == [
        "evaluate.min_accuracy needs at least 0.85: 0.1",
        "evaluate.min_balanced_accuracy needs at least 0.8: 0.2",
        "evaluate.min_class_recall needs at least 0.5: 0.0",
        "evaluate.max_loss needs at most 1.0: not a number",
        "evaluate.max_model_bytes needs at most 1,000: 5,000",
    ]
