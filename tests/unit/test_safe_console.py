"""Names that others chose are shown, and cannot control the terminal."""

import io
import json

import pytest
from rich.box import SIMPLE_HEAD
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipeline.cli.app import print_json
from pipeline.errors import DataError
from pipeline.safe_console import SafeConsole

EVIL = "a\x1b[31m\x1b]0;title\x07\x9b2J\rb[bold]c\u202ed"
IN_AN_ERROR = "a?[31m?]0;title??2J?b[bold]c?d"
SHOWN = "a?[31m?]0;title?2Jb[bold]c?d"  # rich itself drops bells and carriage returns


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_reach_no_terminal(terminal: bool) -> None:
    output = io.StringIO()
    console = SafeConsole(file=output, force_terminal=terminal, color_system=None, width=200)
    table = Table("name")
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console.print(EVIL, Text(EVIL), table, soft_wrap=True)
    console.print(f"batch {EVIL}")
    printed = output.getvalue()
    assert printed.count(SHOWN) == 3
    assert printed.count("a?[31m") == 5  # a table is laid out without these characters, and cuts the end
    assert not [letter for letter in printed if letter != "\n" and not letter.isprintable()]


def test_a_status_cannot_either() -> None:
    output = io.StringIO()
    console = SafeConsole(file=output, force_terminal=True, color_system=None, width=200)
    with console.status(Text(f"checking {EVIL}")):
        pass
    assert f"checking {SHOWN}" in output.getvalue()
    assert "\x1b[31m" not in output.getvalue()


def test_an_error_is_printable_whoever_prints_it() -> None:
    assert str(DataError(f"batch {EVIL} is refused", found=EVIL)).count(IN_AN_ERROR) == 2


def test_json_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": EVIL, "ko": "바지"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": EVIL, "ko": "바지"}
    assert "바지" in printed
    assert printed.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("terminal", "variables", "has_lines"),
    [(True, {}, True), (True, {"TERM": "dumb"}, False), (True, {"NO_COLOR": "1"}, False), (False, {}, False)],
)
def test_lines_are_drawn_on_a_terminal_only(
    terminal: bool, variables: dict[str, str], has_lines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in ({"TERM": "xterm"} | variables).items():
        monkeypatch.setenv(name, value)
    output = io.StringIO()
    console = SafeConsole(file=output, force_terminal=terminal, color_system=None, width=80)
    table = Table("stage", "result", box=SIMPLE_HEAD)
    table.add_row("train", "ran")
    console.print(table, Panel("text", title="title"))
    assert ("─" in output.getvalue()) == has_lines
    assert all(word in output.getvalue() for word in ("stage", "result", "train", "ran", "text", "title"))
