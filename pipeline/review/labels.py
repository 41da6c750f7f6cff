"""Find wrong labels and duplicates: the list of a review, its summary, and its run in MLflow."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import WorkspaceError
from pipeline.extras import require_packages
from pipeline.files import read_cached_json, write_json
from pipeline.params import load_params
from pipeline.review.duplicates import Pair, find_duplicates, group_twins
from pipeline.review.folds import CODE, Folds, Progress, describe_machine, describe_settings, divide, predict
from pipeline.review.images import TABLES, Images, read_images, read_validation_ids
from pipeline.review.items import ITEMS, Item, review_directory, write_items
from pipeline.review.ranking import ConfusedPair, Ranking, find_confused, rank
from pipeline.review.tracking import record_review
from pipeline.workspace import lock

SUMMARY = "summary.json"
FOLDS = "folds"


@dataclass(frozen=True)
class Twin:
    """An image of a pair of duplicates."""

    id: str
    official_row: int | None
    split: str  # `train`, `validation` or `test`; `train` for both before the data is split
    label: str


@dataclass(frozen=True)
class Duplicates:
    """A pair of duplicates."""

    first: Twin
    second: Twin
    difference: float  # root mean square difference of the pixels, in grey values of 255; 0: exact copies


@dataclass(frozen=True)
class Review:
    """The result of a search for wrong labels."""

    name: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]  # first the duplicates, then the images with a suspect label
    duplicates: tuple[Duplicates, ...]  # pairs, those with two labels first, then the nearest
    confused: tuple[ConfusedPair, ...]
    images: int  # that models predicted
    accuracy: float  # of the out-of-fold predictions, on the training images
    fold_accuracy: tuple[float, ...]
    run_id: str = ""  # in MLflow

    @property
    def suspects(self) -> list[Item]:
        """The items without duplicates, the most suspect label first."""
        return [item for item in self.items if not item.twins]


def find_wrong_labels(
    name: str, folds: int, report: Callable[[Progress], None], *, include_test: bool = False
) -> Review:
    """Search the training images for wrong labels and duplicates. Writes the directory of the review.

    Images with a corrected label are not listed: a person has decided about them. Without `include_test`, a test image
    is named only as a duplicate of a training image, and no model predicts it.

    Args:
        name: of the review.
        folds: number of models; each is trained on the images of the others.
        report: called with the progress.

    Raises:
        DataError: the data is missing: `ingest` has not run.
        WorkspaceError: cleanlab is not installed, or another process works on this review.
    """
    require_packages("the review of labels", "cleanlab")
    params, directory = load_params(), review_directory(name)
    windowed = params.dataset.window is not None
    train, test = (read_images(split, windowed=windowed) for split in TABLES)
    with lock(f"review {name}", wait=0, remedy="end it or wait for it, or choose another --name"):
        pairs = find_duplicates(train, test, directory / "pixels")
        divided = divide(train.labels, group_twins(len(train), pairs, train.groups), folds, params.train.seed)
        if divided.count < 2:
            raise WorkspaceError(
                "there are too few images for out-of-fold predictions", expected="two that are no duplicates"
            )
        settings = describe_settings(params, train.dataset) | {"folds": folds, "include_test": include_test}
        key = _derive_key(settings, divided)
        predictions = predict(
            train.dataset, train.labels, divided, params, directory / FOLDS, key, report, with_test=include_test
        )
        rankings = [rank(train.labels, predictions.train)]
        if predictions.test is not None:
            rankings.append(rank(test.labels, predictions.test))
        is_right = predictions.train.argmax(axis=1) == train.labels
        tables = [train, test]
        review = Review(
            name,
            train.dataset.classes,
            tuple(_list_items(tables, rankings, pairs)),
            tuple(_describe_pairs(tables, pairs, include_test=include_test)),
            tuple(find_confused(train.labels, predictions.train, train.dataset.classes)),
            sum(len(ranking.quality) for ranking in rankings),
            float(is_right.mean()),
            tuple(float(is_right[divided.fold == fold].mean()) for fold in range(divided.count)),
        )
        write_items(directory / ITEMS, review.items)
        former = read_cached_json(directory / SUMMARY) or {}
        run_id = former.get("run_id") if former.get("key") == key else None
        run_id = run_id or record_review(review, train.dataset.name, settings, directory / ITEMS)
        summary = describe_review(review) | {"key": key, "run_id": run_id}
        del summary["items"]  # they are in the list
        write_json(directory / SUMMARY, summary)
        return Review(**vars(review) | {"run_id": run_id})


def describe_review(review: Review) -> dict[str, Any]:
    """Describe the result for programs. Labels are class names."""
    items = [
        asdict(item) | {"given": review.classes[item.given], "suggested": review.classes[item.suggested]}
        for item in review.items
    ]
    return {
        "name": review.name,
        "images": review.images,
        "accuracy": round(review.accuracy, 6),
        "duplicates": [asdict(pair) for pair in review.duplicates],
        "confused": [asdict(pair) for pair in review.confused],
        "items": items,
    }


def _derive_key(settings: dict[str, Any], folds: Folds) -> str:
    """Return a digest of everything that determines the predictions: data, folds, settings, code and machine."""
    import pipeline.models
    from pipeline.models.checkpoints import derive_key

    code = [*sorted(Path(pipeline.models.__path__[0]).glob("*.py")), *CODE, Path("pins.txt")]
    determinants = settings | describe_machine() | {"folds_digest": sha256(folds.fold.tobytes()).hexdigest()}
    return derive_key(determinants, [*code, *TABLES.values()])


def _list_items(tables: Sequence[Images], rankings: Sequence[Ranking], pairs: Sequence[Pair]) -> Iterator[Item]:
    """Yield the items: images with duplicates in the order of the pairs, then images with a suspect label.

    Args:
        tables: the training and the test images.
        rankings: of the training images and, if they are reviewed, of the test images.
    """
    order = _sort_pairs(tables, pairs)
    twins: dict[int, list[Pair]] = defaultdict(list)  # by row
    for pair in sorted(order, key=lambda pair: pair.difference):
        twins[pair.first].append(pair)
        twins[pair.second].append(pair)
    first_row = len(tables[0])

    def locate(row: int) -> tuple[int, int]:
        return (0, row) if row < first_row else (1, row - first_row)

    def describe(row: int) -> Iterator[Item]:
        number, place = locate(row)
        if number < len(rankings) and tables[number].labels[place] == tables[number].given[place]:
            images, ranking = tables[number], rankings[number]
            others = [(pair.second if pair.first == row else pair.first, pair.difference) for pair in twins[row]]
            label, suggested = int(images.labels[place]), int(ranking.suggested[place])
            quality, confidence = float(ranking.quality[place]), float(ranking.confidence[place])
            classes = images.dataset.classes
            reason = f"predicted {classes[suggested]}: {confidence:.1%}; {classes[label]}: {quality:.1%}"
            if others:
                other, difference = others[0]
                reason = f"{_describe_twin(tables, *locate(other), difference)}; {reason}"
            yield Item(
                id=images.ids[place],
                official_row=images.official_row(place),
                given=label,
                suggested=suggested,
                score=round(quality, 6),
                confidence=round(confidence, 6),
                reason=reason,
                twins=tuple(tables[which].ids[at] for which, at in (locate(other) for other, _ in others)),
                split=images.split,
            )

    seen: set[int] = set()
    suspects = sorted(
        (ranking.quality[place], place + number * first_row)
        for number, ranking in enumerate(rankings)
        for place in ranking.flagged.tolist()
    )
    for row in [*(row for pair in order for row in (pair.first, pair.second)), *(row for _, row in suspects)]:
        if row not in seen:
            seen.add(row)
            yield from describe(row)


def _describe_twin(tables: Sequence[Images], number: int, place: int, difference: float) -> str:
    images = tables[number]
    row = images.official_row(place)
    name = images.ids[place] if row is None else f"row {row}"
    kind = f"differs by {difference:.1f} grey values from" if difference else "exact copy of"
    where = " of the test images" if images.split == "test" else ""
    return f"{kind} {name}{where}, {images.dataset.classes[images.labels[place]]}"


def _sort_pairs(tables: Sequence[Images], pairs: Sequence[Pair]) -> list[Pair]:
    """Sort pairs: those with two labels first, then the nearest."""
    labels = np.concatenate([images.labels for images in tables])
    return sorted(pairs, key=lambda pair: (labels[pair.first] == labels[pair.second], pair.difference))


def _describe_pairs(tables: Sequence[Images], pairs: Sequence[Pair], *, include_test: bool) -> Iterator[Duplicates]:
    """Yield the pairs in order. Pairs of test images only with `include_test`."""
    validation, first_row = read_validation_ids(), len(tables[0])

    def describe(row: int) -> Twin:
        images, place = (tables[0], row) if row < first_row else (tables[1], row - first_row)
        id_ = images.ids[place]
        split = "validation" if images.split == "train" and id_ in validation else images.split
        return Twin(id_, images.official_row(place), split, images.dataset.classes[images.labels[place]])

    for pair in _sort_pairs(tables, pairs):
        if include_test or pair.first < first_row:
            yield Duplicates(describe(pair.first), describe(pair.second), round(pair.difference, 2))
