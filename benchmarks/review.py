"""Measure the search for wrong labels on Fashion-MNIST with the `mlp` preset, and write `review.md` here.

    python benchmarks/review.py                     # everything, a quarter of an hour
    python benchmarks/review.py --seeds 1           # less

The test images are read in the last part alone, as given: labels are never corrected there. Linux only.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end import Claim, describe_machine, markdown_table, progress, temporary_directory
from scipy import stats

from pipeline.data import idx, table
from pipeline.data.catalog import CATALOG, load_entry
from pipeline.data.dataset_files import fetch
from pipeline.params import Params, load_params
from pipeline.review.duplicates import Pair, find_duplicates, group_twins
from pipeline.review.folds import Folds, Progress, divide, predict
from pipeline.review.images import TABLES, read_images
from pipeline.review.ranking import FILTER, SCORE, rank

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "benchmarks/review.md"
FOLDS = 5
AGREED = (16691, 33982, 40513, 42018)  # rows of the official training images that two published lists call wrong
PUBLISHED = (*AGREED, 28264, 45592)  # and two more, of a third list
TWINS = ((10205, 23412), (11932, 51488))
FLIPPED = 300
CONFUSED = 0.03
SHIRT, T_SHIRT = 6, 0
FILTERS = ("prune_by_class", "prune_by_noise_rate", "both", "confident_learning", "low_self_confidence",
           "low_normalized_margin", "predicted_neq_given")  # fmt: skip
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
NOISE = (0.005, 0.05)  # shares of the labels that are flipped before training
Labelled = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Labels to review, and the rows that are wrong in them."""

    name: str
    labels: np.ndarray
    wrong: np.ndarray
    probabilities: np.ndarray  # out of fold, float32 [n, classes]


@dataclass(frozen=True)
class Bench:
    """The data, and the duplicates among the images."""

    train: Labelled
    test: Labelled
    pairs: list[Pair]

    def predict(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Return out-of-fold probabilities, of models trained on these labels with this seed."""
        write(TABLES["train"], (self.train[0], labels))
        folds = self.divide(labels, seed)
        return predict_folds(labels, folds, seed)

    def divide(self, labels: np.ndarray, seed: int) -> Folds:
        return divide(labels, group_twins(len(labels), self.pairs, ()), FOLDS, seed)


def write(path: Path, images: Labelled) -> None:
    ids = [f"{digest.hex()}-0" for digest in table.pixel_digests(images[0])]
    with table.writer(path, load_entry("fashion-mnist", REPOSITORY / CATALOG).dataset) as rows:
        rows.write(*images, table.strings(ids), table.strings([table.OFFICIAL] * len(ids)))


def load_data(directory: Path) -> Bench:
    """Fetch Fashion-MNIST, and write its tables into the current directory."""
    entry = load_entry("fashion-mnist", REPOSITORY / CATALOG)
    (directory / "data/raw").mkdir(parents=True)
    (directory / "data/local").mkdir()
    fetched = fetch(entry, Path("data/local"), directory / "data/raw")
    splits = []
    for split, files in (("train", fetched.train), ("test", fetched.test)):
        images, labels = (np.concatenate(part) for part in zip(*idx.stream_pair(*files, entry.dataset), strict=True))
        write(TABLES[split], (images, labels))
        splits.append((images, labels))
    tables = [read_images(split, windowed=False) for split in TABLES]
    return Bench(*splits, find_duplicates(*tables, directory / "pixels"))


def make_params(seed: int) -> Params:
    params = read_params()
    return replace(params, train=replace(params.train, seed=seed))


@cache
def read_params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


def predict_folds(labels: np.ndarray, folds: Folds, seed: int) -> np.ndarray:
    dataset = table.read_dataset(TABLES["train"])
    with temporary_directory() as directory:
        return predict(dataset, labels, folds, make_params(seed), directory, "key", ignore, with_test=False).train


def ignore(_: Progress) -> None:
    pass


def make_cases(bench: Bench, seeds: int) -> list[Case]:
    """Predict the labels as they are, with flipped labels, and with two confused classes, for each seed."""
    labels, cases = bench.train[1], []
    for seed in range(1, seeds + 1):
        random = np.random.default_rng(seed)
        flipped, rows = labels.copy(), random.choice(len(labels), FLIPPED, replace=False)
        flipped[rows] = (labels[rows] + random.integers(1, 10, FLIPPED)) % 10
        confused, shirts = labels.copy(), np.flatnonzero(labels == SHIRT)
        mixed = random.choice(shirts, round(CONFUSED * len(shirts)), replace=False)
        confused[mixed] = T_SHIRT
        made = (("as given", labels, np.array([], np.int64)), ("flipped", flipped, rows), ("confused", confused, mixed))
        for name, changed, wrong in made:
            progress(f"seed {seed}: labels {name}")
            cases.append(Case(name, changed, wrong, bench.predict(changed, seed)))
    return cases


def list_places(ranked: np.ndarray, rows: Sequence[int]) -> list[int | None]:
    """Return the place of each row in the list, from 1; None if it is not in it."""
    place = {int(row): number for number, row in enumerate(ranked, 1)}
    return [place.get(row) for row in rows]


def report_ranking(cases: Sequence[Case], claims: list[Claim]) -> str:
    """Describe the places of the published rows, and the shares of the wrong labels that are found."""
    rows, shares = [], {"flipped": [], "confused": []}
    flagged_all, early = [], []
    for number, case in enumerate(cases):
        ranking = rank(case.labels, case.probabilities)
        accuracy = f"{np.mean(case.probabilities.argmax(axis=1) == case.labels):.4f}"
        seed = number // 3 + 1
        if case.name == "as given":
            places = list_places(ranking.flagged, PUBLISHED)
            flagged_all.append(sum(place is not None for place in places))
            early.append(sum(place is not None and place <= 250 for place in places))
            shown = ", ".join(f"{row}: {place or 'not flagged'}" for row, place in zip(PUBLISHED, places, strict=True))
        else:
            found = [float(np.isin(case.wrong, ranking.flagged[:first]).mean()) for first in (len(case.wrong), 600)]
            found.append(float(np.isin(case.wrong, ranking.flagged).mean()))
            shares[case.name].append(found)
            first, early_600, anywhere = (f"{share:.1%}" for share in found)
            shown = f"{first} in the first {len(case.wrong)}, {early_600} in the first 600, {anywhere} flagged"
        rows.append((seed, f"{case.name} ({len(case.wrong)})", accuracy, len(ranking.flagged), shown))
    worst = min(found[1] for found in shares["flipped"])
    claims += [
        Claim("published rows flagged, the worst seed", f"{min(flagged_all)} of 6", "6 of 6", min(flagged_all) == 6),
        Claim("published rows in the first 250, the worst seed", f"{min(early)} of 6", "at least 4", min(early) >= 4),
        Claim("flipped labels in the first 600, the worst seed", f"{worst:.1%}", "at least 80 %", worst >= 0.8),
    ]
    columns = ("seed", "labels (wrong ones added)", "out-of-fold accuracy", "flagged", "found")
    note = (
        f"Five folds. *Flipped*: {FLIPPED} random labels replaced by another class. *Confused*: {CONFUSED:.0%} of the "
        "images of Shirt labelled T-shirt/top, classes that the `mlp` itself confuses: there is no promise about them."
    )
    return f"## What is found\n\n{note}\n\n{markdown_table(columns, rows)}"


def report_methods(cases: Sequence[Case]) -> str:
    """Compare cleanlab's filters and scores on the cases of all seeds."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    rows = []
    for filter_by in FILTERS:
        for score in SCORES:
            found: dict[str, list[float]] = {"flagged": [], "early": [], "flipped": [], "confused": []}
            for case in cases:
                labels = case.labels.astype(np.int64)
                quality = get_label_quality_scores(labels, case.probabilities, method=score)
                flagged = np.flatnonzero(find_label_issues(labels, case.probabilities, filter_by=filter_by, n_jobs=1))
                ranked = flagged[np.argsort(quality[flagged], kind="stable")]
                if case.name == "as given":
                    found["flagged"].append(sum(place is not None for place in list_places(ranked, PUBLISHED)))
                    found["early"].append(sum(place is not None for place in list_places(ranked[:250], PUBLISHED)))
                else:
                    found[case.name].append(float(np.isin(case.wrong, ranked[:600]).mean()))
            means = {name: statistics.mean(values) for name, values in found.items()}
            chosen = "**" if (filter_by, score) == (FILTER, SCORE) else ""
            rows.append(
                (
                    f"{chosen}{filter_by}{chosen}",
                    f"{chosen}{score}{chosen}",
                    f"{means['flagged']:.1f}",
                    f"{means['early']:.1f}",
                    f"{means['flipped']:.1%}",
                    f"{means['confused']:.1%}",
                )
            )
    columns = ("filter", "score", "published rows flagged", "in the first 250", "flipped in 600", "confused in 600")
    note = "Means over the seeds. The score orders the list, and the filter decides what is in it. Bold: what is used."
    return f"## Filters and scores of cleanlab\n\n{note}\n\n{markdown_table(columns, rows)}"


def report_duplicates(bench: Bench, claims: list[Claim]) -> str:
    labels = np.concatenate([bench.train[1], bench.test[1]])
    order = [(pair.first, pair.second) for pair in bench.pairs]
    places = [order.index(pair) + 1 for pair in TWINS]
    both = sum(labels[pair.first] != labels[pair.second] for pair in bench.pairs)
    shown = " and ".join(str(place) for place in places)
    claims.append(Claim("places of the two published pairs of near duplicates", shown, "1 and 2", places == [1, 2]))
    last = len(bench.train[1])
    rows = [
        (*(row if row < last else f"test {row - last}" for row in (pair.first, pair.second)), f"{pair.difference:.2f}")
        for pair in bench.pairs[: max(places)]
    ]
    note = (
        f"{len(bench.pairs)} pairs differ by at most 8 grey values (root mean square) and 15 % of their standard "
        f"deviation; {both} of them have two labels. The two published pairs are not the nearest ones: others, most of "
        "them trousers, are nearer."
    )
    return f"## Near duplicates\n\n{note}\n\n{markdown_table(('image', 'image', 'difference'), rows)}"


def measure_time(part: str) -> None:
    """In a process of its own: print wall and CPU seconds of the start-up and of one training or the folds."""

    def now() -> tuple[float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), usage.ru_utime + usage.ru_stime

    begin = now()
    import pipeline.models.training  # noqa: F401  # TensorFlow

    imported = now()
    images, labels = table.read_images(TABLES["train"])
    folds = divide(labels, np.arange(len(labels)), FOLDS, 1)
    if part == "folds":
        predict_folds(labels, folds, 1)
    else:
        fit(images, labels, 1)
    end = now()
    spans = [
        [after - before for before, after in zip(*two, strict=True)] for two in ((begin, imported), (imported, end))
    ]
    print(json.dumps(spans))


def report_time(repeats: int, claims: list[Claim]) -> str:
    found: dict[str, list[Any]] = {"one training": [], "folds": []}
    for number in range(repeats):
        for part, spans in found.items():
            progress(f"time of {part}, {number + 1} of {repeats}")
            command = [sys.executable, __file__, "--measure", part]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            spans.append(json.loads(result.stdout.splitlines()[-1]))
    rows = []
    for kind, name in enumerate(("wall", "CPU")):
        start, epochs, folds = (
            statistics.median(spans[part][kind] for spans in found[what])
            for what, part in (("one training", 0), ("one training", 1), ("folds", 1))
        )
        rows.append((name, f"{start:.1f}", f"{epochs:.1f}", f"{folds:.1f}", f"{folds / epochs:.2f}"))
        claims.append(
            Claim(f"{FOLDS} folds, {name} time of one training's epochs", f"{folds / epochs:.2f} x", "at most 5 x",
                  folds / epochs <= 5)
        )  # fmt: skip
    note = f"Seconds, medians of {repeats} processes of each kind in turn; the start-up is TensorFlow's import, once."
    columns = ("time", "start-up", "epochs of one training", f"{FOLDS} folds", "folds / epochs")
    return f"## Time\n\n{note}\n\n{markdown_table(columns, rows)}"


def fit(images: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """Train the preset as `train` does: a tenth of the images chooses the epoch."""
    from pipeline.models import backend, networks, tasks, training
    from pipeline.models.checkpoints import Checkpoint

    params = make_params(seed)
    dataset = table.read_dataset(TABLES["train"])
    task = tasks.create_task("sparse_categorical_crossentropy", dataset.classes)
    backend.make_repeatable(seed)
    network = networks.create_network(params.train.settings, task, dataset.shape)
    chooses = np.random.default_rng(0).permutation(len(labels)) % 10 == 0
    sources = (training.Examples(images[mask], labels[mask]) for mask in (~chooses, chooses))
    checkpoint = Checkpoint(Path("none.npz"), read_only=True)
    list(training.train(network, task, *sources, params.train.settings, seed=seed, checkpoint=checkpoint))
    return network


def report_training(bench: Bench, seeds: int) -> str:
    """Compare trainings with and without corrections, on the test images as given."""
    from pipeline.models.inference import predict as answer

    images, labels = bench.train

    def accuracies(what: str, changed: np.ndarray, kept: np.ndarray) -> np.ndarray:
        progress(f"training: {what}")
        return np.array(
            [
                np.mean(answer(fit(images[kept], changed[kept], seed), bench.test[0]).argmax(axis=1) == bench.test[1])
                for seed in range(1, seeds + 1)
            ]
        )

    everything, rows = np.arange(len(labels)), []

    def add(what: str, measured: np.ndarray, base: np.ndarray | None) -> None:
        change = "" if base is None else describe_difference(measured - base)
        spread = f"{measured.std(ddof=1):.4f}" if len(measured) > 1 else ""
        rows.append((what, f"{measured.mean():.4f}", spread, change))

    base = accuracies("labels as given", labels, everything)
    add("labels as given", base, None)
    ranking = rank(labels, bench.predict(labels, 1))
    for first in (250, 600, len(ranking.flagged)):
        gone = ranking.flagged[:first]
        add(f"the first {first:,} removed", accuracies("removed", labels, np.setdiff1d(everything, gone)), base)
        relabelled = labels.copy()
        relabelled[gone] = ranking.suggested[gone]
        add(f"the first {first:,} relabelled as suggested", accuracies("relabelled", relabelled, everything), base)
    for share in NOISE:
        count, random = round(share * len(labels)), np.random.default_rng(1)
        wrong, noisy = random.choice(len(labels), count, replace=False), labels.copy()
        noisy[wrong] = (labels[wrong] + random.integers(1, 10, count)) % 10
        without = accuracies(f"{count} flipped", noisy, everything)
        add(f"{count:,} labels flipped", without, base)
        ranking = rank(noisy, bench.predict(noisy, 1))
        looked = ranking.flagged[: 2 * count]
        corrected = noisy.copy()
        corrected[looked] = labels[looked]
        what = f"{count:,} flipped, and the first {2 * count:,} looked at and corrected"
        add(what, accuracies(what, corrected, everything), without)
        gone = np.setdiff1d(everything, looked)
        what = f"{count:,} flipped, and the first {2 * count:,} removed unseen"
        add(what, accuracies(what, noisy, gone), without)
    note = (
        f"Accuracy on the 10,000 test images, whose labels are as given; means of {seeds} seeds, the same for each "
        "row. The change is against the labels before corrections, with a paired 95 % interval over the seeds "
        "(Student's t), which leaves out the uncertainty from the number of test images (0.3 points). *Looked at and "
        "corrected*: a person who looks at an image of the list gives it its right label."
    )
    columns = ("training labels", "test accuracy", "standard deviation", "change, in points")
    return f"## Training with and without the corrections\n\n{note}\n\n{markdown_table(columns, rows)}"


def describe_difference(differences: np.ndarray) -> str:
    mean, count = differences.mean(), len(differences)
    if count < 2:
        return f"{100 * mean:+.2f}"
    half = stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    return f"{100 * mean:+.2f} ({100 * (mean - half):+.2f} to {100 * (mean + half):+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of the models; at most three of what is found")
    parser.add_argument("--measure", choices=("one training", "folds"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_time(arguments.measure)
        return
    claims: list[Claim] = []
    with temporary_directory() as directory:
        os.chdir(directory)
        read_params()
        bench = load_data(directory)
        sections = [report_time(3, claims)]
        cases = make_cases(bench, min(arguments.seeds, 3))
        sections = [report_ranking(cases, claims), report_methods(cases), report_duplicates(bench, claims), *sections]
        sections.append(report_training(bench, arguments.seeds))
        os.chdir(REPOSITORY)
    rows = [(claim.what, claim.measured, claim.promised, "yes" if claim.holds else "**no**") for claim in claims]
    intro = "Written by `python benchmarks/review.py`, with the preset `mlp` on Fashion-MNIST."
    head = ["# Wrong labels: what is found", intro, describe_machine()]
    head.append(markdown_table(("what", "measured", "promised", "holds"), rows))
    PAGE.write_text("\n\n".join([*head, *sections]) + "\n", encoding="utf-8")
    progress(f"written to {PAGE}")


if __name__ == "__main__":
    main()
