"""Matching of class names in folder names and parameters."""

import re
import unicodedata
from collections.abc import Sequence

_SEPARATORS = r"[\s/\\:_-]+"  # characters that folder names cannot contain, and their replacements
MOST_LISTED = 20  # names in one line


def find_class(written: str, *languages: Sequence[str]) -> set[int]:
    """Return the labels that a name matches: none if it is unknown, several if it is ambiguous.

    An exact name has priority, then the number of a label, then a name that differs only in case and separators. If the
    name of a class is a number that is not its label, numbers match names only.

    Args:
        languages: the class names in the order of the labels, for each language.
    """
    named = [(label, name) for names in languages for label, name in enumerate(names)]
    if exact := {label for label, name in named if _compose(name) == _compose(written)}:
        return exact
    numbers = {str(label): label for label, _ in named}
    if written in numbers and not any(name.isdecimal() and name != str(label) for label, name in named):
        return {numbers[written]}
    simple = simplify(written)
    return {label for label, name in named if simplify(name) == simple} if re.search(r"[^\W\d]", simple) else set()


def find_repeated(*languages: Sequence[str]) -> str | None:
    """Return a name that matches more than one class. None if there is none."""
    labels: dict[str, set[int]] = {}
    for label, name in (numbered for names in languages for numbered in enumerate(names)):
        labels.setdefault(_compose(name), set()).add(label)
    return next((name for names in languages for name in names if len(labels[_compose(name)]) > 1), None)


def list_classes(names: Sequence[str]) -> str:
    """Join class names in one line. If there are many, list the first ones and the number of the others."""
    rest = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS decomposes Korean syllables


def simplify(name: str) -> str:
    """Remove case and separators from a name, except between digits: `1-5` is not `15`."""
    joined = re.sub(rf"(?<!\d){_SEPARATORS}|{_SEPARATORS}(?!\d)", "", _compose(name).casefold())
    return re.sub(_SEPARATORS, " ", joined)
