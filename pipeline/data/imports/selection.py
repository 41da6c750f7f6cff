"""Choose the pictures of an import: one of each set of copies, and the test split.

Each class is sorted by a hash of the pixels, or of the group's name for a picture with a group. The first pictures are
the test split. The same pictures therefore give the same split on every machine, whatever the names and the order of
their files, and a group is never divided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.added_classes import draw_test
from pipeline.errors import DataError


@dataclass(frozen=True)
class Copies:
    """Exact copies: pictures with equal pixels."""

    is_kept: np.ndarray  # bool [n]: False for the pictures that the fields below count or list
    repeated: int  # copies of a training picture
    repeated_tests: int  # training pictures that are copies of a picture in the collection's own test split
    contradictions: list[list[int]]  # row numbers of equal pictures with different labels; none is kept


def find_copies(digests: np.ndarray, labels: np.ndarray, is_test: np.ndarray) -> Copies:
    """Find exact copies, and decide which to keep.

    The first one of a set is kept. If some are in the collection's own test split, exactly these are kept.

    Args:
        digests: of the pixels, "S40" [n].
        labels: uint16 [n].
        is_test: bool [n].
    """
    is_kept = np.ones(len(digests), bool)
    repeated = repeated_tests = 0
    contradictions = []
    order = np.argsort(digests, kind="stable")
    starts = np.flatnonzero(np.append(True, digests[order][1:] != digests[order][:-1])) if len(order) else order
    ends = np.append(starts[1:], len(order))
    for place in np.flatnonzero(ends - starts > 1):
        rows = order[starts[place] : ends[place]]
        if len(np.unique(labels[rows])) > 1:
            contradictions.append(rows.tolist())
            is_kept[rows] = False
        elif is_test[rows].any():
            repeated_tests += int((~is_test[rows]).sum())
            is_kept[rows[~is_test[rows]]] = False
        else:
            repeated += len(rows) - 1
            is_kept[rows[1:]] = False
    return Copies(is_kept, repeated, repeated_tests, contradictions)


def divide_groups(near: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Divide groups of near duplicates by the test split that the collection has: a group is in one split.

    Args:
        near: a number for each group of near duplicates, int64 [n].
        is_test: bool [n].

    Returns:
        the lowest row number in the picture's group, int64 [n].
    """
    _, first, part = np.unique(2 * near + is_test, return_index=True, return_inverse=True)
    return first[part]


def require_apart(groups: Sequence[str], is_test: np.ndarray) -> None:
    """Refuse a group column with a group on both sides of the test split that the collection has.

    Args:
        groups: the values of the group column; empty for a picture without a group.

    Raises:
        DataError: names the groups.
    """
    sides: tuple[set[str], set[str]] = set(), set()
    for group, side in zip(groups, is_test[: len(groups)].tolist(), strict=True):
        sides[side].add(group)
    if shared := sorted(sides[0] & sides[1] - {""}):
        raise DataError(
            f"{len(shared):,} groups have training and test pictures",
            expected="pictures of a group in one split",
            found=f"{', '.join(shared[:5])}{', …' if shared[5:] else ''}",
            remedy="leave out --group, or leave out the test split to have one carved from all pictures",
        )


def name_groups(groups: Sequence[str] | None, near: np.ndarray, digests: np.ndarray) -> list[str] | None:
    """Name the groups that must stay in one split: those of the group column, merged if they share near duplicates.

    Args:
        groups: the values of the group column; empty for a picture without a group.
        near: for each picture, the lowest row number among its near duplicates and itself, int64 [n].
        digests: of the pixels, "S40" [n].

    Returns:
        a name for each picture, empty for one without a group; None if no picture has a group.
    """
    root = near
    if groups is None and (near == np.arange(len(near))).all():
        return None
    if groups is not None:
        first: dict[str, int] = {}
        parent = list(range(len(near)))

        def find(row: int) -> int:
            while parent[row] != row:
                parent[row] = parent[parent[row]]
                row = parent[row]
            return row

        for row, group in enumerate(groups):
            for other in (int(near[row]), first.setdefault(group, row) if group else row):
                low, high = sorted((find(row), find(other)))
                parent[high] = low
        root = np.array([find(row) for row in range(len(near))], np.int64)
    sizes = np.bincount(root, minlength=len(root))
    names = [""] * len(root)
    chosen: dict[int, str] = {}
    for row in np.argsort(digests, kind="stable").tolist():  # the name must not depend on the order of the files
        at = int(root[row])
        if groups is not None and groups[row]:
            chosen[at] = min(chosen.get(at, groups[row]), groups[row])
    for row in np.argsort(digests, kind="stable").tolist():
        at = int(root[row])
        if at in chosen or sizes[at] > 1:
            names[row] = chosen.setdefault(at, f"near-{digests[row].decode()[:12]}")
    return names if any(names) else None


def choose_test_split(
    digests: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None, classes: Sequence[str], fraction: float
) -> np.ndarray:
    """Choose the test split: bool [n].

    A group with several classes counts for the class with the lowest label.

    Raises:
        DataError: a class has too few pictures or groups for a split.
    """
    keys = [
        f"group {group}" if group else digest
        for group, digest in zip(groups or [""] * len(digests), digests.astype(str).tolist(), strict=True)
    ]
    names, unit = np.unique(keys, return_inverse=True)
    draw = draw_test(names.tolist())
    size = np.bincount(unit)
    label = np.full(len(names), len(classes), np.int64)
    np.minimum.at(label, unit, labels)
    is_test_unit = np.zeros(len(names), bool)
    for number, name in enumerate(classes):
        members = np.flatnonzero(label == number)
        if len(members) < 2:
            kind = "pictures" if groups is None else "pictures or groups of pictures"
            raise DataError(
                f"the class {name} has too few {kind} for a test split",
                expected="at least 2: one for training and one for testing",
                found=str(len(members)),
                remedy="add pictures of this class, or remove it",
            )
        ordered = members[np.argsort(draw[members], kind="stable")]
        reached = np.cumsum(size[ordered])[:-1]  # one remains for training
        count = 1 + int(np.argmin(np.abs(reached - fraction * size[members].sum())))
        is_test_unit[ordered[:count]] = True
    return is_test_unit[unit]


def require_classes(labels: np.ndarray, is_test: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse a class without training pictures, or without test pictures.

    Raises:
        DataError: names the classes.
    """
    for side, chosen in (("training", ~is_test), ("test", is_test)):
        counts = np.bincount(labels[chosen], minlength=len(classes))
        if len(missing := np.flatnonzero(counts == 0)):
            raise DataError(
                f"no {side} pictures of the classes {', '.join(classes[label] for label in missing[:10])}",
                expected="pictures of every class for training and for testing",
                remedy="add pictures, or remove the test split: the import then chooses one",
            )
