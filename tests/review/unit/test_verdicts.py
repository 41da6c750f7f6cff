"""Verdicts: appended, taken back, merged, and read from another reader's file."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.review.items import Item
from pipeline.review.verdicts import (
    FORMAT,
    REMOVED,
    UNDO,
    Outcome,
    Verdict,
    append_verdicts,
    collect_outcomes,
    read_sent_verdicts,
    read_verdicts,
    select_changed,
)

ITEMS = [
    Item(f"{number:040x}-0", number, given=6, suggested=0, score=0.1, confidence=0.9, reason="") for number in (1, 2)
]
ONE, TWO = (item.id for item in ITEMS)


def said(id_: str, verdict: str, who: str = "reader-1", label: int | None = None, decides: bool = False) -> Verdict:
    return Verdict(id_, verdict, 6, who, "2026-01-02", label, decides)


def outcome_of(*verdicts: Verdict) -> Outcome:
    (outcome,) = collect_outcomes(ITEMS, verdicts)
    return outcome


def test_the_latest_verdict_counts_and_undo_brings_the_former_back(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    append_verdicts(file, [said(ONE, "keep"), said(ONE, "relabel", label=0)])
    append_verdicts(file, [said(TWO, "remove"), said(TWO, UNDO)])
    assert collect_outcomes(ITEMS, read_verdicts(file, ITEMS)) == [
        Outcome(ITEMS[0], (said(ONE, "relabel", label=0),)),
    ]
    append_verdicts(file, [said(ONE, UNDO), said(ONE, UNDO, who="reader-2")])
    assert read_verdicts(file, ITEMS) == [said(ONE, "keep")]


def test_a_killed_writer_leaves_the_other_verdicts_readable(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    append_verdicts(file, [said(ONE, "keep")])
    with file.open("a") as torn:
        torn.write('{"id": "00')
    append_verdicts(file, [said(TWO, "remove")])
    assert read_verdicts(file, ITEMS) == [said(ONE, "keep"), said(TWO, "remove")]


def test_a_verdict_about_a_label_that_changed_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    append_verdicts(file, [said(ONE, "keep"), Verdict(TWO, "keep", 3, "reader-1", "2026-01-02")])
    assert read_verdicts(file, ITEMS) == [said(ONE, "keep")]


@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        (said(ONE, "relabel", label=0), said(ONE, "relabel", "reader-2", label=0), 0),
        (said(ONE, "relabel", label=0), said(ONE, "relabel", "reader-2", label=1), None),
        (said(ONE, "keep"), said(ONE, "remove", "reader-2"), None),
        (said(ONE, "unsure"), said(ONE, "remove", "reader-2"), REMOVED),
        (said(ONE, "unsure"), said(ONE, "unsure", "reader-2"), None),
    ],
    ids=["equal", "two labels", "keep and remove", "one is unsure", "both are unsure"],
)
def test_two_readers_settle_what_they_agree_on(first: Verdict, second: Verdict, target: int | None) -> None:
    outcome = outcome_of(first, second)
    settled = outcome.settle()
    assert (settled.target if settled else None) == target
    assert outcome.differs is (target is None and "unsure" not in (first.verdict, second.verdict))


def test_a_decision_or_a_preferred_reader_settles_a_difference() -> None:
    differing = said(ONE, "keep"), said(ONE, "remove", "reader-2")
    decision = said(ONE, "relabel", label=3, decides=True)
    assert outcome_of(*differing).settle("reader-2") == differing[1]
    assert outcome_of(*differing).settle("reader-3") is None
    assert outcome_of(*differing, decision).settle() == decision
    assert outcome_of(*differing, decision, said(ONE, "relabel", "reader-2", label=4)).differs  # changed afterwards


def test_the_same_file_again_reopens_no_decision() -> None:
    sent = [said(ONE, "remove", "reader-2"), said(TWO, "keep", "reader-2")]
    former = [said(ONE, "keep"), sent[0], said(ONE, "keep", decides=True)]
    assert select_changed(former, sent) == [sent[1]]


def write_sent(path: Path, *verdicts: Any, **changed: Any) -> Path:
    content = {"format": FORMAT, "review": "labels", "dataset": "tiny", "who": "reader-2", "verdicts": list(verdicts)}
    path.write_text(json.dumps(content | changed))
    return path


GOOD = {"id": ONE, "given": 6, "verdict": "relabel", "label": 0}


def test_another_readers_file_is_read(tmp_path: Path) -> None:
    file = write_sent(tmp_path / "sent.json", GOOD, {"id": TWO, "given": 6, "verdict": "unsure"})
    verdicts = read_sent_verdicts(file, "labels", "tiny", ITEMS, 10, None)
    assert [(each.id, each.verdict, each.label, each.who) for each in verdicts] == [
        (ONE, "relabel", 0, "reader-2"),
        (TWO, "unsure", None, "reader-2"),
    ]
    assert {each.who for each in read_sent_verdicts(file, "labels", "tiny", ITEMS, 10, "reader-3")} == {"reader-3"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"review": "other"}, "of another review"),
        ({"dataset": "mnist"}, "of another dataset"),
        ({"format": "?"}, "is not a file of verdicts"),
        ({"verdicts": {}}, "is not a file of verdicts"),
        ({"who": ""}, "reader's name"),
        ({"who": "=1+1"}, "reader's name"),
        ({"who": "a\x1b[2Jb"}, "reader's name"),
        ({"verdicts": [GOOD, GOOD]}, "verdict 2 of .* repeats an image"),
        ({"verdicts": ["keep"]}, "is malformed"),
        ({"verdicts": [GOOD | {"who": "reader-1"}]}, "is malformed"),
        ({"verdicts": [GOOD | {"id": "0" * 40 + "-0"}]}, "not in the list"),
        ({"verdicts": [GOOD | {"given": 5}]}, "about another label"),
        ({"verdicts": [GOOD | {"given": "6"}]}, "about another label"),
        ({"verdicts": [GOOD | {"verdict": "undo"}]}, "is not a verdict"),
        ({"verdicts": [GOOD | {"label": 10}]}, "names no new class"),
        ({"verdicts": [GOOD | {"label": True}]}, "names no new class"),
        ({"verdicts": [GOOD | {"label": None}]}, "names no new class"),
        ({"verdicts": [GOOD | {"verdict": "keep"}]}, "label that its verdict does not use"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    file = write_sent(tmp_path / "sent.json", **changed)
    with pytest.raises(DataError, match=message) as refused:
        read_sent_verdicts(file, "labels", "tiny", ITEMS, 10, None)
    assert refused.value.remedy
    assert refused.value.expected


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 100_000, b"[]", b"null"], ids=["empty", "binary", "deep", "list", "null"]
)
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sent.json").write_bytes(content)
    with pytest.raises(DataError, match="not JSON|not a file of verdicts"):
        read_sent_verdicts(tmp_path / "sent.json", "labels", "tiny", ITEMS, 10, None)
