"""Verdicts of readers about the images of a review.

`verdicts.jsonl` in the directory of a review has a line for each verdict, in the order of the key presses. Lines are
only appended: undo is a line, too. Every reader's verdicts are in this one file.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.errors import DataError, WorkspaceError
from pipeline.json_lines import append_json
from pipeline.redaction import CONTROL
from pipeline.review.items import Item

VERDICTS = "verdicts.jsonl"
FORMAT = "verdicts of a label review, 1"  # of the file that a reader sends back
MOST_BYTES = 2**26  # of that file
LONGEST_NAME = 80
RECORD = frozenset({"id", "verdict", "given", "label"})  # the keys of a verdict in that file
REMOVED = -1  # the label that `remove` gives

Kind = Literal["keep", "relabel", "remove", "unsure"]
KINDS = get_args(Kind)
UNDO = "undo"


@dataclass(frozen=True)
class Verdict:
    """A reader's verdict about an image."""

    id: str  # `Item.key`
    verdict: str  # a `Kind`, or UNDO: take back this reader's latest verdict about the image
    given: int  # the label that the reader saw
    who: str
    when: str  # date
    label: int | None = None  # the new label, of `relabel` only
    decides: bool = False  # the reader saw the others' verdicts about this image, and decided between them

    @property
    def target(self) -> int | None:
        """The label after this verdict, REMOVED, or None if the reader was unsure."""
        return {"keep": self.given, "relabel": self.label, "remove": REMOVED}.get(self.verdict)

    def describe(self, classes: Sequence[str]) -> str:
        """Return the verdict in words."""
        return self.verdict if self.label is None else f"{self.verdict} {classes[self.label]}"


@dataclass(frozen=True)
class Outcome:
    """The verdicts about an image that count: the latest of each reader since the last decision between readers."""

    item: Item
    verdicts: tuple[Verdict, ...]

    @property
    def differs(self) -> bool:
        """True if the readers differ. The verdict `unsure` does not count."""
        return len({verdict.target for verdict in self.verdicts} - {None}) > 1

    def settle(self, prefer: str | None = None) -> Verdict | None:
        """Return the verdict to apply, the first of equal ones; None if there is none or the readers differ.

        Args:
            prefer: the reader whose verdict counts where readers differ.
        """
        definite = [verdict for verdict in self.verdicts if verdict.target is not None]
        if self.differs:
            return next((verdict for verdict in definite if verdict.who == prefer), None)
        return definite[0] if definite else None


def today() -> str:
    """Return the date of a verdict."""
    return time.strftime("%Y-%m-%d")


def require_name(who: str, remedy: str) -> str:
    """Return a reader's name as it is stored.

    Raises:
        DataError: it is empty, long, or has characters that a table could take for something else.
    """
    name = who.strip()
    if not name or len(name) > LONGEST_NAME or CONTROL.search(name) or "\n" in name or name[0] in "=+-@\t":
        raise DataError(
            "the reader's name cannot be used",
            expected=f"1 to {LONGEST_NAME} printable characters, not starting with =, +, - or @",
            found=repr(who[: 2 * LONGEST_NAME]),
            remedy=remedy,
        )
    return name


def check_verdict(record: Mapping[str, Any], item: Item | None, classes: int, where: str, remedy: str) -> None:
    """Check a verdict from outside this process.

    Args:
        record: `id`, `verdict` and `given`; `label` with `relabel`.
        item: the image with this id in the list of the review; None if there is none.
        where: the place of the record, for the message.

    Raises:
        DataError: names what is wrong.
    """

    def refuse(what: str, expected: str, found: Any) -> DataError:
        return DataError(f"{where} {what}", expected=expected, found=repr(found)[:200], remedy=remedy)

    kind, label = record.get("verdict"), record.get("label")
    if item is None:
        raise refuse("is about an image that is not in the list of this review", "an id of the list", record.get("id"))
    if kind not in KINDS:
        raise refuse("is not a verdict", " or ".join(KINDS), kind)
    if record.get("given") != item.given or isinstance(record.get("given"), bool):
        raise refuse(f"is about another label of {item.id}", f"given: {item.given}", record.get("given"))
    if kind != "relabel" and label is not None:
        raise refuse("has a label that its verdict does not use", "label with relabel only", label)
    if kind == "relabel" and (type(label) is not int or not 0 <= label < classes or label == item.given):
        raise refuse("names no new class", f"a label from 0 to {classes - 1}, not {item.given}", label)


def append_verdicts(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Append verdicts to the file, and return when they are on the disk. Several processes may append at once."""
    append_json(path, map(asdict, verdicts))


def read_verdicts(path: Path, items: Sequence[Item]) -> list[Verdict]:
    """Read the verdicts about the images of a list that were not taken back, in their order.

    Verdicts about other images, or about a label that has changed since, are left out.

    Raises:
        WorkspaceError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    given = {item.key: item.given for item in items}
    kept: list[Verdict] = []
    for number, line in enumerate(lines, 1):
        try:
            verdict = Verdict(**json.loads(line))
        except ValueError:
            continue  # a part of a line, of a killed writer: that verdict was never confirmed
        except TypeError:
            raise WorkspaceError(
                f"line {number} of {path} is not a verdict", found=line[:200], remedy=f"delete this line of {path}"
            ) from None
        if verdict.verdict == UNDO:
            places = [at for at, former in enumerate(kept) if (former.id, former.who) == (verdict.id, verdict.who)]
            if places:
                del kept[places[-1]]
        elif given.get(verdict.id) == verdict.given:
            kept.append(verdict)
    return kept


def collect_outcomes(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Outcome]:
    """Return the outcome of each image that has a verdict, in the order of the list.

    Args:
        verdicts: those that were not taken back, in their order.
    """
    counting: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        by_reader = counting.setdefault(verdict.id, {})
        if verdict.decides:
            by_reader.clear()
        by_reader[verdict.who] = verdict
    return [Outcome(item, tuple(counting[item.key].values())) for item in items if item.key in counting]


def select_changed(former: Sequence[Verdict], sent: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts that a reader sent and that differ from that reader's former ones.

    A file that is applied twice therefore reopens no decision.
    """
    before = {(verdict.id, verdict.who): (verdict.verdict, verdict.label) for verdict in former}
    return [each for each in sent if before.get((each.id, each.who)) != (each.verdict, each.label)]


def read_sent_verdicts(
    path: Path, review: str, dataset: str, items: Sequence[Item], classes: int, who: str | None
) -> list[Verdict]:
    """Read the file that a reader saved from the page and sent back.

    Args:
        review, dataset: the names that the file must have.
        classes: the number of classes.
        who: the reader's name; None for the one in the file.

    Raises:
        DataError: the file is not of this review, or one of its verdicts cannot be used. Names the first one.
    """
    remedy = f"ask for the file that the page saves, made by: pipeline review export FILE.html --name {review}"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} is too large", expected=f"at most {MOST_BYTES:,} bytes", remedy=remedy)
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing", remedy="name the file of verdicts that the reader sent") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON", expected="a file of verdicts", remedy=remedy) from None
    records = content.get("verdicts") if isinstance(content, dict) else None
    if not isinstance(records, list) or content.get("format") != FORMAT:
        found = f"format: {content.get('format')!r}"[:200] if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} is not a file of verdicts", expected=f"format: {FORMAT}", found=found, remedy=remedy)
    for name, expected in (("review", review), ("dataset", dataset)):
        if content.get(name) != expected:
            raise DataError(
                f"{path} is of another {name}",
                expected=expected,
                found=repr(content.get(name))[:200],
                remedy=f"pipeline review apply {path} --name REVIEW" if name == "review" else remedy,
            )
    written = who if who is not None else content.get("who")
    reader = require_name(written if isinstance(written, str) else "", "add the reader's name: --who NAME")
    by_id = {item.key: item for item in items}
    sent: dict[str, Verdict] = {}
    for number, record in enumerate(records, 1):
        where = f"verdict {number} of {path}"
        if not isinstance(record, dict) or not isinstance(record.get("id"), str) or record.keys() - RECORD:
            found = repr(record)[:200]
            raise DataError(f"{where} is malformed", expected=", ".join(sorted(RECORD)), found=found, remedy=remedy)
        id_ = record["id"]
        check_verdict(record, by_id.get(id_), classes, where, remedy)
        if id_ in sent:
            raise DataError(f"{where} repeats an image", expected="one verdict an image", found=id_, remedy=remedy)
        sent[id_] = Verdict(id_, record["verdict"], record["given"], reader, today(), record.get("label"))
    return list(sent.values())
