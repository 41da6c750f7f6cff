"""A console for untrusted text, such as names: control characters in it do not reach the terminal."""

import os
from collections.abc import Iterable
from typing import Any

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table

from pipeline.redaction import printable

PLAIN_WIDTH = 110  # columns in a file or a pipe, unless COLUMNS is set
BLANK = Box("    \n" * 8)


class PlainConsole(Console):
    """A rich console that draws no lines in a pipe, in a file, with NO_COLOR, or with TERM=dumb (screen readers)."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to print."""
        if not self.is_terminal or self.is_dumb_terminal or self.no_color:
            if isinstance(renderable, Table):
                renderable.box = None
            elif isinstance(renderable, Panel):
                renderable.box = BLANK
        return super().render(renderable, options)


class SafeConsole(PlainConsole):
    """A console that prints control characters as `?` and brackets unchanged."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)
        if not self.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
            self.width = max(self.width, PLAIN_WIDTH)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to print. Only rich's control segments, such as a spinner's, can move the cursor."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
