"""The champion rule: decide from two models' predictions for the same images if the challenger replaces the champion.

A challenger is promoted if it satisfies `register.rule` and there is no veto. Otherwise it waits as challenger, unless
it is significantly worse. Without a comparison, no model is promoted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.evaluation import markdown
from pipeline.evaluation.comparison import CONFIDENCE, Comparison, Pairs, describe_comparison, detectable_gain
from pipeline.params import RegisterParams

VETO_LEVEL = 0.05  # probability that an equally good model is vetoed because of a class
Outcome = Literal["champion", "challenger", "not promoted", "rejected"]


@dataclass(frozen=True)
class Decision:
    """The decision on a model, with its reason."""

    outcome: Outcome  # the model's alias; `not promoted`: a version without an alias; `rejected`: no version
    reason: str  # one paragraph
    ground: str = "judged before"  # the reason in two or three words
    evidence: dict[str, Any] = field(default_factory=dict)  # the facts behind the reason, as JSON


@dataclass(frozen=True)
class Case:
    """The facts that a decision on a challenger is based on."""

    challenger: str  # its version; or a name, such as `the model of main`
    champion: str
    comparison: Comparison
    place: int  # its number among all challengers judged on these test images, from 1
    multiply_adds: int  # of the challenger's network, for one view of one image


def significance_level(alpha: float, place: int) -> float:
    """Return the significance level for a challenger: alpha / (k (k + 1)) for the k-th on the same test images.

    Each challenger spends a part of alpha. The parts sum to at most alpha for any number of challengers, so alpha
    bounds the probability that any of them is wrongly found better (Bonferroni with unequal shares, also known as
    alpha-spending: D. P. Foster and R. A. Stine, "Alpha-investing", J. R. Stat. Soc. B 70, 2008, section 2). On test
    images that wear out because decisions are fed back, see A. Blum and M. Hardt, "The Ladder: A reliable leaderboard
    for machine learning competitions", ICML 2015.
    """
    return alpha / (place * (place + 1))


def decide(case: Case, params: RegisterParams) -> Decision:
    """Decide on a challenger."""
    pairs, level = case.comparison.overall, significance_level(params.alpha, case.place)
    vetoes = tuple(_vetoes(case, params))
    if params.rule == "better":
        convinces = pairs.p_value <= level and pairs.difference >= max(params.min_gain, 1 / pairs.images)
    else:
        convinces = pairs.interval(1 - level)[0] > -params.margin and pairs.difference >= 0
    is_worse = pairs.difference < 0 and pairs.p_value <= level
    outcome: Outcome = "challenger"
    if convinces and not vetoes:
        outcome, ground = "champion", "better" if params.rule == "better" else "not worse"
    elif is_worse:
        outcome, ground = "not promoted", "worse"
    elif vetoes:
        outcome, ground = "not promoted", "vetoed"
    elif not pairs.difference:
        ground = "tie"
    else:
        ground = "not shown to be better" if params.rule == "better" else "may be worse"
    evidence = {
        "champion": case.champion,
        "place": case.place,
        "level": level,
        "detectable_gain": detectable_gain(pairs.images, pairs.disagreement, level) or None,  # None: equal predictions
        "multiply_adds": case.multiply_adds,
        "vetoes": vetoes,
        "comparison": describe_comparison(case.comparison),
    }
    return Decision(outcome, " ".join(_explain(case, params, outcome, vetoes)), ground, evidence)


def falling_classes(by_class: Mapping[str, Pairs], max_drop: float) -> dict[str, float]:
    """Find the classes whose recall falls significantly by more than `max_drop`, with their corrected p-values.

    Each class is tested by McNemar's exact test, one-sided, and Holm's procedure corrects for the number of classes:
    if no class is worse, the probability that any is found is at most `VETO_LEVEL` (S. Holm, "A simple sequentially
    rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979). Classes with too little
    disagreement for such a fall are not tested. This keeps the level, because the test is conditional on the
    disagreement (R. E. Tarone, "A modified Bonferroni method for discrete data", Biometrics 46, 1990).
    """
    tested = {name: pairs for name, pairs in by_class.items() if pairs.disagreement > max_drop}
    p_values = sorted((pairs.loss_p_value, name) for name, pairs in tested.items())
    found, corrected = {}, 0.0
    for rank, (p_value, name) in enumerate(p_values):
        corrected = max(corrected, min(1.0, p_value * (len(p_values) - rank)))
        if corrected <= VETO_LEVEL and -tested[name].difference > max_drop:
            found[name] = corrected
    return {name: found[name] for name in by_class if name in found}


def render_json(decision: Decision, about: dict[str, Any], params: RegisterParams) -> dict[str, Any]:
    """Return the content of `decision.json`. `about`: the model, the run and the test images."""
    result = {"outcome": decision.outcome, "ground": decision.ground, "reason": decision.reason}
    return result | about | {"params": asdict(params)} | decision.evidence


def render_page(decision: Decision, title: str) -> str:
    """Return a decision as Markdown, for `decision.md`."""
    sections = [f"# {title}", f"**{decision.outcome}** ({decision.ground})", markdown.escape(decision.reason)]
    if comparison := decision.evidence.get("comparison"):
        counts = [
            ("champion right", f"{comparison['both_right']:,}", f"{comparison['lost']:,}"),
            ("champion wrong", f"{comparison['gained']:,}", f"{comparison['both_wrong']:,}"),
        ]
        classes = [
            (
                markdown.escape(name),
                f"{pairs['images']:,}",
                f"{pairs['champion_right']:.2%}",
                f"{pairs['challenger_right']:.2%}",
                in_points(pairs["difference"]),
                f"{in_points(pairs['difference_low'])} to {in_points(pairs['difference_high'])}",
            )
            for name, pairs in comparison["by_class"].items()
        ]
        columns = ("class", "images", "champion's recall", "challenger's", "difference", "95% interval")
        sections += [
            f"## The same {comparison['images']:,} test images",
            markdown.table(("", "challenger right", "challenger wrong"), counts, numbers=2),
            "## Recall by class, in points",
            markdown.table(columns, classes, numbers=5),
            f"Expected calibration error {comparison['champion_ece']:.4f}, then {comparison['challenger_ece']:.4f}.",
        ]
    return "\n\n".join(sections) + "\n"


def in_points(share: float) -> str:
    """Format a difference of shares in percentage points: `+0.30`."""
    return f"{100 * share:+.2f}"


def _vetoes(case: Case, params: RegisterParams) -> Iterator[str]:
    by_class = case.comparison.by_class
    for name, p_value in falling_classes(by_class, params.max_class_drop).items():
        low, high = by_class[name].interval()
        yield (
            f"recall of {name} falls by {-100 * by_class[name].difference:.2f} points (95% interval {in_points(low)} "
            f"to {in_points(high)}; p = {p_value:.2g}, corrected for all classes), at most "
            f"{100 * params.max_class_drop:.2f} are allowed (register.max_class_drop)"
        )
    if not case.comparison.challenger_ece <= params.max_ece:
        yield (
            f"its calibration error is {case.comparison.challenger_ece:.4f}, at most {params.max_ece} is allowed "
            "(register.max_ece)"
        )
    if case.multiply_adds > params.max_multiply_adds:
        yield (
            f"it takes {case.multiply_adds:,} multiply-adds an image, at most {params.max_multiply_adds:,} are allowed "
            "(register.max_multiply_adds)"
        )


def _name(model: str) -> str:
    return f"version {model}" if model.isdigit() else model


def _explain(case: Case, params: RegisterParams, outcome: Outcome, vetoes: tuple[str, ...]) -> Iterator[str]:
    """Yield the sentences of the reason."""
    pairs = case.comparison.overall
    level = significance_level(params.alpha, case.place)
    low, high = pairs.interval()
    challenger, champion = _name(case.challenger), _name(case.champion)
    verdict = {
        "champion": f"takes the place of {champion}",
        "challenger": "is not promoted and waits as challenger",
    }
    yield (
        f"{challenger[0].upper()}{challenger[1:]} {verdict.get(outcome, 'is not promoted')}: it is right on "
        f"{pairs.gained:,} images that {champion} gets wrong, wrong on {pairs.lost:,} that {champion} gets right; "
        f"difference {in_points(pairs.difference)} points, {CONFIDENCE:.0%} interval {in_points(low)} to "
        f"{in_points(high)}."
    )
    if left_out := case.comparison.left_out:
        yield (
            f"Only the images of the {len(case.comparison.by_class)} classes that both know were compared; left out: "
            f"{', '.join(left_out)}."
        )
    asked = f"{params.alpha} / ({case.place} x {case.place + 1}) = {level:.2g}"
    whom = f"challenger {case.place} on these {pairs.images:,} test images"
    if params.rule == "better":
        yield (
            f"McNemar's exact test (mid-p) gives p = {pairs.p_value:.2g}; of {whom} the rule `better` asks for p at "
            f"most {asked}, and a gain of {100 * params.min_gain:.2f} points or more."
        )
    else:
        low, high = pairs.interval(1 - level)
        yield (
            f"At the level {asked} of {whom} the interval is {in_points(low)} to {in_points(high)}; the rule "
            f"`not_worse` asks that it lies above -{100 * params.margin:.2f}, and for no loss."
        )
    if vetoes:
        yield f"Vetoed: {'; '.join(vetoes)}."
    if outcome == "challenger" and pairs.disagreement:
        gain = detectable_gain(pairs.images, pairs.disagreement, level)
        yield f"A true gain of {100 * gain:.2f} points would be found in four of five cases."
    if case.place > params.worn_out_after:
        yield (
            f"These test images are worn out: {case.place} challengers were judged on them, which is more than "
            f"{params.worn_out_after}, and each makes the next decision less certain. Test images that no model was "
            f"judged on yet start a new count."
        )
