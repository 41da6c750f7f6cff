"""Verdicts become corrections, and nothing else in the file changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.corrections import CORRECTIONS, read_corrections
from pipeline.data.table import read_ids, read_images
from pipeline.errors import DataError
from pipeline.review.apply import Changes, find_large_removals, plan_changes, write_changes
from pipeline.review.images import TABLES
from pipeline.review.page import ReviewList
from pipeline.review.verdicts import Outcome, Verdict
from tests.review.listed import make_checkout


@pytest.fixture
def review(tmp_path: Path) -> ReviewList:
    return make_checkout(tmp_path)


@pytest.fixture
def apply(review: ReviewList, tmp_path: Path) -> Callable[..., Changes]:
    def plan_and_write(*outcomes: Outcome, prefer: str | None = None, include_test: bool = False) -> Changes:
        changes = plan_changes(
            tmp_path, review.dataset, outcomes, review=review.name, prefer=prefer, include_test=include_test
        )
        write_changes(tmp_path, review.dataset, changes)
        return changes

    return plan_and_write


def said(review: ReviewList, row: int, verdict: str, label: int | None = None, who: str = "reader-1") -> Outcome:
    item = review.items[row]
    return Outcome(item, (Verdict(item.id, verdict, item.given, who, "2026-01-02", label),))


def relabelled(review: ReviewList, row: int, who: str = "reader-1") -> Outcome:
    return said(review, row, "relabel", review.items[row].suggested, who)


def read(path: Path) -> str:
    return (path / CORRECTIONS).read_text()


def test_each_verdict_has_its_line_and_a_second_time_changes_nothing(
    review: ReviewList, apply: Callable[..., Changes], tmp_path: Path
) -> None:
    outcomes = relabelled(review, 0), said(review, 1, "remove"), said(review, 2, "keep"), said(review, 3, "unsure")
    changes = apply(*outcomes)
    assert changes.written == {"relabelled": 1, "removed": 1}
    written = read_corrections(tmp_path / CORRECTIONS, review.dataset)
    names = review.dataset.classes
    assert written.given == {item.id: names[item.given] for item in review.items[:2]}
    assert list(written.labels.values()) == [names[review.items[0].suggested], ""]
    assert f",reader-1,2026-01-02,review labels: {review.items[0].reason}\n" in read(tmp_path)
    table = tmp_path / TABLES["train"]
    given = read_images(table)[1]
    labels, kept = written.apply("train", read_ids(table), given)  # as `ingest` does
    assert (labels != given).nonzero()[0].tolist() == [0]
    assert labels[0] == review.items[0].suggested
    assert (~kept).nonzero()[0].tolist() == [1]
    before = read(tmp_path)
    assert not apply(*outcomes).written
    assert read(tmp_path) == before


def test_other_lines_keep_their_bytes(review: ReviewList, apply: Callable[..., Changes], tmp_path: Path) -> None:
    foreign = f'{"f" * 40}-0,"Coat",Dress,reader-2,2020-01-01,"two\nlines, ""quoted"""\n\n'
    foreign += f"{'e' * 40}-0,Coat,Dress,reader-2,2020-01-01,not the end\u2028of a line\x0c\n"
    own = f"{review.items[0].id},{review.items[0].given},,reader-2,2020-01-01,no line break at the end"
    (tmp_path / CORRECTIONS).write_text(read(tmp_path) + foreign + own)
    before = read(tmp_path)
    apply(relabelled(review, 1))
    assert read(tmp_path).startswith(before + "\n" + review.items[1].id)


def test_a_later_verdict_of_the_same_person_replaces_or_drops_the_line(
    review: ReviewList, apply: Callable[..., Changes], tmp_path: Path
) -> None:
    empty = read(tmp_path)
    apply(relabelled(review, 0))
    assert apply(said(review, 0, "remove")).written == {"removed": 1}
    assert read_corrections(tmp_path / CORRECTIONS, review.dataset).labels == {review.items[0].id[:40]: ""}
    assert apply(said(review, 0, "keep")).dropped == 1
    assert read(tmp_path) == empty


def test_a_line_of_another_person_stays_until_one_is_preferred(
    review: ReviewList, apply: Callable[..., Changes], tmp_path: Path
) -> None:
    apply(said(review, 0, "remove", who="reader-2"))
    before = read(tmp_path)
    (difference,) = apply(relabelled(review, 0)).differences
    suggested = review.dataset.classes[review.items[0].suggested]
    assert difference.opinions == (("reader-1", suggested), ("reader-2", f"remove in {CORRECTIONS}"))
    assert not apply(relabelled(review, 0), prefer="reader-2").differences
    assert read(tmp_path) == before
    assert apply(relabelled(review, 0), prefer="reader-1").written == {"relabelled": 1}
    assert "reader-2" not in read(tmp_path)


def test_differing_readers_and_differing_copies_write_nothing(
    review: ReviewList, apply: Callable[..., Changes], tmp_path: Path
) -> None:
    before = read(tmp_path)
    one, other = said(review, 0, "remove"), relabelled(review, 0, "reader-2")
    differing = Outcome(one.item, one.verdicts + other.verdicts)
    copy = replace(one.item, id=one.item.id[:-1] + "1")
    kept = Outcome(copy, (Verdict(copy.id, "keep", copy.given, "reader-1", "2026-01-02"),))
    assert len(apply(differing).differences) == 1
    assert len(apply(one, kept).differences) == 2
    assert read(tmp_path) == before
    assert apply(differing, prefer="reader-2").written == {"relabelled": 1}


def test_test_images_are_corrected_only_if_asked_for(
    review: ReviewList, apply: Callable[..., Changes], tmp_path: Path
) -> None:
    table = tmp_path / TABLES["test"]
    image, label = read_ids(table)[0], int(read_images(table)[1][0])
    item = replace(review.items[0], id=image, given=label, split="test")
    outcome = Outcome(item, (Verdict(item.key, "remove", label, "reader-1", "2026-01-02"),))
    before = read(tmp_path)
    assert apply(outcome).skipped_test == 1
    assert read(tmp_path) == before
    changes = apply(outcome, include_test=True)
    assert (changes.skipped_test, find_large_removals(changes)) == (0, ["1 test images are removed"])
    assert f"\ntest/{image},{review.dataset.classes[label]},,reader-1," in read(tmp_path)
    assert not apply(outcome, include_test=True).written


def test_the_line_of_a_copy_holds_for_all_copies(
    review: ReviewList, apply: Callable[..., Changes], tmp_path: Path
) -> None:
    item = review.items[0]
    names = review.dataset.classes
    copy = f"{item.id[:-1]}1,{names[item.given]},{names[item.suggested]},reader-1,2026-01-01,\n"
    (tmp_path / CORRECTIONS).write_text(read(tmp_path) + copy)
    before = read(tmp_path)
    assert not apply(relabelled(review, 0)).written
    assert read(tmp_path) == before
    assert len(apply(said(review, 0, "remove", who="reader-2")).differences) == 1
    apply(said(review, 0, "remove"))
    assert read_corrections(tmp_path / CORRECTIONS, review.dataset).labels == {item.id[:40]: ""}


def test_removal_of_much_of_a_class_is_to_be_confirmed(tmp_path: Path) -> None:
    review = make_checkout(tmp_path, images=1000, listed=60)  # 100 images of each class: one is 1 %
    first = review.items[0]
    same = [row for row, item in enumerate(review.items) if item.given == first.given]

    def plan(*rows: int) -> Changes:
        outcomes = [said(review, row, "remove") for row in rows]
        return plan_changes(tmp_path, review.dataset, outcomes, review=review.name)

    changes = plan(same[0])
    assert find_large_removals(changes) == []
    write_changes(tmp_path, review.dataset, changes)
    (question,) = find_large_removals(plan(same[1]))  # with the line of the first
    assert question == f"2 of 100 images of {review.dataset.classes[first.given]} are removed: more than 1%"


def test_a_damaged_file_is_refused_and_stays(review: ReviewList, apply: Callable[..., Changes], tmp_path: Path) -> None:
    (tmp_path / CORRECTIONS).write_text("id,label\n")
    with pytest.raises(DataError, match="other columns"):
        apply(relabelled(review, 0))
    assert read(tmp_path) == "id,label\n"
