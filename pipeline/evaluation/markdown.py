"""Markdown by hand: tables, and texts that must come out as they are."""

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~!&])")


def escape(text: str) -> str:
    """A text that Markdown shows as it is: a class may be called `*` or `<b>`. Lines become one."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table. The last `numbers` columns stand to the right."""
    rule = ["---"] * (len(columns) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *rows))
