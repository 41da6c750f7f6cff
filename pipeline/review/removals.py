"""Removals that a person must confirm: of test images, and of more than a share of a class."""

from collections import Counter
from collections.abc import Iterable

from pipeline.data.removed_images import read_removed
from pipeline.params import load_params
from pipeline.review.images import TABLES, read_images
from pipeline.review.items import Split
from pipeline.review.params import ReviewParams


def describe_removals(removals: Iterable[tuple[Split, str]]) -> list[str]:
    """Describe removals that need a confirmation, one sentence for each. Empty if none does.

    A class is counted before corrections, and with the images that earlier corrections removed.

    Args:
        removals: split and id (without `test/`) of the images to remove.

    Raises:
        DataError: the data is missing: `ingest` has not run.
    """
    wanted = set(removals)
    allowed = load_params().section(ReviewParams).max_removed
    sentences = []
    for split, path in TABLES.items():
        ids = {id_ for of_split, id_ in wanted if of_split == split}
        if not ids:
            continue
        images = read_images(split, windowed=True)  # no positions are needed
        earlier = Counter(image.given for image in read_removed(path.parent) if image.split == split)
        total = Counter(images.given.tolist()) + earlier
        gone = Counter(int(label) for id_, label in zip(images.ids, images.given, strict=True) if id_ in ids) + earlier
        if split == "test":
            sentences.append(f"{len(ids):,} images of the test split would be removed")
        for label, count in sorted(gone.items()):
            if count > allowed * total[label]:
                share = f"{count / total[label]:.1%} (allowed: {allowed:.1%})"
                name = images.dataset.classes[label]
                sentences.append(f"{count:,} of {total[label]:,} {split} images of {name} would be removed: {share}")
    return sentences
