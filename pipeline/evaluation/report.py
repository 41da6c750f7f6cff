"""The report of an evaluation in `reports/evaluation/`: metrics, tables, figures, a page. No times, no paths."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import figures, markdown
from pipeline.evaluation.calibration import Bin, expected_calibration_error, reliability
from pipeline.evaluation.gate import Gate
from pipeline.evaluation.metrics import (
    ClassScore,
    class_scores,
    confusion_matrix,
    cross_entropy,
    roc_auc,
    select_weakest,
    wilson_interval,
)
from pipeline.evaluation.predictions import PREDICTIONS, Predictions, write_predictions
from pipeline.evaluation.quantized import describe_quantized
from pipeline.evaluation.saliency import Predict, SaliencyCheck, check_saliency, explain
from pipeline.files import atomic_directory, write_json

DIGITS = 6  # of every number in the files
SHOWN_MISTAKES, EXPLAINED_MISTAKES = 24, 12
SHOWN_CONFUSIONS = 6

# float, int, or None: not a number; `saliency`: its check; `int8`: the figures of the int8 file, if there is one
Metrics = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answers(Predictions):
    """A model's predictions with the images, for the report."""

    dataset: str
    classes_ko: tuple[str, ...]  # empty if there are no Korean names
    images: np.ndarray  # uint8 [n, *shape]

    @property
    def names(self) -> list[tuple[str, ...]]:
        """The English name of each class, and the Korean one if there are any."""
        return list(zip(*filter(None, (self.classes, self.classes_ko)), strict=True))

    @cached_property
    def confusion(self) -> np.ndarray:
        """int [classes, classes]: images by true class (row) and predicted class (column)."""
        return confusion_matrix(self.labels, self.predicted, len(self.classes))

    @cached_property
    def class_scores(self) -> list[ClassScore]:
        """Precision, recall, F1 and support of each class."""
        return class_scores(self.confusion)

    @cached_property
    def reliability(self) -> list[Bin]:
        """Accuracy by confidence."""
        return reliability(self.confidences, self.correct)

    def find_mistakes(self, count: int) -> np.ndarray:
        """Return rows of the most confident mistakes, the most confident first."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")][:count]

    def find_confusions(self, count: int) -> list[tuple[int, int]]:
        """Return the most frequent pairs of true class and wrong prediction."""
        wrong = self.confusion * (1 - np.eye(len(self.classes), dtype=int))
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [divmod(int(cell), len(self.classes)) for cell in order]
        return [(actual, predicted) for actual, predicted in pairs if wrong[actual, predicted]]


def measure(answers: Answers) -> Metrics:
    """Compute the rounded metrics of `metrics.json`. A binary task also has the area under the ROC curve."""
    images, correct = len(answers.labels), int(answers.correct.sum())
    low, high = wilson_interval(correct, images)
    metrics = {
        "accuracy": correct / images,
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": cross_entropy(answers.labels, answers.probabilities),
        "ece": expected_calibration_error(answers.reliability),
        "balanced_accuracy": float(np.mean([score.recall for score in answers.class_scores])),
        "macro_f1": float(np.mean([score.f1 for score in answers.class_scores])),
        "min_class_recall": min(score.recall for score in answers.class_scores),
    }
    if len(answers.classes) == 2:
        metrics["roc_auc"] = roc_auc(answers.labels, answers.probabilities[:, 1])
    return {"images": images} | {name: _rounded(value) for name, value in metrics.items()}


def explain_mistakes(answers: Answers, predict: Predict, ground: int | Sequence[int]) -> list[np.ndarray]:
    """Compute the saliency of the most confident mistakes for the predicted class: each float32 [height, width]."""
    return [
        explain(predict, answers.images[row], int(answers.predicted[row]), ground)
        for row in answers.find_mistakes(EXPLAINED_MISTAKES)
    ]


def measure_saliency(answers: Answers, predict: Predict, ground: int | Sequence[int]) -> Metrics:
    """Check whether the saliency means something. Returns the figures for `metrics.json`."""
    return asdict(check_saliency(predict, answers.images, answers.predicted, ground))


def write_evaluation(
    directory: Path, answers: Answers, metrics: Metrics, gate: Gate, saliency: Sequence[np.ndarray]
) -> None:
    """Write the report of an evaluation, replacing `directory`. saliency: of `explain_mistakes`."""
    with atomic_directory(directory) as partial:
        write_json(partial / "metrics.json", metrics)
        write_json(partial / "gate.json", {"passed": gate.passed, "checks": [asdict(check) for check in gate.checks]})
        write_predictions(partial / PREDICTIONS, answers)
        _write_tables(partial, answers)
        (partial / "report.md").write_text(_page(answers, metrics, gate), encoding="utf-8")
        (partial / "figures").mkdir()
        figures.draw_confusion(partial / "figures" / "confusion.png", answers.confusion, answers.classes)
        figures.draw_reliability(partial / "figures" / "reliability.png", answers.reliability)
        gallery = _gallery(answers)
        figures.draw_gallery(partial / "figures" / "gallery.png", gallery)
        figures.draw_saliency(partial / "figures" / "saliency.png", gallery[: len(saliency)], saliency)


def _rounded(value: float) -> float | None:
    return round(value, DIGITS) if np.isfinite(value) else None


def _write_tables(directory: Path, answers: Answers) -> None:
    names = np.array(answers.classes)
    pairs = zip(names[answers.labels], names[answers.predicted], strict=True)
    _write_csv(directory / "confusion.csv", ("actual", "predicted"), pairs)
    scores = [
        (*names, *(round(ratio, DIGITS) for ratio in (score.precision, score.recall, score.f1)), score.support)
        for names, score in zip(answers.names, answers.class_scores, strict=True)
    ]
    languages = ("class", "class_ko")[: len(answers.names[0])]
    _write_csv(directory / "per_class.csv", (*languages, "precision", "recall", "f1", "support"), scores)
    bins = [
        (*(round(value, DIGITS) for value in (row.low, row.high, row.confidence, row.accuracy)), row.images)
        for row in answers.reliability
    ]
    _write_csv(directory / "reliability.csv", ("low", "high", "confidence", "accuracy", "images"), bins)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _gallery(answers: Answers) -> list[figures.Mistake]:
    return [
        figures.Mistake(
            image=answers.images[row],
            actual=answers.classes[answers.labels[row]],
            predicted=answers.classes[answers.predicted[row]],
            confidence=float(answers.confidences[row]),
        )
        for row in answers.find_mistakes(SHOWN_MISTAKES)
    ]


def _page(answers: Answers, metrics: Metrics, gate: Gate) -> str:
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    loss = "not a number" if metrics["loss"] is None else f"{metrics['loss']:.4f} nats"
    figures_of_merit = [
        ("Accuracy", f"{metrics['accuracy']:.2%}, 95% interval {low:.2%} to {high:.2%} (Wilson)"),
        ("Loss, mean cross-entropy", loss),
        ("Expected calibration error", f"{metrics['ece']:.4f}"),
        ("Balanced accuracy, mean recall of the classes", f"{metrics['balanced_accuracy']:.2%}"),
        ("Macro F1", f"{metrics['macro_f1']:.4f}"),
    ]
    if metrics.get("roc_auc") is not None:
        figures_of_merit.append(("Area under the ROC curve", f"{metrics['roc_auc']:.4f}"))
    if int8 := metrics.get("int8"):
        figures_of_merit.append(("int8 file, which decides nothing", describe_quantized(int8)))
    explanation = "Red: the pixels that spoke for the wrong class, by occlusion (Zeiler and Fergus, 2014)."
    if checked := metrics.get("saliency"):
        explanation += f" Check on correct and wrong predictions: {SaliencyCheck(**checked)}."
    verdict = "passed, the model may be registered" if gate.passed else "REJECTED, the model will not be registered"
    checks = [
        (
            f"`evaluate.{check.name}`",
            check.described_value,
            check.described_threshold,
            "passed" if check.passed else "**failed**",
        )
        for check in gate.checks
    ]
    classes = [
        (
            *map(markdown.escape, names),
            f"{score.precision:.3f}",
            f"{score.recall:.3f}",
            f"{score.f1:.3f}",
            f"{score.support:,}",
        )
        for names, score in zip(answers.names, answers.class_scores, strict=True)
    ]
    shown = select_weakest([score.recall for score in answers.class_scores])
    selection = markdown.describe_selection(shown, len(classes))
    languages = ("class", "클래스")[: len(answers.names[0])]
    confusions = [
        (
            markdown.escape(answers.classes[actual]),
            markdown.escape(answers.classes[predicted]),
            f"{answers.confusion[actual, predicted]:,}",
            f"{answers.confusion[actual, predicted] / answers.confusion[actual].sum():.1%}",
        )
        for actual, predicted in answers.find_confusions(SHOWN_CONFUSIONS)
    ]
    sections = [
        f"# Evaluation on {metrics['images']:,} test images of {answers.dataset}",
        markdown.table(("figure", "value"), figures_of_merit),
        f"## Gate: {verdict}",
        markdown.table(("check", "value", "threshold", "result"), checks),
        "## Classes",
        *selection,
        markdown.table((*languages, "precision", "recall", "F1", "images"), [classes[label] for label in shown]),
        "## Most frequent confusions",
        markdown.table(("actual", "predicted", "images", "of the actual class"), confusions) if confusions else "None.",
        "![Confusion matrix](figures/confusion.png)",
        "## Calibration",
        "![Reliability diagram](figures/reliability.png)",
        "## Most confident mistakes",
        "![Gallery of mistakes](figures/gallery.png)",
        explanation,
        "![Saliency of mistakes](figures/saliency.png)",
    ]
    return "\n\n".join(sections) + "\n"
