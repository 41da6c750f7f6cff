"""The absolute gate: thresholds that a model must reach to be registered."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.params import EvaluateParams


@dataclass(frozen=True)
class Check:
    """A value compared with its threshold."""

    name: str  # the key of `evaluate` in params.yaml that sets the threshold
    threshold: float
    value: float | None  # None: not a number
    passed: bool

    def __str__(self) -> str:
        """`evaluate.min_accuracy needs at least 0.85: 0.83`."""
        return f"evaluate.{self.name} needs {self.described_threshold}: {self.described_value}"

    @property
    def described_value(self) -> str:
        return "not a number" if self.value is None else f"{self.value:,}"

    @property
    def described_threshold(self) -> str:
        side = "at least" if self.name.startswith("min_") else "at most"
        return f"{side} {self.threshold:,}"


@dataclass(frozen=True)
class Gate:
    """The checks of a model. It passes if all of them pass."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)


def judge(metrics: Mapping[str, float | None], model_bytes: int, thresholds: EvaluateParams) -> Gate:
    """Check a model against the thresholds. A value equal to its threshold passes; one that is not a number fails.

    Args:
        metrics: `accuracy`, `balanced_accuracy`, `min_class_recall` and `loss`, as in `metrics.json`.
        model_bytes: size of the model file.
    """
    checks = [_at_least("min_accuracy", thresholds.min_accuracy, metrics["accuracy"])]
    if thresholds.min_balanced_accuracy is not None:
        least = thresholds.min_balanced_accuracy
        checks.append(_at_least("min_balanced_accuracy", least, metrics["balanced_accuracy"]))
    checks += [
        _at_least("min_class_recall", thresholds.min_class_recall, metrics["min_class_recall"]),
        _at_most("max_loss", thresholds.max_loss, metrics["loss"]),
        _at_most("max_model_bytes", thresholds.max_model_bytes, model_bytes),
    ]
    return Gate(tuple(checks))


def _at_least(name: str, threshold: float, value: float | None) -> Check:
    return Check(name, threshold, value, value is not None and value >= threshold)


def _at_most(name: str, threshold: float, value: float | None) -> Check:
    return Check(name, threshold, value, value is not None and value <= threshold)
