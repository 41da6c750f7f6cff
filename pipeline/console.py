"""The terminal, which shows names and reasons that others chose without letting them control it."""

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pipeline.redaction import printable

PLAIN_WIDTH = 110  # columns in a file or a pipe, unless COLUMNS says otherwise


class SafeConsole(Console):
    """A console on which a text's control characters are shown as `?`, and its brackets as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)
        if not self.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
            self.width = max(self.width, PLAIN_WIDTH)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of something to print. Only rich's own, such as a spinner's, may move the cursor."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
