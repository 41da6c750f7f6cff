"""Markdown: tables, and escaped texts."""

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~!&])")


def escape(text: str) -> str:
    """Escape a text, such as a class name with `*` or `<b>`, and join its lines."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return a table. Its last `numbers` columns are right-aligned."""
    rule = ["---"] * (len(columns) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *rows))


def describe_selection(shown: Sequence[int], classes: int) -> list[str]:
    """Describe what a table shows of the classes. Empty if it shows all."""
    return [f"The {len(shown)} of {classes:,} classes with the lowest recall:"] if len(shown) < classes else []
