"""Record `make run` in a fresh clone as an animated SVG: `python -m docs.images.record` (minutes).

The command runs in a pseudo-terminal. Every change of the screen becomes a frame; pauses are shortened, and the
spinner's frames are left out. Needs the download cache of a run before, so that nothing is fetched.
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.text import Text

from pipeline.data.dataset_files import cache_directory

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = Path(__file__).with_name("run.svg")
COLUMNS, ROWS = 96, 22
CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.4, 18, 14
LONGEST_PAUSE, LAST_FRAME = 1.2, 8.0  # seconds
COLOURS = {1: "#ff7b72", 2: "#7ee787", 3: "#e3b341"}  # red, green, yellow
SPINNER = re.compile(r"(?:\x1b\[32m)?[\u2800-\u28ff](?:\x1b\[0m)? ")
STYLE = (
    "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
    "fill:#e6edf3;white-space:pre}"
    "@media(prefers-reduced-motion:reduce){#film{animation:none!important}}"
)


def run(command: list[str], directory: Path, environment: dict[str, str]) -> Iterator[tuple[float, str]]:
    """Run a command in a pseudo-terminal. Yields seconds since its start, and what it printed."""
    started = time.monotonic()
    terminal, child_end = pty.openpty()
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdin=child_end, stdout=child_end, stderr=child_end
    ) as process:
        os.close(child_end)
        try:
            while printed := os.read(terminal, 65536):
                yield time.monotonic() - started, printed.decode("utf-8", "replace")
        except OSError:  # the terminal's last writer has ended
            pass
    os.close(terminal)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}")


def draw_screens(printed: Iterator[tuple[float, str]], first_line: str) -> Iterator[tuple[float, list[Text]]]:
    """Apply what was printed to a screen. Yields the time and the rows of each screen that is not the one before."""
    lines, shown, decoder = [first_line, ""], "", AnsiDecoder()
    yield 0.0, [Text(first_line)]
    for seconds, text in printed:
        for part in re.split(r"(\r?\n|\r\x1b\[2K)", re.sub(r"\x1b\[\?25[lh]", "", text)):
            if part.endswith("\n"):
                lines.append("")
            elif part == "\r\x1b[2K":
                lines[-1] = ""
            else:
                lines[-1] += part
        screen = "\n".join(lines)
        screen = SPINNER.sub("\u2026 ", re.sub(r" (?:\x1b\[33m)?\d:\d\d:\d\d(?:\x1b\[0m)?$", "", screen))
        if screen != shown and lines[-1]:  # without the moments in which the status line is being replaced
            shown = screen
            yield seconds, wrap(decoder.decode(screen))
    yield seconds, wrap(decoder.decode("\n".join(lines)))


def wrap(lines: Iterable[Text]) -> list[Text]:
    """Break lines at the last column, and return those that the screen shows."""
    rows = []
    for line in lines:
        line.rstrip()
        rows += line.divide(range(COLUMNS, len(line), COLUMNS))
    return rows[-ROWS:]


def draw_row(row: Text, y: float, console: Console) -> str:
    """Return a row as an SVG text, with bold, dim and colours."""
    spans = []
    for text, style, _ in row.render(console):
        colour = COLOURS.get(style.color.number) if style and style.color and style.color.number else None
        attributes = f' fill="{colour}"' if colour else ""
        attributes += ' font-weight="bold"' if style and style.bold else ""
        attributes += ' opacity="0.6"' if style and style.dim else ""
        spans.append(f"<tspan{attributes}>{escape(text)}</tspan>" if attributes else escape(text))
    return f'<text x="{MARGIN}" y="{y:g}">{"".join(spans)}</text>' if row.plain else ""


def animate(screens: list[tuple[float, list[Text]]]) -> str:
    """Return the screens as one SVG: a strip of frames, which moves by whole frames."""
    width, height = round(COLUMNS * CELL_WIDTH) + 2 * MARGIN, ROWS * LINE_HEIGHT + 2 * MARGIN
    pauses = [min(after - before, LONGEST_PAUSE) for (before, _), (after, _) in pairwise(screens)] + [LAST_FRAME]
    total, starts = sum(pauses), [sum(pauses[:number]) for number in range(len(pauses))]
    keys = "".join(
        f"{100 * start / total:.3f}%{{transform:translateY({-n * height}px)}}" for n, start in enumerate(starts)
    )
    console = Console(width=COLUMNS, color_system="standard")
    frames = "".join(
        draw_row(row, number * height + MARGIN + LINE_HEIGHT * (line + 0.75), console)
        for number, (_, rows) in enumerate(screens)
        for line, row in enumerate(rows)
    )
    last = -(len(screens) - 1) * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>make run</title><style>{STYLE}#film{{transform:translateY({last}px);"
        f"animation:film {total:.2f}s step-end infinite}}"
        f'@keyframes film{{{keys}}}</style><rect width="100%" height="100%" rx="8" fill="#0d1117"/>'
        f'<g id="film">{frames}</g></svg>\n'
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        home, clone = Path(scratch) / "home", Path(scratch) / "clone"
        (home / ".cache").mkdir(parents=True)
        (home / ".cache" / "downloads").symlink_to(cache_directory())
        (home / ".gitconfig").write_text("[user]\n\tname = you\n\temail = you@example.com\n")
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"} | {
            "HOME": str(home),
            "PIPELINE_CACHE": str(home / ".cache" / "downloads"),
            "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
            "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS),
            "LINES": str(ROWS),
        }
        printed = run(["make", "run"], clone, environment)
        shown = ((seconds, text.replace(str(home), "~")) for seconds, text in printed)
        TARGET.write_text(animate(list(draw_screens(shown, "$ make run"))), "utf-8")
    print(f"{TARGET.relative_to(REPOSITORY)}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
