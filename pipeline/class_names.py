"""Class names as people write them in folder names and parameters."""

import re
import unicodedata
from collections.abc import Sequence

_SEPARATORS = r"[\s/\\:_-]+"  # what a folder name cannot hold, and what people write instead


def find_class(written: str, *languages: Sequence[str]) -> set[int]:
    """The labels that a name may stand for: none if it is unknown, several if it is ambiguous.

    An exact name wins, then a label's number, then a name that differs in case and separators only. Where a class is
    named by a number that is not its label, numbers are names only.

    Args:
        languages: the class names, in the order of the labels, once for each language.
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
    """A name that stands for more than one class, if there is any."""
    return next((name for names in languages for name in names if len(find_class(name, *languages)) > 1), None)


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS takes Korean syllables apart


def simplify(name: str) -> str:
    """A name without its case and separators: names that differ in these only are alike. `1-5` is not `15`."""
    joined = re.sub(rf"(?<!\d){_SEPARATORS}|{_SEPARATORS}(?!\d)", "", _compose(name).casefold())
    return re.sub(_SEPARATORS, " ", joined)
