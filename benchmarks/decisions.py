"""How often the champion rule is wrong: simulated pairs of models, judged by the rule as `params.yaml` sets it.

Two models disagree on some share of 10,000 test images, in ten classes as unequally hard as Fashion-MNIST's. The veto
by class is simulated with 2 to 100 classes too.
Run: `python benchmarks/decisions.py`, five minutes. Writes `decisions.md`; exits 1 when a figure misses its mark.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.evaluation import markdown
from pipeline.evaluation.champion_rule import VETO_LEVEL, Case, decide, falling_classes, significance_level
from pipeline.evaluation.comparison import Comparison, Pairs
from pipeline.params import RegisterParams, load_params

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "benchmarks" / "decisions.md"
PAIRS = 2000
CLASS_IMAGES = 1000
ACCURACY = 0.93
GAIN = 0.01
# Shares of all errors by class, about those of a small convolutional network on Fashion-MNIST.
HARDNESS = np.array([0.17, 0.01, 0.13, 0.08, 0.13, 0.02, 0.31, 0.05, 0.02, 0.08])


@dataclass(frozen=True)
class Row:
    """One setting that was simulated."""

    disagreement: float  # share of images that exactly one of the two models gets right
    place: int  # of the challenger, among those judged on these images
    gain: float  # the challenger's true accuracy less the champion's
    promoted: float  # share of the simulated pairs

    def holds(self, params: RegisterParams) -> bool:
        """Whether it is as promised: at most the level for equal models, four of five for better ones."""
        level = significance_level(params.alpha, self.place)
        return self.promoted >= 0.8 if self.gain else self.promoted <= level


def simulate(
    params: RegisterParams, *, disagreement: float, place: int, gain: float, pairs: int = PAIRS, seed: int = 1
) -> Row:
    """Draw pairs of models, whose true accuracies differ by `gain`, and count the promotions."""
    random = np.random.default_rng(seed)
    either = disagreement * HARDNESS / HARDNESS.mean()
    gained, lost = (either * (1 + sign * gain / disagreement) / 2 for sign in (1, -1))
    wrong = (1 - ACCURACY) * HARDNESS / HARDNESS.mean() - gained  # by both: the champion's errors that are not gained
    probabilities = np.stack([gained, lost, np.maximum(wrong, 0), 1 - gained - lost - np.maximum(wrong, 0)], axis=1)
    drawn = np.stack([random.multinomial(CLASS_IMAGES, row, pairs) for row in probabilities], axis=1)
    promoted = sum(decide(case_of(counts, place), params).outcome == "champion" for counts in drawn)
    return Row(disagreement, place, gain, promoted / pairs)


def case_of(counts: np.ndarray, place: int) -> Case:
    """A challenger by its counts: int [classes, 4], gained, lost, both wrong, both right."""
    by_class = [
        Pairs(both_right=int(right), both_wrong=int(wrong), gained=int(gained), lost=int(lost))
        for gained, lost, wrong, right in counts
    ]
    total = counts.sum(axis=0)
    overall = Pairs(both_right=int(total[3]), both_wrong=int(total[2]), gained=int(total[0]), lost=int(total[1]))
    comparison = Comparison(overall, {str(label): pairs for label, pairs in enumerate(by_class)}, 0.02, 0.02)
    return Case(challenger="2", champion="1", comparison=comparison, place=place, multiply_adds=1)


@dataclass(frozen=True)
class VetoRow:
    """A setting in which the veto by class was simulated."""

    classes: int
    images: int  # of each class
    disagreement: float
    vetoed: float  # share of the equally good models
    found: float | None  # smallest true drop of one class's recall that is vetoed in four of five cases; None: over 0.6

    @property
    def holds(self) -> bool:
        """True if equally good models are vetoed as rarely as promised."""
        return self.vetoed <= VETO_LEVEL


def simulate_vetoes(
    max_drop: float, *, classes: int, images: int, disagreement: float, drop: float = 0.0, pairs: int = PAIRS
) -> float:
    """The share of simulated pairs of models that is vetoed, where one class of average difficulty truly falls by
    `drop` and all others are equal.
    """
    random = np.random.default_rng(1)
    hardness = np.resize(HARDNESS, classes)
    either = np.minimum(disagreement * hardness / hardness.mean(), 1)
    gained, lost = either / 2, either / 2
    if drop:
        gained[0], lost[0] = (max(disagreement, drop) - drop) / 2, (max(disagreement, drop) + drop) / 2
    probabilities = np.stack([gained, lost, 1 - gained - lost], axis=1)
    drawn = np.stack([random.multinomial(images, row, pairs) for row in probabilities], axis=1)
    vetoed = 0
    for counts in drawn.tolist():
        by_class = {str(label): Pairs(same, 0, right, wrong) for label, (right, wrong, same) in enumerate(counts)}
        vetoed += bool(falling_classes(by_class, max_drop))
    return vetoed / pairs


def simulate_all_vetoes(max_drop: float) -> Iterator[VetoRow]:
    """From few classes to many, with few images each and with many."""
    for classes in (2, 10, 30, 100):
        for images in (100, 1000):
            for disagreement in (0.08, 0.2):
                setting = {"classes": classes, "images": images, "disagreement": disagreement}
                drops = (points / 100 for points in range(4, 61))
                found = (drop for drop in drops if simulate_vetoes(max_drop, **setting, drop=drop, pairs=300) >= 0.8)
                yield VetoRow(classes, images, disagreement, simulate_vetoes(max_drop, **setting), next(found, None))


def simulate_all(params: RegisterParams, pairs: int = PAIRS) -> Iterator[Row]:
    """Every setting that is promised, and some beyond."""
    for disagreement in (0.02, 0.05, 0.08):
        for place in (1, 2, 10):
            for gain in (0.0, GAIN):
                if gain or place <= 2:  # so few pairs cannot tell the tenth challenger's level from zero
                    yield simulate(params, disagreement=disagreement, place=place, gain=gain, pairs=pairs)


def is_promised(row: Row) -> bool:
    """The tenth challenger is promised its gain only where the models disagree on few images."""
    return not row.gain or row.place <= 2 or row.disagreement <= 0.05


def render_vetoes(rows: list[VetoRow], params: RegisterParams) -> list[str]:
    """The page's second part."""
    cells = [
        (
            f"{row.classes}",
            f"{row.images:,}",
            f"{row.disagreement:.0%}",
            f"{row.vetoed:.2%}",
            f"at most {VETO_LEVEL:.0%}",
            "yes" if row.holds else "**no**",
            f"{100 * row.found:.0f} points" if row.found else "over 60 points",
        )
        for row in rows
    ]
    columns = ("classes", "images a class", "disagreement", "equal models vetoed", "mark", "holds", "found")
    return [
        "## The veto by class",
        f"A class vetoes whose recall falls by more than {100 * params.max_class_drop:.0f} points (`max_class_drop`) "
        "beyond chance, by McNemar's exact test with Holm's correction over the classes. "
        f"{PAIRS:,} pairs of equally good models a row, in classes of unequal difficulty. *Found* is the smallest true "
        "fall of one class that is vetoed in four of five cases, in steps of a point (300 pairs each).",
        markdown.table(columns, cells),
    ]


def render(rows: list[Row], vetoes: list[VetoRow], params: RegisterParams) -> str:
    """The page."""
    cells = [
        (
            f"{row.disagreement:.0%}",
            str(row.place),
            f"{100 * row.gain:+.1f} points" if row.gain else "none",
            f"{row.promoted:.2%}",
            "at least 80%" if row.gain else f"at most {significance_level(params.alpha, row.place):.2%}",
            ("yes" if row.holds(params) else "**no**") if is_promised(row) else "not promised",
        )
        for row in rows
    ]
    columns = ("disagreement", "challenger", "true gain", "promoted", "mark", "holds")
    return "\n\n".join(
        [
            "# How often the champion rule is right",
            f"{PAIRS:,} simulated pairs of models a row, on 10,000 images in ten classes of unequal difficulty, around "
            f"{ACCURACY:.0%} accuracy, judged by `register.rule: {params.rule}` with alpha {params.alpha}, min_gain "
            f"{params.min_gain} and max_class_drop {params.max_class_drop}, vetoes included. Disagreement is the share "
            "of images that exactly one of the two models gets right; challenger k is the k-th judged on these images, "
            "at the level alpha / (k (k + 1)). Written by `python benchmarks/decisions.py`.",
            markdown.table(columns, cells),
            *render_vetoes(vetoes, params),
            "",
        ]
    )


def main() -> int:
    params = load_params(REPOSITORY / "params.yaml").register
    rows = list(simulate_all(params))
    vetoes = list(simulate_all_vetoes(params.max_class_drop))
    PAGE.write_text(render(rows, vetoes, params), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
    holds = all(row.holds(params) for row in rows if is_promised(row)) and all(row.holds for row in vetoes)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
